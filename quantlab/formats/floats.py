"""Small floating-point elements: sign, exponent, mantissa, no infinity, saturating.

A value is ``float32(x / scale)`` rounded to the nearest number of the grid, ties to the even
mantissa; ``x_hat = value * scale`` in float32. Codes are those numbers counted from 0: negative
below it. Grids: OCP 8-bit floating point 1.0, OCP Microscaling formats 1.0.
"""

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
    code_dtype,
    fit_scale,
    in_units,
    require_width,
    some,
    times_scale,
)
from quantlab.formats.uniform import code_range

EXPONENT = 0x7F80_0000  # of a float32
MANTISSA_BITS = 23
BIAS = 127
# A number of this exponent, plus the bits of the mantissa, can be doubled and shifted in float32.
SHIFTABLE = BIAS - MANTISSA_BITS - 1


@dataclass(frozen=True)
class Float(ScaledGrid):
    """A floating-point grid; ``scale = absmax / reach``.

    `largest` is its greatest number. `reach` is that too, unless it is given: OCP MX scales by the
    power of two of the largest number, and saturates what lies beyond.
    """

    n_bits: int
    exponent_bits: int
    mantissa_bits: int
    largest: float
    reach: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is not the width of the grid, or `largest` not in it."""
        own = 1 + self.exponent_bits + self.mantissa_bits
        name = f"fp{own}_e{self.exponent_bits}m{self.mantissa_bits}"
        require_width(self.n_bits, own, name)
        code_range(own)  # raises where codes have no such width
        most = min(self.min_exponent + 2**self.exponent_bits - 2, SHIFTABLE + self.mantissa_bits)
        steps = self._steps if isinstance(self.largest, int | float) else 0
        if not (steps >= 1 and steps % 1 == 0 and self._binade <= most):
            raise ValueError(
                f"mode.largest={self.largest!r} is no number of {name}: give one from "
                f"{2.0 ** (self.min_exponent - self.mantissa_bits):g} to "
                f"{(2 - 2.0**-self.mantissa_bits) * 2.0**most:g}"
            )

    @property
    def min_exponent(self) -> int:
        """The exponent of the least normal number."""
        return 2 - 2 ** (self.exponent_bits - 1)

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Map the largest magnitude to `reach`."""
        return fit_scale(bounds.absmax / (self.reach or self.largest), store)

    def round_trip(self, x: FloatArray, params: Scaled) -> Trip:
        """Round to the grid.

        To add and subtract 1.5 * 2^k rounds to a step of 2^(k - 23), halves to even, and leaves
        the number of steps in the last bits of the sum.
        """
        binade, shift, shifted = self._shifted(x, params)
        steps = shifted.view(np.int32) - shift.view(np.int32)
        value = np.subtract(shifted, shift, out=shift)
        binades = binade.view(np.int32)
        binades >>= MANTISSA_BITS
        binades -= self.min_exponent + BIAS
        binades <<= self.mantissa_bits
        negative = steps >> 31
        steps += (binades ^ negative) - negative
        largest_code = self.largest_code
        clipped = some(np.abs(steps) > largest_code)
        if clipped is not None:
            np.clip(steps, -largest_code, largest_code, out=steps)
            np.clip(value, -self.largest, self.largest, out=value)
        x_hat = times_scale(value, params.scale, self.largest)
        return Trip(steps.astype(code_dtype(self.n_bits)), x_hat, clipped)

    def reconstruct(self, x: FloatArray, params: Scaled) -> FloatArray:
        """Return what values come back as."""
        _, shift, shifted = self._shifted(x, params)
        shifted -= shift
        np.clip(shifted, -self.largest, self.largest, out=shifted)
        return times_scale(shifted, params.scale, self.largest)

    def _shifted(self, x: FloatArray, params: Scaled) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the binade of each value in units of its scale, a shift, and the value with it."""
        y = in_units(x, params.scale)
        np.clip(y, -2 * self.largest, 2 * self.largest, out=y)
        binade = (y.view(np.int32) & EXPONENT).view(np.float32)
        np.maximum(binade, np.float32(2.0**self.min_exponent), out=binade)
        shift = binade * np.float32(1.5 * 2.0 ** (MANTISSA_BITS - self.mantissa_bits))
        y += shift
        return binade, shift, y

    @property
    def _binade(self) -> int:
        """The exponent of the greatest number, or that of the least normal one if it is smaller."""
        return max(int(np.frexp(self.largest)[1]) - 1, self.min_exponent)

    @property
    def _steps(self) -> float:
        """The greatest number in steps of its binade."""
        return float(np.ldexp(self.largest, self.mantissa_bits - self._binade))

    @property
    def largest_code(self) -> int:
        """The code of the greatest number."""
        return int(self._steps) + (self._binade - self.min_exponent) * 2**self.mantissa_bits


@dataclass(frozen=True)
class FixedPoint(ScaledGrid):
    """Whole numbers of ``scale * 2^-fraction_bits``, as many below 0 as above (OCP MX, MXINT8)."""

    n_bits: int
    own_bits: int
    fraction_bits: int

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is another width than that of the grid."""
        require_width(self.n_bits, self.own_bits, f"int{self.own_bits}")

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Map the largest magnitude to 1, or to what a power of two leaves of it."""
        return fit_scale(bounds.absmax, store)

    def round_trip(self, x: FloatArray, params: Scaled) -> Trip:
        """Round to whole steps, halves to even, and saturate."""
        one, qmax = np.float32(2**self.fraction_bits), 2 ** (self.n_bits - 1) - 1
        steps = np.rint(in_units(x, params.scale) * one)
        codes = np.clip(steps, -qmax, qmax)
        clipped = some(codes != steps)
        x_hat = times_scale(codes / one, params.scale, 2.0)
        return Trip(codes.astype(code_dtype(self.n_bits)), x_hat, clipped)
