"""compressed-tensors, packed: codes along the inputs, plus half their range, lowest bits first.

``W = (q - 2^(bits-1) - z) * scale``; without zero points z is 0. Values are rounded to the type of
the scale. Its fp4 is in ``fp4.py``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
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
    group_index,
    largest_group,
    multiply,
    slice_words,
    take_rows,
    unpack_codes,
)


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
    if not groups:
        raise misfit
    group = largest_group(parts, "weight_g_idx", inputs, groups)

    def decode_rows(index: RowIndex) -> FloatArray:
        group_of = group_index(parts, "weight_g_idx", inputs, groups)
        codes = unpack_codes(take_rows(packed, index), bits, inputs) - 2 ** (bits - 1)
        zeros = _unpack_zeros(parts, index, bits, scale.shape)[:, group_of]
        return multiply(codes - zeros, take_rows(scale, index)[:, group_of])

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


PACKED = {
    "weight_packed": Part(".weight_packed", WORDS, ndim=2),
    "weight_scale": Part(".weight_scale", FLOATS, ndim=2),
    "weight_zero_point": Part(".weight_zero_point", ("int8", *WORDS), is_optional=True),
    "weight_shape": Part(".weight_shape", INTEGERS),
    "weight_g_idx": Part(".weight_g_idx", INTEGERS, is_optional=True),
}
KINDS = (Kind(PACKED, "weight_packed", _decode_packed),)
