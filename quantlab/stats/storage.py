"""What a format costs in bits, and what its error is made of."""

import math

from quantlab.formats.coder import Scales
from quantlab.stats.sums import Sums

OF_SCALES = ("n_scales", "scale_min", "scale_max", "scales_saturated", "scales_vanished")
BUDGET = ("clip_share", "zero_share", "round_share")
DB_A_BIT = 20 * math.log10(2)


def figures(
    bits_per_value: float, sqnr_db: float | None, scales: Scales | None
) -> dict[str, float | None]:
    """Return what is stored, and how far above the bound.

    A Gaussian source of the same power needs ``sqnr_db / 6.02`` bits a value (Shannon, 1959), and
    no source of that power more; `bits_above_bound` is what a format spends beyond. What scales are
    like is null where they are not known.
    """
    above = None if sqnr_db is None else bits_per_value - sqnr_db / DB_A_BIT
    return {
        "bits_per_value": bits_per_value,
        "bits_above_bound": above,
        **dict(zip(OF_SCALES, scales or [None] * len(OF_SCALES), strict=True)),
    }


def error_budget(sums: Sums, clipped: int | None) -> dict[str, float | None]:
    """Return the shares of the squared error: of clipped values, of those that became 0, the rest.

    They add up to 1; there are none where the round trip is perfect, and only that of values that
    became 0 where it is not known which were clipped.
    """
    if not sums.sq_err:
        return dict.fromkeys(BUDGET)
    clip, zero = sums.clip_sq_err / sums.sq_err, sums.zero_sq_err / sums.sq_err
    if clipped is None:
        return dict(zip(BUDGET, (None, zero, None), strict=True))
    return {"clip_share": clip, "zero_share": zero, "round_share": max(0.0, 1 - clip - zero)}
