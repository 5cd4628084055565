"""Small floats that share bytes: e2m1, two a byte with the lower half first, others, and levels.

Groups of a row share a scale in fp8, times a scale of the whole tensor (NVFP4), or a power of two
(MXFP4). compressed-tensors divides by its scale of the tensor and rounds to bfloat16,
Model-Optimizer multiplies by its own; DeepSeek keeps the bytes as int8. Experts may be stacked
along a first axis.

gpt-oss has experts in MXFP4, ``W = code * 2^(exponent - 127)``. The original has the last two axes
the other way round: ``[experts, columns, rows]``.

safetensors has types of its own for such values, F4, F6_E2M3 and F6_E3M2: ``W = value * scale *
scale_2``, one scale, one a row, or one a group of a row, in fp8, floats or exponents of powers of
two, and one of the whole tensor. Without scales the values stand alone.

bitsandbytes in 4 bits has levels of a table times the largest magnitude of a block, two a byte, the
first in the high half. Nested, the magnitudes are codes themselves: ``absmax =
nested_quant_map[absmax] * nested_absmax + nested_offset``.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.file import MappedArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    EXPONENTS,
    FLOATS,
    FP4,
    Kind,
    MisfitError,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    as_scales,
    compute_dtype,
    exact_ratio,
    row_width,
    rows_of,
    take_rows,
    unpack_codes,
    unpack_nibbles,
)
from quantlab.sources.tensor import Tensor, map_values
from quantlab.text import label

FP8 = ("float8_e4m3fn",)
EXPERT_GROUP = 32  # of gpt-oss
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # of the types of safetensors
VALUES = {  # of their codes
    "F4": FP4,
    "F6_E2M3": np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e2m3fn).astype(np.float32),
    "F6_E3M2": np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e3m2fn).astype(np.float32),
}
CODES_A_STRIDE = 4  # the fewest whose bits fill bytes
MAX_STATE_BYTES = 2**16  # of bitsandbytes
BlockMagnitudes = Callable[[RowIndex], NDArray[np.float32]]  # by the numbers of blocks


def _decode(parts: Parts) -> StoredTensor:
    packed, scale = parts["weight"].view(np.uint8), parts["weight_scale"]
    inputs = 2 * packed.shape[-1]
    if packed.ndim < 2 or scale.shape[:-1] != packed.shape[:-1]:
        raise parts.misfit("weight", "weight_scale")
    group = exact_ratio(inputs, scale.shape[-1], parts.misfit("weight", "weight_scale"))
    is_rounded = "weight_global_scale" in parts
    # Of the tensor, or of each expert; MXFP4 has none.
    key = next((k for k in ("weight_global_scale", "weight_scale_2") if k in parts), None)
    rows = prod(packed.shape[:-1])
    if key is None and parts.dtype("weight_scale") in FP8:
        raise MisfitError("has no weight_global_scale and no weight_scale_2")
    if key and parts[key].size not in (1, packed.shape[0]):
        raise parts.misfit("weight", key)
    codes, scales = (array.reshape(-1, array.shape[-1]) for array in (packed, scale))

    def decode_rows(index: RowIndex) -> FloatArray:
        values = FP4[unpack_nibbles(take_rows(codes, index))].reshape(len(index), -1, group)
        of_groups = as_scales(take_rows(scales, index)).astype(np.float32)
        if key:
            factors = parts[key].astype(np.float32).reshape(-1)
            if not (factors > 0).all():
                raise MisfitError(f"has a {key} of {factors.min()}")
            factors = factors[index // (rows // factors.size), None]
            of_groups = of_groups / factors if is_rounded else of_groups * factors
        values = values * of_groups[..., None]
        if is_rounded:
            values = values.astype(ml_dtypes.bfloat16)
        return values.reshape(len(index), inputs).astype(np.float32)

    name = "nvfp4" if parts.dtype("weight_scale") in FP8 else "mxfp4"
    return parts.weight((*packed.shape[:-1], inputs), f"{name}, group {group}", decode_rows)


def _is_packed(parts: Parts) -> bool:
    """Test for two codes a byte: int8 weights have scales of another type."""
    if "weight" not in parts or "weight_scale" not in parts:
        return False
    packed, scale = parts["weight"], parts["weight_scale"]
    if packed.dtype == np.uint8:
        return True
    return (
        parts.dtype("weight_scale") == "float8_e8m0fnu" and scale.shape[-1] * 16 == packed.shape[-1]
    )


def _decode_experts(parts: Parts) -> StoredTensor:
    blocks, scales = parts["blocks"], parts["scales"]
    if (
        blocks.ndim != 4
        or blocks.shape[-1] != EXPERT_GROUP // 2
        or scales.shape != blocks.shape[:-1]
    ):
        raise parts.misfit()
    experts, outputs, groups, _ = blocks.shape
    inputs = groups * EXPERT_GROUP

    def decode_rows(index: RowIndex, *, low_first: bool = True) -> FloatArray:
        expert, column = index // inputs, index % inputs
        block, place = column // EXPERT_GROUP, column % EXPERT_GROUP
        octets = blocks[expert, :, block, place // 2]
        is_low = (place % 2 == 0) == low_first
        codes = np.where(is_low[:, None], octets & 15, octets >> 4)
        powers = scales[expert, :, block].view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        return FP4[codes] * powers

    return parts.weight(
        (experts, inputs, outputs),
        "MXFP4",
        decode_rows,
        rearranged={
            "with the halves of bytes swapped": lambda index: decode_rows(index, low_first=False)
        },
    )


def _has_packed_experts(parts: Parts) -> bool:
    return "scales" in parts or parts["blocks"].dtype == np.uint8


@dataclass(frozen=True)
class PackedTensor(Tensor):
    """Bytes that hold values of a type of safetensors, in a shape of values."""

    kind: str = field(kw_only=True)
    value_shape: Shape = field(kw_only=True)

    @classmethod
    def of(cls, array: MappedArray) -> "PackedTensor":
        """Map the bytes of an array."""
        octets = map_values(array.name, np.uint8, (array.n_bytes,), array.file, array.offset)
        state = octets.state
        return cls(array.name, octets.array, state, kind=array.kind, value_shape=array.shape)


def _has_typed(parts: Parts) -> bool:
    return isinstance(parts.tensors["weight"], PackedTensor)


def _decode_typed(parts: Parts) -> StoredTensor:
    weight = parts.tensors["weight"]
    assert isinstance(weight, PackedTensor)
    shape, levels, bits = weight.value_shape, VALUES[weight.kind], BITS[weight.kind]
    octets, size = weight.array, prod(shape)
    width = row_width(shape)
    scale, group = _group_scales(parts, shape)
    if "scale_2" in parts and parts["scale_2"].size != 1:
        raise parts.misfit("weight", "scale_2")

    def read_elements(start: int, stop: int) -> FloatArray:
        first = start // CODES_A_STRIDE * CODES_A_STRIDE
        last = min(-(-stop // CODES_A_STRIDE) * CODES_A_STRIDE, size)
        part = octets[first * bits // 8 : -(-last * bits // 8)]
        codes = unpack_codes(part[None], bits, last - first)[0, start - first : stop - first]
        if scale is None:
            return levels[codes]
        factors = as_scales(scale)[start // group : -(-stop // group)].astype(np.float32)
        if "scale_2" in parts:
            factors = factors * parts["scale_2"].reshape(-1).astype(np.float32)
        return levels[codes] * factors[np.arange(start, stop) // group - start // group]

    sharing = f", group {group}" if scale is not None and group < width else ""
    dtype, decode_rows = f"{weight.kind.lower()}{sharing}", rows_of(read_elements, width)
    return parts.weight(shape, dtype, decode_rows, read_elements=read_elements)


def _group_scales(parts: Parts, shape: Shape) -> tuple[NDArray[Any] | None, int]:
    """Return the scales in C order, and how many values share one; raises MisfitError."""
    scale = parts.get("scale")
    if scale is None or not scale.size:
        return None, 1
    misfit = parts.misfit("weight", "scale", beside=f"the shape {list(shape)}")
    group = exact_ratio(prod(shape), scale.size, misfit)
    if scale.size > 1 and row_width(shape) % group:
        raise misfit
    return scale.reshape(-1), group


def _read_state(parts: Parts) -> dict[str, Any]:
    """Return the state; raises MisfitError where it gives no shape and block size."""
    array = parts["state"]
    try:
        if array.nbytes > MAX_STATE_BYTES:
            raise ValueError("it is too long")
        state = json.loads(array.tobytes())
        shape = tuple(state["shape"])
        numbers = (state["blocksize"], state.get("nested_blocksize", 256), *shape)
        if not all(type(n) is int and 0 < n < 2**63 for n in numbers) or not shape:
            raise ValueError("its numbers are impossible")
        if not math.isfinite(float(state.get("nested_offset", 0))):
            raise ValueError("its offset is impossible")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as reason:
        raise MisfitError(f"has a quant_state that cannot be read ({reason})") from None
    return dict(state) | {"shape": shape}


def _decode_levels(parts: Parts) -> StoredTensor:
    state = _read_state(parts)
    shape, block = state["shape"], state["blocksize"]
    size, codes = prod(shape), parts["weight"].reshape(-1).view(np.uint8)
    absmax = _block_magnitudes(parts, state, -(-size // block))
    levels = parts["quant_map"].reshape(-1).astype(np.float32)
    if codes.size != -(-size // 2):
        raise MisfitError(f"has {codes.size} bytes of codes for the shape {list(shape)}")
    if levels.size != 16:
        raise MisfitError(f"has a quant_map of {levels.size} levels, where 16 belong")
    rounded, width = compute_dtype(state.get("dtype")), row_width(shape)

    def decode(places: RowIndex, *, high_first: bool = True) -> FloatArray:
        octets, is_odd = codes[places // 2], places % 2 == 1
        values = levels[np.where(is_odd == high_first, octets & 15, octets >> 4)]
        return (values * absmax(places // block)).astype(rounded).astype(np.float32)

    def decode_rows(index: RowIndex, *, high_first: bool = True) -> FloatArray:
        return decode(index[:, None] * width + np.arange(width), high_first=high_first)

    nested = ", nested" if "nested_absmax" in parts else ""
    return parts.weight(
        shape,
        f"bitsandbytes {label(str(state.get('quant_type', '4 bits')))}, block {block}{nested}",
        decode_rows,
        read_elements=lambda start, stop: decode(np.arange(start, stop)),
        rearranged={
            "with the halves of bytes swapped": lambda index: decode_rows(index, high_first=False)
        },
    )


def _block_magnitudes(parts: Parts, state: dict[str, Any], n: int) -> BlockMagnitudes:
    """Return a function that computes the magnitudes of blocks, of `n` in all."""
    absmax = parts["absmax"].reshape(-1)
    if absmax.size != n:
        raise MisfitError(f"has {absmax.size} magnitudes for {n} blocks")
    if absmax.dtype != np.uint8 and "nested_absmax" in parts:
        raise MisfitError(f"has nested magnitudes of {absmax.dtype}, where uint8 belongs")
    if absmax.dtype != np.uint8:
        return lambda blocks: absmax[blocks].astype(np.float32)
    table, outer = parts["nested_quant_map"].reshape(-1), parts["nested_absmax"].reshape(-1)
    block, offset = state.get("nested_blocksize", 256), np.float32(state.get("nested_offset", 0))
    if table.size != 256 or outer.size != -(-n // block):
        raise MisfitError("has nested magnitudes that do not fit")
    return lambda blocks: table[absmax[blocks]] * outer[blocks // block] + offset


SCALES = (*FP8, *EXPONENTS)
PACKED = {
    "weight": Part(".weight_packed", BYTES),
    "weight_scale": Part(".weight_scale", SCALES),
    "weight_global_scale": Part(".weight_global_scale", ("float32",), is_optional=True),
}
SUFFIXED = {  # what comes after the whole name of the weight
    "weight": Part("", (*BYTES, "int8")),
    "weight_scale": Part(("_scale", "_weight_scale"), SCALES),
    "weight_scale_2": Part(("_scale_2", "_weight_scale_2"), ("float32",), is_optional=True),
}
BESIDE = {
    "weight": Part(".weight", (*BYTES, "int8")),
    "weight_scale": Part(".scale", EXPONENTS),
}
EXPERTS = {"blocks": Part("_blocks", BYTES), "scales": Part("_scales", BYTES)}
TYPED_SCALES = (*FLOATS, *EXPONENTS, *FP8, "float8_e5m2")
TYPED = {
    "weight": Part(""),
    "scale": Part(("_scale", "_scale_inv"), TYPED_SCALES, is_optional=True),
    "scale_2": Part("_scale_2", TYPED_SCALES, is_optional=True),
}
TYPED_BESIDE = {  # of one called weight they may be those of its layer
    "weight": Part(".weight"),
    "scale": Part(
        (".weight_scale", ".weight_scale_inv", ".scale", ".scale_inv"),
        TYPED_SCALES,
        is_optional=True,
    ),
    "scale_2": Part((".weight_scale_2", ".scale_2"), TYPED_SCALES, is_optional=True),
}
STATE = ".quant_state.bitsandbytes__"
LEVELS = {
    "absmax": Part(".absmax", (*BYTES, *FLOATS)),
    "quant_map": Part(".quant_map", FLOATS),
    "nested_absmax": Part(".nested_absmax", FLOATS, is_optional=True),
    "nested_quant_map": Part(".nested_quant_map", FLOATS, is_optional=True),
    "state": Part((f"{STATE}nf4", f"{STATE}fp4")),
    # Packed bytes may be stored under any dtype (bnb_4bit_quant_storage).
    "weight": Part("", (*BYTES, "int8", *FLOATS)),
}
KINDS = (
    Kind(TYPED_BESIDE, "weight", _decode_typed, _has_typed),
    Kind(TYPED, "weight", _decode_typed, _has_typed, original=""),
    Kind(PACKED, "weight", _decode, lambda parts: parts["weight"].dtype == np.uint8),
    Kind(SUFFIXED, "weight_scale", _decode, _is_packed, original=""),
    Kind(BESIDE, "weight_scale", _decode, _is_packed),
    Kind(EXPERTS, "blocks", _decode_experts, _has_packed_experts, original=""),
    Kind(LEVELS, "state", _decode_levels, original=""),
)
