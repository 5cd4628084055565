"""Uniform affine quantization of float32 tensors: one map, two ways to choose its parameters.

::

    q     = clip(rint(x / scale) + zero_point, qmin, qmax)
    x_hat = float32(q - zero_point) * scale

symmetric    scale = max(|lo|, |hi|) / qmax,     zero_point = 0
asymmetric   scale = (hi - lo) / (qmax - qmin),  zero_point = qmin - rint(lo / scale)

``[lo, hi]`` is the range of the data and nothing else: no clipping of outliers, no calibration.
Scale and zero point are per tensor, chosen in float64 and rounded to float32 once. The round trip
is float32 with a true division and halves rounded to even, so the codes equal those of ONNX
``QuantizeLinear`` (opset 21) bit for bit. The last six functions are those of lab 03, block A.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from quantlab.formats import scales
from quantlab.formats.element import (
    Bounds,
    Codes,
    Fit,
    FloatArray,
    Store,
    Trip,
    code_dtype,
    in_units,
    some,
    times_scale,
)
from quantlab.formats.scales import Array64

ZeroPointPolicy = Literal["widen", "clip", "wide_int"]

FLOAT32 = np.finfo(np.float32)
INT32 = np.iinfo(np.int32)
HALF = 0.5  # of a step of 1: what is smaller comes back as 0


def code_range(n_bits: int) -> tuple[int, int]:
    """Return ``(qmin, qmax)`` of the signed codes, e.g. (-128, 127) for 8 bits.

    Raises ValueError when `n_bits` is not a whole number from 2 to 16.
    """
    if not isinstance(n_bits, int | np.integer) or n_bits not in range(2, 17):
        raise ValueError(f"n_bits must be a whole number from 2 to 16, got {n_bits!r}")
    return -(2 ** (n_bits - 1)), 2 ** (n_bits - 1) - 1


def value_range(x: ArrayLike, name: str = "x") -> tuple[float, float]:
    """Return the least and the greatest value of a tensor of any shape.

    Raises ValueError, naming the tensor, when it is empty or holds NaN or Inf.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.size == 0:
        raise empty(name, x.shape)
    lo, hi = float(x.min()), float(x.max())
    if not np.isfinite([lo, hi]).all():
        where = np.argwhere(~np.isfinite(x))
        first = tuple(where[0].tolist())
        raise not_finite(name, len(where), x.size, x[first], list(first))
    return lo, hi


def empty(name: str, shape: tuple[int, ...]) -> ValueError:
    """Return the error of a tensor without elements."""
    return ValueError(f"tensor '{name}' is empty (shape {shape}): there is nothing to quantize")


def not_finite(name: str, count: int, size: int, first: Any, index: list[int]) -> ValueError:
    """Return the error of a tensor of which `count` values are no finite float32.

    `first` is the first of them as stored, and tells which of the two ails them.
    """
    beyond = np.isfinite(first)
    what = "values beyond float32" if beyond else "NaN or Inf"
    cure = "rescale them" if beyond else "mend or drop them"
    return ValueError(
        f"tensor '{name}' holds {count} {what} among its {size} values, "
        f"the first ({first}) at index {index}: {cure} before quantizing"
    )


class Params(NamedTuple):
    """What turns values into codes and back, and what had to give to get it, of a block or many.

    `scale_replaced` says that the step fell below the smallest normal float32 and became 1, as in
    ONNX Runtime; `zero_point_clipped` that the zero point did not fit and saturated.
    """

    scale: Any  # a float32, or an array of them
    zero_point: Any  # an int, or an array
    scale_replaced: Any = False
    zero_point_clipped: Any = False


def unclipped_codes(x: ArrayLike, params: Params) -> FloatArray:
    """Return ``rint(x / scale) + zero_point`` as float32, before saturation.

    Exact while ``|zero_point| < 2**24``, which only ``wide_int`` can leave.
    """
    x = np.asarray(x, dtype=np.float32)
    return np.rint(in_units(x, params.scale)) + np.float32(params.zero_point)


def saturate(unclipped: FloatArray, n_bits: int) -> Codes:
    """Clip to the code range and store as int8 up to 8 bits, as int16 above."""
    qmin, qmax = code_range(n_bits)
    q = np.minimum(np.maximum(unclipped, qmin), qmax)
    return q.astype(code_dtype(n_bits))


def quantize(x: ArrayLike, params: Params, n_bits: int) -> Codes:
    """Return the codes of `x`, of its shape."""
    return saturate(unclipped_codes(x, params), n_bits)


