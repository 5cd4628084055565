"""compressed-tensors, packed: codes along the inputs, plus half their range, lowest bits first.

``W = (q - 2^(bits-1) - z) * scale``; without zero points z is 0. In nvfp4 two e2m1 codes share a
byte, and ``W = code * (scale / global_scale)`` in bfloat16. Other values are rounded to the type of
the scale.
"""

from collections.abc import Iterator
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
    MisfitError,
    StoredTensor,
    Tensors,
    Which,
    bases,
    contradiction,
    guarded,
    nibbles,
    parts_of,
    require_parts,
    take,
    unpack,
    whole,
    words_of,
)
from quantlab.sources.tensor import Tensor

METHODS = ("compressed-tensors",)
KEYS = (
    "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
    "weight_global_scale",
)  # fmt: skip


def find(tensors: Tensors, config: Config) -> Iterator[StoredTensor]:
    """Yield the tensors whose weight is packed."""
    for base in bases(tensors, ".weight_packed"):
        parts = parts_of(tensors, base, KEYS)
        four = parts["weight_packed"].dtype == "uint8"
        yield guarded(f"{base}.weight", parts, _nvfp4 if four else _stored, config)


def _stored(name: str, parts: dict[str, Tensor], config: Config) -> StoredTensor:
    packed, scale, shape = require_parts(
        parts, weight_packed=WORDS, weight_scale=FLOATS, weight_shape=INTEGERS
    )
    if shape.size != 2 or packed.ndim != 2 or scale.ndim != 2:
        raise MisfitError(f"has words of {list(packed.shape)} and a shape of {shape.size} numbers")
    outputs, inputs = (int(each) for each in shape.reshape(-1))
    found = (
        f"words of {list(packed.shape)} and scales of {list(scale.shape)} for the shape "
        f"{[outputs, inputs]}"
    )
    bits = 32 * packed.shape[1] // inputs if inputs > 0 else 0
    if outputs != len(packed) or outputs != len(scale) or not 2 <= bits <= 8:
        raise MisfitError(f"has {found}, which do not fit")
    if -(-inputs * bits // 32) != packed.shape[1]:
        raise MisfitError(f"has {found}, which do not fit")
    group = whole(inputs, scale.shape[1], found)
    of = _groups(parts, inputs, group)
    half = 2 ** (bits - 1)

    def rows(which: Which) -> FloatArray:
        codes = unpack(take(packed, which), bits, inputs) - half
        zeros = _zeros(parts, which, bits, scale.shape)
        values = (codes - zeros[:, of]).astype(scale.dtype) * take(scale, which)[:, of]
        return values.astype(np.float32)

    return StoredTensor(
        name,
        (outputs, inputs),
        f"compressed-tensors {bits} bits, "
        + (f"group {group}" if scale.shape[1] > 1 else "per channel"),
        tuple(parts.values()),
        rows,
        remark=contradiction(
            _weights(config),
            num_bits=bits,
            **({"group_size": group} if scale.shape[1] > 1 else {}),
        ),
    )


def _groups(parts: dict[str, Tensor], inputs: int, group: int) -> NDArray[Any]:
    """Return the group of each input."""
    if "weight_g_idx" not in parts:
        return np.arange(inputs) // group
    (of,) = require_parts(parts, weight_g_idx=INTEGERS)
    if of.shape != (inputs,) or int(of.min()) < 0 or int(of.max()) >= inputs // group:
        raise MisfitError(f"has a weight_g_idx of {list(of.shape)} that names no group")
    return of


def _zeros(
    parts: dict[str, Tensor], which: Which, bits: int, scales: tuple[int, ...]
) -> NDArray[Any]:
    """Return the zero points of some rows, ``(rows, groups)``; they may be packed along rows."""
    if "weight_zero_point" not in parts:
        return np.zeros((which.size, scales[1]), np.int32)
    (zeros,) = require_parts(parts, weight_zero_point=("int8", *WORDS))
    if zeros.shape == scales:
        return take(zeros, which).astype(np.int32)
    if zeros.dtype != np.int32 or zeros.shape != (-(-scales[0] * bits // 32), scales[1]):
        raise MisfitError(f"has zero points of {list(zeros.shape)} beside scales of {list(scales)}")
    words, first = words_of(zeros.T, bits, which)
    codes = unpack(words, bits, words.shape[1] * 32 // bits)
    return codes.T[which - first] - 2 ** (bits - 1)


def _weights(config: Config) -> Config:
    """Return what the first group of the config says of weights."""
    groups = config.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}


def _nvfp4(name: str, parts: dict[str, Tensor], _: Config) -> StoredTensor:
    import ml_dtypes

    packed, scale, whole_scale = require_parts(
        parts,
        weight_packed=BYTES,
        weight_scale=("float8_e4m3fn",),
        weight_global_scale=("float32",),
    )
    if packed.ndim != 2 or scale.ndim != 2 or len(scale) != len(packed) or whole_scale.size != 1:
        raise MisfitError(f"has bytes of {list(packed.shape)} and scales of {list(scale.shape)}")
    if not whole_scale.reshape(-1)[0] > 0:
        raise MisfitError(f"has a weight_global_scale of {whole_scale.reshape(-1)[0]}")
    inputs = 2 * packed.shape[1]
    group = whole(inputs, scale.shape[1], f"rows of {inputs} and {scale.shape[1]} scales")
    tensor_scale = np.float32(whole_scale.reshape(-1)[0])

    def rows(which: Which) -> FloatArray:
        values = FP4[nibbles(take(packed, which))].reshape(len(which), -1, group)
        scales = take(scale, which).astype(np.float32) / tensor_scale
        rounded = (values * scales[..., None]).astype(ml_dtypes.bfloat16)
        return rounded.reshape(len(which), inputs).astype(np.float32)

    dtype = f"nvfp4, group {group}"
    return StoredTensor(name, (len(packed), inputs), dtype, tuple(parts.values()), rows)
