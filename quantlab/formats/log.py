"""Sign and logarithm: steps of equal ratio instead of equal width (lab 03, block D).

It has no compiled twin: NumPy takes values through it, whoever sums the errors.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import (
    BlockParams,
    Bounds,
    Codes,
    ContradictionError,
    Element,
    FloatArray,
    Quantized,
    RoundScale,
    code_dtype,
)
from quantlab.formats.uniform import code_range


class LogParams(NamedTuple):
    """The largest magnitude, which `scale` is, the octaves of a step, and the codes.

    There are `magnitudes` codes on each side of the one of zero, `zero_point`.
    """

    scale: FloatArray
    step: FloatArray
    magnitudes: NDArray[np.int64]
    zero_point: NDArray[np.int64]


@dataclass(frozen=True)
class Log(Element):
    """Magnitudes from the smallest to the largest of a block in steps of equal ratio.

    With ``a`` the largest and ``m`` the smallest magnitude that is not 0, K codes for magnitudes,
    ``step = float32(log2(a / m) / (K - 1))`` and ``k = rint(log2(a / |x|) / step)``, a value comes
    back as ``sign * a * 2^(-k step)``. K is ``2^n - 1`` where all values have one sign, else
    ``2^(n-1) - 1`` for each; zero has a code of its own. Everything is float64 but ``a`` and
    ``step``, which are stored.
    """

    n_bits: int
    accepts_range: ClassVar[bool] = False
    needs_min_magnitude: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is out of range."""
        code_range(self.n_bits)
        if self.n_bits < 3:
            raise ContradictionError(
                f"n_bits must be from 3 to 16 with mode=log, got {self.n_bits}"
            )

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:  # noqa: ARG002 two float32 are stored
        """Spread the codes over the magnitudes of each block."""
        qmin, qmax = code_range(self.n_bits)
        largest = bounds.absmax
        positive, negative = bounds.lo >= 0, bounds.hi <= 0
        magnitudes = np.where(positive | negative, qmax - qmin, qmax)
        smallest = np.where(largest > 0, bounds.min_magnitude, 1.0)
        octaves = np.log2(np.where(largest > 0, largest, 1.0) / smallest)
        params = LogParams(
            largest.astype(np.float32),
            (octaves / (magnitudes - 1)).astype(np.float32),
            magnitudes,
            np.where(positive, qmin, np.where(negative, qmax, 0)),
        )
        never = np.zeros(largest.shape, bool)
        return BlockParams(params, never, never)

    def round_trip(self, x: FloatArray, params: LogParams) -> Quantized:
        """Round the logarithm of each magnitude, halves to even."""
        largest, step = params.scale.astype(np.float64), params.step.astype(np.float64)
        zero = x == 0
        k = np.abs(x, dtype=np.float64)
        np.putmask(k, zero, 1.0)
        np.divide(largest, k, out=k)
        np.putmask(k, zero, 1.0)
        np.log2(k, out=k)
        k /= np.where(step == 0, np.inf, step)
        np.clip(np.rint(k, out=k), 0, params.magnitudes - 1, out=k)
        codes = self._codes(x, k, zero, params)
        k *= -step
        np.exp2(k, out=k)
        k *= largest
        x_hat = np.copysign(k.astype(np.float32), x)
        np.putmask(x_hat, zero, 0)
        return Quantized(codes, x_hat, None)

    def _codes(
        self, x: FloatArray, k: NDArray[np.float64], zero: NDArray[np.bool_], params: LogParams
    ) -> Codes:
        """Return codes in the order of the values: the largest magnitude lies furthest from 0."""
        steps = np.copysign(params.magnitudes - k, x)
        np.putmask(steps, zero, 0)
        steps += params.zero_point
        return steps.astype(code_dtype(self.n_bits))

    def block_bits(self, scale_bits: int) -> int:  # noqa: ARG002 it stores its own two
        """Return the bits of two float32 numbers."""
        return 64
