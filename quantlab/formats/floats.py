"""Small floating-point grids, fixed point, the levels of NF4, and logarithms, for a block.

A value is ``float32(x / scale)`` rounded to the nearest number of the grid; ``x_hat = value *
scale`` in float32. Floats have sign, exponent, mantissa, no infinity, and saturate; `ml_dtypes`
rounds them, ties to the even mantissa. Their codes are those numbers counted from 0: negative below
it. Grids: OCP 8-bit floating point 1.0, OCP Microscaling formats 1.0.

Compiled twins in `stats.kernel`: `round_to_float`, `round_to_fixed_point`, `round_to_level`. `Log`
has none: NumPy takes values through it, whoever sums the errors.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import (
    BlockParams,
    Bounds,
    Codes,
    CompiledGrid,
    ContradictionError,
    Element,
    FloatArray,
    GridKind,
    Quantized,
    RoundScale,
    Scaled,
    code_dtype,
    divide_by_scale,
    fit_scale,
    mask_or_none,
    multiply_by_scale,
    require_width,
)
from quantlab.formats.uniform import code_range

FLOAT_DTYPES: dict[tuple[int, int], Any] = {  # by the bits of exponent and mantissa
    (2, 1): ml_dtypes.float4_e2m1fn,
    (2, 3): ml_dtypes.float6_e2m3fn,
    (3, 2): ml_dtypes.float6_e3m2fn,
    (3, 4): ml_dtypes.float8_e3m4,
    (4, 3): ml_dtypes.float8_e4m3fn,
    (5, 2): ml_dtypes.float8_e5m2,
    (5, 10): np.float16,
}


@cache
def _decode_tables(dtype: Any, n_bits: int) -> tuple[Any, FloatArray]:
    """Return the codes and the values of all bits of a type."""
    bits = np.arange(2**n_bits).astype(f"u{np.dtype(dtype).itemsize}")
    sign = 2 ** (n_bits - 1)
    codes = np.where(bits < sign, bits, sign - bits.astype(np.int32))
    with np.errstate(invalid="ignore"):  # NaN
        values = bits.view(dtype).astype(np.float32) + np.float32(0)  # -0 becomes 0, as in the loop
    return codes.astype(code_dtype(n_bits)), values


@dataclass(frozen=True)
class Float(Element):
    """A floating-point grid; ``scale = absmax / reach``.

    `largest` is its greatest number. `reach` is that too, unless it is given: OCP MX scales by the
    power of two of the largest number, and saturates what lies beyond.
    """

    n_bits: int
    exponent_bits: int
    mantissa_bits: int
    largest: float
    reach: float | None = None
    scales_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError for a shape that there is not, a wrong width, or a wrong `largest`."""
        shape = self.exponent_bits, self.mantissa_bits
        if shape not in FLOAT_DTYPES:
            names = ", ".join("e{}m{}".format(*known) for known in FLOAT_DTYPES)
            raise ValueError(
                f"mode.exponent_bits={shape[0]} with mode.mantissa_bits={shape[1]} is no float "
                f"that ml_dtypes has: give those of one of {names}"
            )
        name = f"fp{1 + sum(shape)}_e{shape[0]}m{shape[1]}"
        require_width(self.n_bits, [1 + sum(shape)], name)
        info: Any = ml_dtypes.finfo  # untyped
        info = info(self.dtype)
        number = isinstance(self.largest, int | float) and 0 < self.largest <= float(info.max)
        if not number or float(self.dtype(self.largest)) != self.largest:
            raise ValueError(
                f"mode.largest={self.largest!r} is no number of {name}: give one from "
                f"{float(info.smallest_subnormal):g} to {float(info.max):g}"
            )

    @property
    def dtype(self) -> Any:
        """The type that rounds."""
        return FLOAT_DTYPES[self.exponent_bits, self.mantissa_bits]

    @property
    def largest_code(self) -> int:
        """The code of the greatest number: its bits, which count the numbers above 0."""
        return int(np.array(self.largest, self.dtype).view(f"u{np.dtype(self.dtype).itemsize}"))

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Map the largest magnitude to `reach`."""
        return fit_scale(bounds.absmax / (self.reach or self.largest), store)

    def round_trip(self, x: FloatArray, params: Scaled) -> Quantized:
        """Round to the grid."""
        y = divide_by_scale(x, params.scale)
        bits = self._round(y)
        codes, values = _decode_tables(self.dtype, self.n_bits)
        x_hat = multiply_by_scale(np.take(values, bits), params.scale, self.largest)
        return Quantized(np.take(codes, bits), x_hat, self._clipped(y))

    def reconstruct(self, x: FloatArray, params: Scaled) -> FloatArray:
        """Reconstruct values."""
        bits = self._round(divide_by_scale(x, params.scale))
        values = np.take(_decode_tables(self.dtype, self.n_bits)[1], bits)
        return multiply_by_scale(values, params.scale, self.largest)

    def _round(self, y: FloatArray) -> Any:
        """Round to the bits of numbers, saturated before the cast: it may overflow to NaN."""
        rounded = np.clip(y, -self.largest, self.largest).astype(self.dtype)
        return rounded.view(f"u{rounded.itemsize}")

    def _clipped(self, y: FloatArray) -> Any:
        """Return a mask of the values that would round beyond `largest`, None if there are none."""
        if max(float(y.max()), -float(y.min())) <= self.largest:
            return None
        _, exponent = np.frexp(np.float32(self.largest))
        step = np.ldexp(
            np.float32(1), max(int(exponent) - 1, self._min_exponent) - self.mantissa_bits
        )
        # Far beyond is beyond, and a quotient of less cannot overflow.
        steps = np.rint(np.clip(y, -2 * self.largest, 2 * self.largest) / step)
        return mask_or_none(np.abs(steps) > self.largest / step)

    @property
    def _min_exponent(self) -> int:
        """The exponent of the least normal number."""
        return 2 - 2 ** (self.exponent_bits - 1)

    def compiled_grid(self) -> CompiledGrid:
        """Return the grid of `kernel.round_to_float`."""
        return CompiledGrid(
            GridKind.FLOAT,
            self.n_bits,
            self.largest_code,
            self.mantissa_bits,
            smallest=2.0**self._min_exponent,
            largest=self.largest,
        )


@dataclass(frozen=True)
class FixedPoint(Element):
    """Whole numbers of ``scale * 2^-fraction_bits``, as many below 0 as above (OCP MX, MXINT8)."""

    n_bits: int
    own_bits: int
    fraction_bits: int
    scales_ends: ClassVar[bool] = True
    reach: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is another width than that of the grid."""
        require_width(self.n_bits, [self.own_bits], f"int{self.own_bits}")

    @property
    def largest(self) -> float:
        """The greatest number."""
        return float((2 ** (self.n_bits - 1) - 1) / 2**self.fraction_bits)

    @property
    def mantissa_bits(self) -> int:
        """The bits of the numbers from 1 on."""
        return self.fraction_bits

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Map the largest magnitude to 1, or to what a power of two leaves of it."""
        return fit_scale(bounds.absmax, store)

    def round_trip(self, x: FloatArray, params: Scaled) -> Quantized:
        """Round to whole steps, halves to even, and saturate."""
        one, qmax = np.float32(2**self.fraction_bits), 2 ** (self.n_bits - 1) - 1
        steps = np.rint(divide_by_scale(x, params.scale) * one)
        codes = np.clip(steps, -qmax, qmax)
        clipped = mask_or_none(codes != steps)
        x_hat = multiply_by_scale(codes / one, params.scale, 2.0)
        return Quantized(codes.astype(code_dtype(self.n_bits)), x_hat, clipped)

    def compiled_grid(self) -> CompiledGrid:
        """Return the grid of `kernel.round_to_fixed_point`."""
        qmax = 2 ** (self.n_bits - 1) - 1
        return CompiledGrid(GridKind.FIXED_POINT, self.n_bits, qmax, self.fraction_bits)


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


def _round_down(values: np.ndarray) -> FloatArray:
    """Return the largest float32 numbers that are not above some float64 numbers."""
    rounded = values.astype(np.float32)
    return np.where(rounded <= values, rounded, np.nextafter(rounded, np.float32(-np.inf)))


_EXACT = NF4.astype(np.float64)
# A float32 number lies above a midpoint just where it lies above the midpoint rounded down.
MIDPOINTS = _round_down((_EXACT[1:] + _EXACT[:-1]) / 2)
# Half a step beyond the ends, where a value counts as clipped.
LOWEST = np.float32((3 * _EXACT[0] - _EXACT[1]) / 2)
HIGHEST = np.float32((3 * _EXACT[-1] - _EXACT[-2]) / 2)


@dataclass(frozen=True)
class NormalFloat4(Element):
    """The 16 levels of NF4, of a scale that is the largest magnitude of the block.

    ``float32(x / scale)`` goes to the nearest level, at a midpoint to the lower. Codes count the
    levels from -8; -1 is 0.
    """

    n_bits: int
    scales_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is not 4."""
        require_width(self.n_bits, [4], "nf4")

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Map the largest magnitude to 1."""
        return fit_scale(bounds.absmax, store)

    def round_trip(self, x: FloatArray, params: Scaled) -> Quantized:
        """Take each value to the nearest level: its code is the number of midpoints below it."""
        y = divide_by_scale(x, params.scale)
        places, above = np.zeros(y.shape, np.uint8), np.empty(y.shape, bool)
        for midpoint in MIDPOINTS:  # several times as fast as a binary search
            places += np.greater(y, midpoint, out=above).view(np.uint8)
        x_hat = multiply_by_scale(np.take(NF4, places), params.scale, 1.0)
        clipped = mask_or_none((y > HIGHEST) | (y < LOWEST))
        return Quantized(places.astype(np.int8) - np.int8(8), x_hat, clipped)

    def compiled_grid(self) -> CompiledGrid:
        """Return the grid of `kernel.round_to_level`."""
        return CompiledGrid(
            GridKind.LEVELS,
            self.n_bits,
            smallest=float(LOWEST),
            largest=float(HIGHEST),
            levels=NF4,
            midpoints=MIDPOINTS,
        )


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
    """Sign and logarithm: magnitudes in steps of equal ratio (lab 03, block D).

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


def float_width(dtype: str) -> int:
    """Return the bits of a floating-point dtype.

    >>> float_width("bfloat16"), float_width("float8_e4m3fn")
    (16, 8)
    """
    match = re.search(r"float(\d+)", dtype)
    if not match:
        raise ValueError(f"{dtype} is no floating-point dtype")
    return int(match[1])
