"""Elements that are a published list of levels."""

from dataclasses import dataclass

import numpy as np

from quantlab.formats.element import (
    Bounds,
    Fit,
    FloatArray,
    Scaled,
    ScaledGrid,
    Store,
    Trip,
    fit_scale,
    in_units,
    require_width,
    some,
    times_scale,
)

# 4-bit NormalFloat: Dettmers et al., "QLoRA", 2023, appendix E.
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class NormalFloat4(ScaledGrid):
    """The 16 levels of NF4, of a scale that is the largest magnitude of the block.

    ``float32(x / scale)`` goes to the nearest level, at a midpoint to the lower. Codes count the
    levels from -8; -1 is 0.
    """

    n_bits: int

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is not 4."""
        require_width(self.n_bits, 4, "nf4")

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Map the largest magnitude to 1."""
        return fit_scale(bounds.absmax, store)

    def round_trip(self, x: FloatArray, params: Scaled) -> Trip:
        """Take each value to the nearest level: its code is how many midpoints it lies above."""
        y = in_units(x, params.scale)
        codes, above = np.full(y.shape, -8, np.int8), np.empty(y.shape, bool)
        for midpoint in MIDPOINTS:
            np.greater(y, midpoint, out=above)
            codes += above.view(np.int8)
        x_hat = np.take(NF4, codes + np.intp(8), mode="clip")
        x_hat = times_scale(x_hat, params.scale, 1.0)
        return Trip(codes, x_hat, some((y > BEYOND[1]) | (y < BEYOND[0])))


def _round_down(values: np.ndarray) -> FloatArray:
    """Return the largest float32 numbers that are not above some float64 numbers."""
    rounded = values.astype(np.float32)
    return np.where(rounded <= values, rounded, np.nextafter(rounded, np.float32(-np.inf)))


_EXACT = NF4.astype(np.float64)
# A float32 number lies above a midpoint just where it lies above the midpoint rounded down.
MIDPOINTS = _round_down((_EXACT[1:] + _EXACT[:-1]) / 2)
# Half a step beyond the ends.
BEYOND = (
    np.float32((3 * _EXACT[0] - _EXACT[1]) / 2),
    np.float32((3 * _EXACT[-1] - _EXACT[-2]) / 2),
)
