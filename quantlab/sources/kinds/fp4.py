"""Codes of e2m1, two a byte with the lower half first, in groups of a row that share a scale.

The scale is in fp8, times a scale of the whole tensor (NVFP4), or a power of two (MXFP4).
compressed-tensors divides by its scale of the tensor and rounds to bfloat16, Model-Optimizer
multiplies by its own; DeepSeek keeps the bytes as int8. Experts may be stacked along a first axis.

gpt-oss has experts in MXFP4, ``W = code * 2^(exponent - 127)``. The original has the last two axes
the other way round: ``[experts, columns, rows]``.
"""

from math import prod

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    EXPONENTS,
    FP4,
    Kind,
    MisfitError,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    as_scales,
    exact_ratio,
    take_rows,
    unpack_nibbles,
)

FP8 = ("float8_e4m3fn",)
EXPERT_GROUP = 32  # of gpt-oss


def _decode(parts: Parts) -> StoredTensor:
    import ml_dtypes

    packed, scale = parts["weight"].view(np.uint8), parts["weight_scale"]
    inputs = 2 * packed.shape[-1]
    if packed.ndim < 2 or scale.shape[:-1] != packed.shape[:-1]:
        raise parts.misfit("weight", "weight_scale")
    group = exact_ratio(inputs, scale.shape[-1], parts.misfit("weight", "weight_scale"))
    is_rounded = "weight_global_scale" in parts
    key, rows = _tensor_scale_key(parts), prod(packed.shape[:-1])
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
    shape = (*packed.shape[:-1], inputs)
    return StoredTensor(parts.name, shape, f"{name}, group {group}", parts.stored, decode_rows)


def _tensor_scale_key(parts: Parts) -> str | None:
    """Return the part that is a scale of the tensor, or of each expert; MXFP4 has none."""
    keys = ("weight_global_scale", "weight_scale_2")
    return next((key for key in keys if key in parts), None)


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
    import ml_dtypes

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

    return StoredTensor(
        parts.name,
        (experts, inputs, outputs),
        "MXFP4",
        parts.stored,
        decode_rows,
        rearranged={
            "with the halves of bytes swapped": lambda index: decode_rows(index, low_first=False)
        },
    )


def _has_packed_experts(parts: Parts) -> bool:
    return "scales" in parts or parts["blocks"].dtype == np.uint8


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
KINDS = (
    Kind(PACKED, "weight", _decode, lambda parts: parts["weight"].dtype == np.uint8),
    Kind(SUFFIXED, "weight_scale", _decode, _is_packed, original=""),
    Kind(BESIDE, "weight_scale", _decode, _is_packed),
    Kind(EXPERTS, "blocks", _decode_experts, _has_packed_experts, original=""),
)
