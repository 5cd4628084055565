"""What a format costs in bits, and what its error is made of."""

import math

from quantlab.formats.coder import Scales
from quantlab.stats.sums import Sums

DB_A_BIT = 20 * math.log10(2)


def figures(
    bits_per_value: float, sqnr_db: float | None, scales: Scales
) -> dict[str, float | None]:
    """Return what is stored, and how far above the bound.

    A Gaussian source of the same power needs ``sqnr_db / 6.02`` bits a value (Shannon, 1959), and
    no source of that power more; `bits_above_bound` is what a format spends beyond.
    """
    above = None if sqnr_db is None else bits_per_value - sqnr_db / DB_A_BIT
    return {
        "bits_per_value": bits_per_value,
        "bits_above_bound": above,
        "n_scales": scales.n,
        "scale_min": scales.least,
        "scale_max": scales.greatest,
        "scales_saturated": scales.saturated,
        "scales_vanished": scales.vanished,
    }


def error_budget(sums: Sums) -> dict[str, float | None]:
    """Return the shares of the squared error: of clipped values, of those that became 0, the rest.

    They add up to 1; there are none where the round trip is perfect.
    """
    if not sums.sq_err:
        return dict.fromkeys(("clip_share", "zero_share", "round_share"))
    clip, zero = sums.clip_sq_err / sums.sq_err, sums.zero_sq_err / sums.sq_err
    return {"clip_share": clip, "zero_share": zero, "round_share": max(0.0, 1 - clip - zero)}
