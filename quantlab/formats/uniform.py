"""Uniform affine quantization of float32 tensors: one map, two ways to choose its parameters.

::

    q     = clip(rint(x / scale) + zero_point, qmin, qmax)
    x_hat = float32(q - zero_point) * scale

symmetric    scale = max(|lo|, |hi|) / qmax,     zero_point = 0
asymmetric   scale = (hi - lo) / (qmax - qmin),  zero_point = qmin - rint(lo / scale)

``[lo, hi]`` is the range of the data and nothing else: no clipping of outliers, no calibration.
Scale and zero point are per tensor, chosen in float64 and rounded to float32 once. The round trip
is float32 with a true division and halves rounded to even, so the codes equal those of ONNX
``QuantizeLinear`` (opset 21) bit for bit. Its compiled twin is `stats.kernel.round_to_step`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from quantlab.formats import scales
from quantlab.formats.element import (
    BlockParams,
    Bounds,
    Codes,
    CompiledGrid,
    Element,
    FloatArray,
    GridKind,
    Quantized,
    RoundScale,
    code_dtype,
    divide_by_scale,
    mask_or_none,
    multiply_by_scale,
)
from quantlab.formats.scales import Array64

ZeroPointPolicy = Literal["widen", "clip", "wide_int"]

FLOAT32 = np.finfo(np.float32)
INT32 = np.iinfo(np.int32)
HALF_STEP = 0.5  # of a step of 1: smaller values come back as 0


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
        raise empty_error(name, x.shape)
    lo, hi = float(x.min()), float(x.max())
    if not np.isfinite([lo, hi]).all():
        places = np.argwhere(~np.isfinite(x))
        index = places[0].tolist()
        raise not_finite_error(name, len(places), x.size, x[tuple(index)], index)
    return lo, hi


def empty_error(name: str, shape: tuple[int, ...]) -> ValueError:
    """Make the error of a tensor without elements."""
    return ValueError(f"tensor '{name}' is empty (shape {shape}): there is nothing to quantize")


def not_finite_error(name: str, count: int, size: int, first: Any, index: list[int]) -> ValueError:
    """Make the error of a tensor of which `count` values are no finite float32.

    `first` is the first offending value as stored; whether it is finite decides which message is
    shown.
    """
    beyond = np.isfinite(first)
    fault = "values beyond float32" if beyond else "NaN or Inf"
    cure = "rescale them" if beyond else "mend or drop them"
    if size == 1:
        return ValueError(f"tensor '{name}' is {first}{', beyond float32' * bool(beyond)}")
    return ValueError(
        f"tensor '{name}' holds {count} {fault} among its {size} values, "
        f"the first ({first}) at index {index}: {cure} before quantizing"
    )


class Params(NamedTuple):
    """Scale and zero point of a block or many.

    `scale_replaced`: the step fell below the smallest normal float32 and became 1, as in
    ONNX Runtime. `zero_point_clipped`: the zero point did not fit and saturated.
    """

    scale: Any  # a float32, or an array of them
    zero_point: Any  # an int, or an array
    scale_replaced: Any = False
    zero_point_clipped: Any = False


def unclipped_codes(x: ArrayLike, params: Params) -> FloatArray:
    """Return ``rint(x / scale) + zero_point`` as float32, before saturation.

    Exact while ``|zero_point| < 2**24``, which only ``wide_int`` can leave.
    """
    steps = np.rint(divide_by_scale(np.asarray(x, dtype=np.float32), params.scale))
    return steps + np.float32(params.zero_point) if np.any(params.zero_point) else steps


def quantize(x: ArrayLike, params: Params, n_bits: int) -> Codes:
    """Return the codes of `x`, of its shape: int8 up to 8 bits, int16 above."""
    codes: Codes = np.clip(unclipped_codes(x, params), *code_range(n_bits)).astype(
        code_dtype(n_bits)
    )
    return codes


def dequantize(q: Codes | FloatArray, params: Params) -> FloatArray:
    """Return the float32 values that codes of any type stand for, of the shape of `q`.

    A code whose value lies beyond the float32 range gives its largest finite value, not inf.
    """
    steps = np.asarray(q, np.float32) - np.float32(params.zero_point)
    # An array of no dimensions has become a scalar, which cannot be multiplied in place.
    largest = 2.0**16 + float(np.max(np.abs(params.zero_point)))
    return multiply_by_scale(np.asarray(steps), params.scale, largest)


def scalar_params(params: Params) -> Params:
    """Return the parameters of one block, arrays of one entry, as scalars."""
    scale, zero_point, replaced, clipped = (np.ravel(field)[0] for field in params)
    return Params(np.float32(scale), int(zero_point), bool(replaced), bool(clipped))


class Uniform(Element):
    """The affine map; subclasses choose its parameters.

    A step below float32's smallest normal becomes 1.
    """

    def choose(self, lo: float, hi: float) -> Params:
        """Choose the parameters of one block with the range [lo, hi]."""
        bounds = Bounds(np.float64(lo), np.float64(hi), np.float64(np.inf))
        return scalar_params(self.fit(bounds, scales.FLOAT32.store).params)

    def round_trip(self, x: FloatArray, params: Params) -> Quantized:
        """Take values to codes and back, bit for bit as `quantize` and `dequantize` do."""
        unclipped = unclipped_codes(x, params)
        q = np.clip(unclipped, *code_range(self.n_bits))
        clipped = mask_or_none(unclipped != q)
        return Quantized(q.astype(code_dtype(self.n_bits)), dequantize(q, params), clipped)

    def reconstruct(self, x: FloatArray, params: Params) -> FloatArray:
        """Reconstruct values."""
        q = unclipped_codes(x, params)
        return dequantize(np.clip(q, *code_range(self.n_bits), out=q), params)

    def compiled_grid(self) -> CompiledGrid:
        """Return the grid of `kernel.round_to_step`."""
        return CompiledGrid(GridKind.UNIFORM, self.n_bits, code_range(self.n_bits)[1])


@dataclass(frozen=True)
class Symmetric(Uniform):
    """Zero point 0; the code ``qmin`` stays unused."""

    n_bits: int
    scales_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError when `n_bits` is out of range."""
        code_range(self.n_bits)

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Map the larger magnitude of each range to ``qmax``."""
        _, qmax = code_range(self.n_bits)
        absmax = bounds.absmax
        scale, replaced, stored = _store(absmax / qmax, absmax, store)
        zeros, never = np.zeros(np.shape(scale), np.int64), np.zeros(np.shape(scale), bool)
        return stored._replace(params=Params(stored.params, zeros, replaced, never))


@dataclass(frozen=True)
class GptqSymmetric(Symmetric):
    """Zero point 0, and no code stays unused: the symmetric grid of GPTQModel.

    ``scale = 2 max|x| / (2^n - 1)``: the range ends half a step beyond the codes. Source:
    ``Quantizer.find_params`` of GPTQModel 7.3.4, which halves the scale of a block that has no
    negative value, so that it saturates; that is left out. Its asymmetric grid is `Asymmetric`.
    """

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Map the larger magnitude of each range to half a step beyond the largest code."""
        qmin, qmax = code_range(self.n_bits)
        absmax = bounds.absmax * (2 * qmax / (qmax - qmin))
        return super().fit(Bounds(-absmax, absmax, bounds.min_magnitude), store)


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

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Map each range onto all the codes.

        Where the range is too narrow for a step, `lo` sits at code 0, as in ONNX Runtime. The zero
        point is counted in steps before they are rounded to float32, also as there; a step that is
        stored in fewer bits counts as it is stored.
        """
        qmin, qmax = code_range(self.n_bits)
        lo, hi = bounds.lo, bounds.hi
        if self.zero_point == "widen":
            lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
        scale, replaced, stored = _store((hi - lo) / (qmax - qmin), bounds.absmax, store)
        exact = np.where(replaced, 0, qmin) - np.rint(lo / scale)
        low, high = (INT32.min, INT32.max) if self.zero_point == "wide_int" else (qmin, qmax)
        zero_point = np.clip(exact, low, high)
        params = Params(stored.params, zero_point.astype(np.int64), replaced, zero_point != exact)
        return stored._replace(params=params)

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits of a scale and a zero point: an int32, or as wide as a code."""
        return scale_bits + (32 if self.zero_point == "wide_int" else self.n_bits)


def _store(scale: Array64, absmax: Array64, store: RoundScale) -> tuple[Array64, Any, BlockParams]:
    """Store steps; return those that zero points count in, which became 1, and the stored ones."""
    replaced = scale < FLOAT32.tiny
    if replaced.any():
        scale = np.where(replaced, 1.0, scale)
    stored = store(scale)
    vanished = stored.vanished
    if replaced.any():
        vanished = vanished | (replaced & (absmax > 0) & (absmax < HALF_STEP))
    reduced = stored.scale != scale.astype(np.float32)
    if reduced.any():
        scale = np.where(reduced & (stored.scale > 0), stored.scale, scale)
    return scale, replaced, BlockParams(stored.scale, stored.saturated, vanished)


Quantizer = Symmetric | Asymmetric
MODES: dict[str, type[Quantizer]] = {"sym": Symmetric, "asym": Asymmetric}


def mode_name(mode: str) -> str:
    """Return the name of a mode in results: of the lab's the class, of others the yaml."""
    return MODES[mode].__name__.lower() if mode in MODES else mode
