"""compressed-tensors, packed: codes along the inputs, plus half their range, lowest bits first.

``W = (q - 2^(bits-1) - z) * scale``; without zero points z is 0. In nvfp4 two e2m1 codes share a
byte, and ``W = code * (scale / global_scale)`` in bfloat16. Other values are rounded to the type of
the scale.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    FLOATS,
    FP4,
    INTEGERS,
    WORDS,
    Config,
    Kind,
    MisfitError,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    config_contradiction,
    exact_ratio,
    group_index,
    slice_words,
    take_rows,
    unpack_codes,
    unpack_nibbles,
)

METHODS = ("compressed-tensors",)


def _decode_packed(parts: Parts) -> StoredTensor:
    packed, scale, shape = parts["weight_packed"], parts["weight_scale"], parts["weight_shape"]
    if shape.size != 2:
        raise MisfitError(f"has a weight_shape of {shape.size} numbers, where 2 belong")
    outputs, inputs = (int(n) for n in shape.reshape(-1))
    misfit = parts.misfit("weight_packed", "weight_scale", beside=f"the shape {[outputs, inputs]}")
    bits = 32 * packed.shape[1] // inputs if inputs > 0 else 0
    if outputs != len(packed) or outputs != len(scale) or not 2 <= bits <= 8:
        raise misfit
    if -(-inputs * bits // 32) != packed.shape[1]:
        raise misfit
    groups = scale.shape[1]
    group = exact_ratio(inputs, groups, misfit)
    group_of = group_index(parts, "weight_g_idx", inputs, groups)

    def decode_rows(index: RowIndex) -> FloatArray:
        codes = unpack_codes(take_rows(packed, index), bits, inputs) - 2 ** (bits - 1)
        zeros = _unpack_zeros(parts, index, bits, scale.shape)[:, group_of]
        values = (codes - zeros).astype(scale.dtype) * take_rows(scale, index)[:, group_of]
        return values.astype(np.float32)

    stated = {"num_bits": bits} | ({"group_size": group} if groups > 1 else {})
    return StoredTensor(
        parts.name,
        (outputs, inputs),
        f"compressed-tensors {bits} bits, {f'group {group}' if groups > 1 else 'per channel'}",
        parts.stored,
        decode_rows,
        remark=config_contradiction(_weight_settings(parts.config), **stated),
    )


def _unpack_zeros(parts: Parts, index: RowIndex, bits: int, scales: tuple[int, ...]) -> Any:
    """Return the zero points of rows, ``(rows, groups)``; they may be packed along rows."""
    if "weight_zero_point" not in parts:
        return np.zeros((index.size, scales[1]), np.int32)
    zeros: NDArray[Any] = parts["weight_zero_point"]
    if zeros.shape == scales:
        return take_rows(zeros, index).astype(np.int32)
    if zeros.dtype != np.int32 or zeros.shape != (-(-scales[0] * bits // 32), scales[1]):
        raise parts.misfit("weight_zero_point", "weight_scale")
    words, first = slice_words(zeros.T, bits, index)
    codes = unpack_codes(words, bits, words.shape[1] * 32 // bits)
    return codes.T[index - first] - 2 ** (bits - 1)


def _weight_settings(config: Config) -> Config:
    """Return the settings of weights in the first group of the config."""
    groups = config.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}


def _decode_nvfp4(parts: Parts) -> StoredTensor:
    import ml_dtypes

    packed, scale, global_scale = (
        parts[key] for key in ("weight_packed", "weight_scale", "weight_global_scale")
    )
    if len(scale) != len(packed) or global_scale.size != 1:
        raise parts.misfit()
    tensor_scale = np.float32(global_scale.reshape(-1)[0])
    if not tensor_scale > 0:
        raise MisfitError(f"has a weight_global_scale of {tensor_scale}")
    inputs = 2 * packed.shape[1]
    group = exact_ratio(inputs, scale.shape[1], parts.misfit())

    def decode_rows(index: RowIndex) -> FloatArray:
        values = FP4[unpack_nibbles(take_rows(packed, index))].reshape(len(index), -1, group)
        scales = take_rows(scale, index).astype(np.float32) / tensor_scale
        rounded = (values * scales[..., None]).astype(ml_dtypes.bfloat16)
        return rounded.reshape(len(index), inputs).astype(np.float32)

    shape = len(packed), inputs
    return StoredTensor(parts.name, shape, f"nvfp4, group {group}", parts.stored, decode_rows)


PACKED = {
    "weight_packed": Part(".weight_packed", WORDS, ndim=2),
    "weight_scale": Part(".weight_scale", FLOATS, ndim=2),
    "weight_zero_point": Part(".weight_zero_point", ("int8", *WORDS), is_optional=True),
    "weight_shape": Part(".weight_shape", INTEGERS),
    "weight_g_idx": Part(".weight_g_idx", INTEGERS, is_optional=True),
}
NVFP4 = {
    "weight_packed": Part(".weight_packed", BYTES, ndim=2),
    "weight_scale": Part(".weight_scale", ("float8_e4m3fn",), ndim=2),
    "weight_global_scale": Part(".weight_global_scale", ("float32",)),
}
KINDS = (
    Kind(NVFP4, "weight_packed", _decode_nvfp4, lambda p: p["weight_packed"].dtype == np.uint8),
    Kind(PACKED, "weight_packed", _decode_packed),
)