def dequantize(q: Codes, params: Params) -> FloatArray:
    """Return the float32 values that the codes stand for, of the shape of `q`.

    A code whose value lies beyond the float32 range gives its largest finite value, not inf.
    """
    with np.errstate(over="ignore"):
        x_hat = (q.astype(np.float32) - np.float32(params.zero_point)) * params.scale
    return np.minimum(np.maximum(x_hat, FLOAT32.min), FLOAT32.max)


def first(params: Params) -> Params:
    """Return the parameters of the first of many blocks."""
    scale, zero_point, replaced, clipped = (each[0] for each in params)
    return Params(np.float32(scale), int(zero_point), bool(replaced), bool(clipped))


class Uniform(ABC):
    """What both quantizers share: everything but the choice of the zero point."""

    n_bits: int
    ranged: ClassVar[bool] = True
    least: ClassVar[bool] = False

    @abstractmethod
    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Choose the parameters of blocks; a step below float32's smallest normal becomes 1."""

    def choose(self, lo: float, hi: float) -> Params:
        """Choose the parameters of one block with the range [lo, hi]."""
        bounds = Bounds(np.float64(lo), np.float64(hi), np.float64(np.inf))
        scale, zero_point, replaced, clipped = self.fit(bounds, scales.FLOAT32.store).params
        return Params(np.float32(scale), int(zero_point), bool(replaced), bool(clipped))

    def round_trip(self, x: FloatArray, params: Params) -> Trip:
        """Take values to codes and back, bit for bit as `quantize` and `dequantize` do."""
        unclipped = self._unclipped(x, params)
        q = np.clip(unclipped, *code_range(self.n_bits))
        codes, clipped = q.astype(code_dtype(self.n_bits)), some(unclipped != q)
        return Trip(codes, self._values(q, params), clipped)

    def reconstruct(self, x: FloatArray, params: Params) -> FloatArray:
        """Return what values come back as."""
        q = self._unclipped(x, params)
        return self._values(np.clip(q, *code_range(self.n_bits), out=q), params)

    def _unclipped(self, x: FloatArray, params: Params) -> FloatArray:
        steps = in_units(x, params.scale)
        np.rint(steps, out=steps)
        if np.any(params.zero_point):
            steps += np.float32(params.zero_point)
        return steps

    def _values(self, q: FloatArray, params: Params) -> FloatArray:
        """Turn codes, as float32, into what they stand for, in place."""
        if np.any(params.zero_point):
            q -= np.float32(params.zero_point)
        largest = 2.0**self.n_bits + float(np.max(np.abs(params.zero_point)))
        return times_scale(q, params.scale, largest)


@dataclass(frozen=True)
class Symmetric(Uniform):
    """Zero point 0; the code ``qmin`` stays unused."""

    n_bits: int
    symmetric: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is out of range."""
        code_range(self.n_bits)

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Map the larger magnitude of each range to ``qmax``."""
        _, qmax = code_range(self.n_bits)
        absmax = bounds.absmax
        scale, replaced, fit = _store(absmax / qmax, absmax, store)
        zeros, never = np.zeros(np.shape(scale), np.int64), np.zeros(np.shape(scale), bool)
        return fit._replace(params=Params(fit.params, zeros, replaced, never))

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits of a scale."""
        return scale_bits


@dataclass(frozen=True)
class Asymmetric(Uniform):
    """Zero point chosen from the data, under one of three policies.

    widen      the range is widened to hold 0, as in ONNX, TFLite and PyTorch
    clip       the lab's formula, then clipped into the code range (lab 03, pitfalls)
    wide_int   the lab's formula, kept as an int32 that may lie outside the code range
    """

    n_bits: int
    zero_point: ZeroPointPolicy = "widen"
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is out of range or the policy is unknown."""
        code_range(self.n_bits)
        if self.zero_point not in ("widen", "clip", "wide_int"):
            raise ValueError(
                f"mode.zero_point must be widen, clip or wide_int, got {self.zero_point!r}"
            )

    @property
    def keeps_zero(self) -> bool:
        """Whether 0 is always one of the values."""
        return self.zero_point == "widen"

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Map each range onto all the codes.

        Where the range is too narrow for a step, `lo` sits at code 0, as in ONNX Runtime. The zero
        point is counted in steps before they are rounded to float32, also as there; a step that is
        stored in fewer bits counts as it is stored.
        """
        qmin, qmax = code_range(self.n_bits)
        lo, hi = bounds.lo, bounds.hi
        if self.keeps_zero:
            lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
        scale, replaced, fit = _store((hi - lo) / (qmax - qmin), bounds.absmax, store)
        exact = np.where(replaced, 0, qmin) - np.rint(lo / scale)
        low, high = (INT32.min, INT32.max) if self.zero_point == "wide_int" else (qmin, qmax)
        zero_point = np.clip(exact, low, high)
        params = Params(fit.params, zero_point.astype(np.int64), replaced, zero_point != exact)
        return fit._replace(params=params)

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits of a scale and a zero point: an int32, or as wide as a code."""
        return scale_bits + (32 if self.zero_point == "wide_int" else self.n_bits)


