"""torchao: the parts of a tensor subclass, ``MODULE._weight_qdata`` and so on.

The metadata of the file name, for each weight, the class, the blocks that share a scale, and the
type that is computed in::

    IntxUnpackedToInt8Tensor, Int8Tensor    W = (q - zero_point) * scale
    Float8Tensor                            W = q * scale
    Int4Tensor                              W = q * scale + zero_point, q from -8 to 7

Int4Tensor packs two codes a byte, the lower half first; its scales and zero points are
``[groups, outputs]``. Where there is an ``act_pre_scale``, inputs are multiplied by it first.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
    Config,
    MisfitError,
    Parts,
    RowIndex,
    StoredTensor,
    compute_dtype,
    decode_or_fault,
    exact_ratio,
    take_rows,
    unpack_nibbles,
)
from quantlab.sources.tensor import Tensor
from quantlab.text import label

CODES = "_qdata"
KEYS = ("qdata", "scale", "zero_point", "scale_and_zero", "act_pre_scale")
AFFINE = ("IntxUnpackedToInt8Tensor", "Int8Tensor", "Float8Tensor")
CODE_TYPES = ("int8", "float8_e4m3fn", "float8_e5m2")


def parse_metadata(metadata: Mapping[str, Any]) -> Config:
    """Return what the metadata of a file say of each weight."""
    parsed = {}
    for name, text in metadata.items():
        with suppress(ValueError, TypeError, RecursionError):
            about = json.loads(text)
            if isinstance(about, dict):
                parsed[name] = about
    return parsed


class TorchaoKind:
    """Weights whose parts the metadata of their file describe."""

    def find(self, tensors: Mapping[str, Tensor], config: Config) -> Iterator[StoredTensor]:
        """Yield the weights of this kind, decoded, or with the fault that they have."""
        metadata = config.get("torchao", {})
        for codes in tensors:
            module, dot, weight = codes.removesuffix(CODES).rpartition("._")
            name = f"{module}.{weight}"
            if dot and codes.endswith(CODES):
                stem = codes.removesuffix("qdata")
                parts = {key: tensors[f"{stem}{key}"] for key in KEYS if f"{stem}{key}" in tensors}
                yield decode_or_fault(Parts(name, parts, metadata.get(name, {})), _decode)


def _decode(parts: Parts) -> StoredTensor:
    kind = parts.config.get("_type")
    if kind is None:
        raise MisfitError("has no class in the metadata of its file, where torchao writes it")
    if kind == "Int4Tensor":
        return _decode_int4(parts)
    if kind in AFFINE:
        return _decode_affine(parts)
    raise MisfitError(f"is a {label(str(kind))} of torchao, which is not decoded")


def _decode_affine(parts: Parts) -> StoredTensor:
    """Decode codes of a byte each, in blocks of any shape."""
    parts.require("qdata", CODE_TYPES)
    parts.require("scale", FLOATS)
    codes, scale, zero_point = parts["qdata"], parts["scale"], parts.get("zero_point")
    is_float = codes.dtype != np.int8
    computed = np.dtype(np.float32) if is_float else _compute_dtype(parts)
    sizes = _block_sizes(parts)
    scales = scale.reshape([n // size for n, size in zip(codes.shape, sizes, strict=True)])
    zeros = None if zero_point is None else zero_point.reshape(scales.shape)
    rows = codes.reshape(-1, codes.shape[-1])

    def spread(values: NDArray[Any], index: RowIndex) -> NDArray[Any]:
        places = np.unravel_index(index, codes.shape[:-1])
        of_rows = values[
            tuple(place // size for place, size in zip(places, sizes[:-1], strict=True))
        ]
        return of_rows if values.shape[-1] == 1 else np.repeat(of_rows, sizes[-1], axis=1)

    def decode_rows(index: RowIndex) -> FloatArray:
        values = take_rows(rows, index).astype(computed)
        if zeros is not None:
            values = values - spread(zeros, index).astype(computed)
        values = (values * spread(scales, index)).astype(_compute_dtype(parts))
        return _scale_inputs(parts, values.astype(np.float32))

    target: Any = parts.config.get("_data", {}).get("target_dtype")
    width = target.get("_data") if isinstance(target, dict) else codes.dtype.name
    sharing = "one scale" if scales.size == 1 else f"block {'x'.join(map(str, sizes))}"
    dtype = f"torchao {label(str(width))}, {sharing}"
    return parts.weight(codes.shape, dtype, decode_rows)


def _decode_int4(parts: Parts) -> StoredTensor:
    parts.require("qdata", ("int8", "uint8"))
    parts.require("scale", FLOATS)
    parts.require("zero_point", FLOATS)
    packed, scale, zero_point = parts["qdata"], parts["scale"], parts["zero_point"]
    shape = *packed.shape[:-1], 2 * packed.shape[-1]
    if packed.ndim < 2 or scale.ndim != packed.ndim or scale.shape != zero_point.shape:
        raise parts.misfit()
    if scale.shape[:-2] != shape[:-2] or scale.shape[-1] != shape[-2]:
        raise parts.misfit()
    group = exact_ratio(shape[-1], scale.shape[-2], parts.misfit())
    octets = packed.reshape(-1, packed.shape[-1]).view(np.uint8)
    outputs = shape[-2]

    def spread(values: NDArray[Any], index: RowIndex) -> NDArray[Any]:
        matrices = values.reshape(-1, *values.shape[-2:])
        return matrices[index // outputs, :, index % outputs].astype(np.float32)[..., None]

    def decode_rows(index: RowIndex) -> FloatArray:
        signed = (unpack_nibbles(take_rows(octets, index)).astype(np.int8) ^ 8) - 8
        codes = signed.astype(np.float32).reshape(len(index), -1, group)
        values = codes * spread(scale, index) + spread(zero_point, index)
        rounded = values.reshape(len(index), shape[-1]).astype(scale.dtype)
        return _scale_inputs(parts, rounded.astype(np.float32))

    return parts.weight(shape, f"torchao int4, group {group}", decode_rows)


def _block_sizes(parts: Parts) -> tuple[int, ...]:
    """Return how many codes along each axis share a scale; raises MisfitError."""
    shape, scale = parts["qdata"].shape, parts["scale"]
    stated: Any = parts.config.get("_data", {}).get("block_size")
    if not isinstance(stated, list) or len(stated) != len(shape) or len(shape) < 2:
        raise parts.misfit("qdata", "scale", beside=f"blocks of {label(str(stated))}")
    misfit = parts.misfit("qdata", "scale", beside=f"blocks of {label(str(stated))}")
    if not all(type(n) is int and n > 0 for n in stated):
        raise misfit
    counts = [exact_ratio(n, size, misfit) for n, size in zip(shape, stated, strict=True)]
    zero_point = parts.get("zero_point")
    if scale.size != prod(counts) or (zero_point is not None and zero_point.size != scale.size):
        raise misfit
    return tuple(stated)


def _compute_dtype(parts: Parts) -> np.dtype[Any]:
    """Return the dtype that the metadata say a weight is computed in."""
    stated: Any = parts.config.get("_data", {}).get("dtype")
    return compute_dtype(stated.get("_data") if isinstance(stated, dict) else None)


def _scale_inputs(parts: Parts, rows: FloatArray) -> FloatArray:
    """Multiply the columns of rows by what their inputs are multiplied by."""
    factors = parts.get("act_pre_scale")
    if factors is None:
        return rows
    if factors.size not in (1, rows.shape[1]):
        raise parts.misfit("qdata", "act_pre_scale")
    return rows * factors.reshape(-1).astype(np.float32)


KINDS = (TorchaoKind(),)