def _store(scale: Array64, absmax: Array64, store: Store) -> tuple[Array64, Any, Fit]:
    """Return steps to count in, which of them became 1, and the fit that stores them."""
    replaced = scale < FLOAT32.tiny
    if replaced.any():
        scale = np.where(replaced, 1.0, scale)
    stored = store(scale)
    vanished = stored.vanished
    if replaced.any():
        vanished = vanished | (replaced & (absmax > 0) & (absmax < HALF))
    reduced = stored.scale != scale.astype(np.float32)
    if reduced.any():
        scale = np.where(reduced & (stored.scale > 0), stored.scale, scale)
    return scale, replaced, Fit(stored.scale, stored.saturated, vanished)


Quantizer = Symmetric | Asymmetric
MODES: dict[str, type[Quantizer]] = {"sym": Symmetric, "asym": Asymmetric}


def mode_name(mode: str) -> str:
    """Return what results call a mode: that of the lab by its class, another by its yaml."""
    return MODES[mode].__name__.lower() if mode in MODES else mode


def choose_scale_symmetric(x: ArrayLike, n_bits: int = 8) -> np.float32:
    """Choose the step that maps the largest magnitude of `x` to ``qmax``.

    Raises ValueError when `x` is empty or not finite, or `n_bits` is out of range.

    Examples
    --------
    >>> choose_scale_symmetric(np.array([-3.5, 1.0], np.float32), n_bits=4)
    np.float32(0.5)
    """
    return Symmetric(n_bits).choose(*value_range(x)).scale


def quantize_fp32_to_int8(x: ArrayLike, s: float | np.float32, n_bits: int = 8) -> Codes:
    """Round `x` to whole steps of `s`, halves to even, saturating at the code range.

    Examples
    --------
    >>> quantize_fp32_to_int8(np.array([0.25, 0.75, 99.0], np.float32), 0.5)
    array([  0,   2, 127], dtype=int8)
    """
    return quantize_asym(x, s, 0, n_bits)


def dequantize_int8_to_fp32(q: Codes, s: float | np.float32) -> FloatArray:
    """Return the float32 values of symmetric codes, of the shape of `q`.

    Examples
    --------
    >>> dequantize_int8_to_fp32(np.array([0, 2, 127], np.int8), 0.5)
    array([ 0. ,  1. , 63.5], dtype=float32)
    """
    return dequantize_asym(q, s, 0)


def choose_scale_asymmetric(x: ArrayLike, n_bits: int = 8) -> tuple[np.float32, int]:
    """Choose step and zero point so that the codes span `x` and 0.

    Raises ValueError when `x` is empty or not finite, or `n_bits` is out of range.

    Examples
    --------
    >>> choose_scale_asymmetric(np.array([-1.0, 6.5], np.float32), n_bits=4)
    (np.float32(0.5), -6)
    """
    params = Asymmetric(n_bits).choose(*value_range(x))
    return params.scale, params.zero_point


def quantize_asym(x: ArrayLike, s: float | np.float32, z: int, n_bits: int = 8) -> Codes:
    """Round `x` to whole steps of `s`, halves to even, then add `z` and saturate.

    Examples
    --------
    >>> quantize_asym(np.array([-1.0, 0.0, 6.5], np.float32), 0.5, -6, n_bits=4)
    array([-8, -6,  7], dtype=int8)
    """
    return quantize(x, Params(np.float32(s), z), n_bits)


def dequantize_asym(q: Codes, s: float | np.float32, z: int) -> FloatArray:
    """Return the float32 values of asymmetric codes, of the shape of `q`.

    Examples
    --------
    >>> dequantize_asym(np.array([-8, -6, 7], np.int8), 0.5, -6)
    array([-1. ,  0. ,  6.5], dtype=float32)
    """
    return dequantize(q, Params(np.float32(s), z))
