"""Codes that are numbers already, times a scale: fp8 of several kinds, and int8.

``W = weight * scale``, of one scale, one an index of an axis, one a group of a row, or one a block
of rows and columns, as DeepSeek's ``weight_scale_inv``; experts may be stacked along a first axis.
bitsandbytes' int8 has ``SCB``, 127 scales. Values are rounded to the type of the scale.

torchao has the parts of a tensor subclass, ``MODULE._weight_qdata`` and so on. The metadata of the
file name, for each weight, the class, the blocks that share a scale, and the type that is computed
in::

    IntxUnpackedToInt8Tensor, Int8Tensor    W = (q - zero_point) * scale
    Float8Tensor                            W = q * scale
    Int4Tensor                              W = q * scale + zero_point, q from -8 to 7

Int4Tensor packs two codes a byte, the lower half first; its scales and zero points are
``[groups, outputs]``. Where there is an ``act_pre_scale``, inputs are multiplied by it first.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    EXPONENTS,
    FLOATS,
    MAX_SHAPES,
    Config,
    Kind,
    MisfitError,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    as_scales,
    compute_dtype,
    config_contradiction,
    decode_or_fault,
    exact_ratio,
    take_rows,
    unpack_nibbles,
)
from quantlab.sources.tensor import Tensor
from quantlab.text import label

CODES = {
    "float8_e4m3fn": "fp8 e4m3",
    "float8_e5m2": "fp8 e5m2",
    "float8_e4m3fnuz": "fp8 e4m3fnuz",
    "float8_e5m2fnuz": "fp8 e5m2fnuz",
    "int8": "int8",
}
DEEPSEEK_BLOCK = (128, 128)
INT8_SCALE = ".SCB"
TORCHAO_CODES = "_qdata"
TORCHAO_KEYS = ("qdata", "scale", "zero_point", "scale_and_zero", "act_pre_scale")
TORCHAO_AFFINE = ("IntxUnpackedToInt8Tensor", "Int8Tensor", "Float8Tensor")
TORCHAO_TYPES = ("int8", "float8_e4m3fn", "float8_e5m2")


def _decode(parts: Parts) -> StoredTensor:
    weight, scale = parts["weight"], parts["scale"]
    if weight.ndim < 2:
        parts.require("weight", ndim=2)
    scale_name = parts.tensors["scale"].name
    factor = np.float32(1 / 127 if scale_name.endswith(INT8_SCALE) else 1)
    # A scale of one byte is a type for scales alone: no runtime computes in it.
    rounded = scale.dtype if scale.itemsize > 1 else np.dtype(np.float32)
    scale = _align(as_scales(scale), weight.shape, parts)
    sizes = _fused_sizes(parts, weight.shape[-2])
    block = _stated_block(parts.config)
    is_stated = "weight_block_size" in parts.config
    index_maps = _index_maps(weight.shape, scale.shape, block, tuple(sizes), is_stated)
    if index_maps is None:
        raise parts.misfit("weight", "scale")
    zero = parts.get("zero_point")
    if zero is not None and zero.size != scale.size:
        raise parts.misfit("zero_point", "scale")
    zeros = None if zero is None else zero.reshape(scale.shape)
    rows = weight.reshape(-1, weight.shape[-1])

    def decode_rows(index: RowIndex) -> FloatArray:
        places = np.unravel_index(index, weight.shape[:-1])
        codes = take_rows(rows, index).astype(np.float32)
        if zeros is not None:
            codes -= _spread(zeros, index_maps, places)
        values = codes * _spread(scale, index_maps, places) * factor
        return values.astype(rounded).astype(np.float32)

    block = _block_size(block, weight.shape[-2:], scale.shape[-2:])
    config = parts.config if scale_name.endswith("_scale_inv") else {}
    return parts.weight(
        weight.shape,
        f"{CODES[parts.dtype('weight')]}, {_sharing(scale.shape, weight.shape, block)}",
        decode_rows,
        remark=config_contradiction(config, weight_block_size=[*block]),
    )


def _spread(
    values: NDArray[Any], index_maps: Sequence[RowIndex], places: tuple[NDArray[np.intp], ...]
) -> NDArray[np.float32]:
    """Return the value of each element of rows, whose index along each axis `places` has."""
    of_axes = zip(index_maps, places, strict=False)
    of_rows = values[tuple(index_map[place] for index_map, place in of_axes)].astype(np.float32)
    return of_rows if values.shape[-1] == 1 else of_rows[:, index_maps[-1]]


def _align(scale: NDArray[Any], shape: Shape, parts: Parts) -> NDArray[Any]:
    """Give scales the axes of a weight: one, one an index of the first axes, or as stored."""
    if not scale.size:
        raise parts.misfit("weight", "scale")
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    if scale.ndim < len(shape):
        return scale.reshape(*scale.shape, *(1,) * (len(shape) - scale.ndim))
    return scale


def _block_size(stated: Shape, shape: Shape, scales: Shape) -> tuple[int, int]:
    """Return the rows and columns of a block: as stated, DeepSeek's, or equal shares."""
    even = [-(-n // m) for n, m in zip(shape, scales, strict=True)]
    for rows, columns in (stated, DEEPSEEK_BLOCK, even):
        if (-(-shape[0] // rows), -(-shape[1] // columns)) == tuple(scales):
            break
    return rows, columns


# A checkpoint has tens of thousands of weights of a few shapes.
@lru_cache(maxsize=MAX_SHAPES)
def _index_maps(
    shape: Shape, scales: Shape, block: Shape, fused_sizes: Shape, is_stated: bool
) -> list[RowIndex] | None:
    """Return, for each axis, the index of the scale of each index; None where there is none.

    `block` is stated by the config where `is_stated`, `fused_sizes` the rows of fused projections.
    """
    if len(scales) != len(shape) or 0 in scales:
        return None
    leading = [_block_map(n, m, n) for n, m in zip(shape[:-2], scales[:-2], strict=True)]
    rows, columns = _block_size(block, shape[-2:], scales[-2:])
    restarted = [np.arange(size) // rows for size in fused_sizes]
    counts = [int(part[-1]) + 1 for part in restarted]
    of_rows: RowIndex | None
    if not is_stated and len(fused_sizes) == scales[-2] != shape[-2]:
        of_rows = np.repeat(np.arange(len(fused_sizes)), fused_sizes)
    elif sum(counts) == scales[-2] != -(-shape[-2] // rows):
        starts = np.cumsum([0, *counts[:-1]])
        of_rows = np.concatenate([n + part for n, part in zip(starts, restarted, strict=True)])
    else:
        of_rows = _block_map(shape[-2], scales[-2], rows)
    maps = [*leading, of_rows, _block_map(shape[-1], scales[-1], columns)]
    fitting = [index_map for index_map in maps if index_map is not None]
    return fitting if len(fitting) == len(maps) else None


def _block_map(n: int, m: int, block: int) -> RowIndex | None:
    """Return the scale of each of `n` indices: `m` of equal shares, or a short last one.

    None where neither can be.
    """
    sizes = [block, *(2**k for k in range(4, 16))]
    if n % m == 0:
        sizes.insert(block in DEEPSEEK_BLOCK, n // m)
    size = next((size for size in sizes if -(-n // size) == m), None)
    return None if size is None else np.arange(n) // size


def _fused_sizes(parts: Parts, rows: int) -> list[int]:
    """Return the rows of each projection in a fused one, as far as config.json gives them."""
    if "gate_up" in parts.name and rows % 2 == 0:
        return [rows // 2, rows // 2]
    if "qkv" not in parts.name:
        return []
    model = parts.config.get("model", {})
    heads = model.get("num_attention_heads")
    kv_heads = model.get("num_key_value_heads", heads)
    if not all(type(n) is int and n > 0 for n in (heads, kv_heads)) or rows % (
        heads + 2 * kv_heads
    ):
        return []
    size = rows // (heads + 2 * kv_heads)
    return [heads * size, kv_heads * size, kv_heads * size]


def _stated_block(config: Config) -> tuple[int, ...]:
    """Return the block size in the config, or DeepSeek's where it makes no sense."""
    block: Any = config.get("weight_block_size")
    is_pair = isinstance(block, list) and len(block) == 2
    is_sound = is_pair and all(type(n) is int and n > 0 for n in block)
    return tuple(block) if is_sound else DEEPSEEK_BLOCK


def _sharing(scales: Shape, shape: Shape, block: tuple[int, int]) -> str:
    if set(scales) == {1}:
        return "one scale"
    if scales[-1] == 1 or scales[:-1] == (1,) * (len(shape) - 1):
        return "per channel" if max(scales) == max(shape[-2:]) else "one scale a part"
    if scales[-2] == shape[-2]:
        return f"group {block[-1]}"
    return f"blocks of {block[-2]}x{block[-1]}"


def _has_scale(parts: Parts) -> bool:
    return "weight" in parts and parts.dtype("weight") in CODES


def parse_torchao_metadata(metadata: Mapping[str, Any]) -> Config:
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
            module, dot, weight = codes.removesuffix(TORCHAO_CODES).rpartition("._")
            name = f"{module}.{weight}"
            if dot and codes.endswith(TORCHAO_CODES):
                stem = codes.removesuffix("qdata")
                parts = {
                    key: tensors[f"{stem}{key}"]
                    for key in TORCHAO_KEYS
                    if f"{stem}{key}" in tensors
                }
                yield decode_or_fault(Parts(name, parts, metadata.get(name, {})), _decode_torchao)


def _decode_torchao(parts: Parts) -> StoredTensor:
    kind = parts.config.get("_type")
    if kind is None:
        raise MisfitError("has no class in the metadata of its file, where torchao writes it")
    if kind == "Int4Tensor":
        return _decode_torchao_int4(parts)
    if kind in TORCHAO_AFFINE:
        return _decode_torchao_affine(parts)
    raise MisfitError(f"is a {label(str(kind))} of torchao, which is not decoded")


def _decode_torchao_affine(parts: Parts) -> StoredTensor:
    """Decode codes of a byte each, in blocks of any shape."""
    parts.require("qdata", TORCHAO_TYPES)
    parts.require("scale", FLOATS)
    codes, scale, zero_point = parts["qdata"], parts["scale"], parts.get("zero_point")
    is_float = codes.dtype != np.int8
    computed = np.dtype(np.float32) if is_float else _torchao_dtype(parts)
    sizes = _torchao_blocks(parts)
    scales = scale.reshape([n // size for n, size in zip(codes.shape, sizes, strict=True)])
    zeros = None if zero_point is None else zero_point.reshape(scales.shape)
    rows = codes.reshape(-1, codes.shape[-1])
    index_maps = [np.arange(n) // size for n, size in zip(codes.shape, sizes, strict=True)]

    def decode_rows(index: RowIndex) -> FloatArray:
        places = np.unravel_index(index, codes.shape[:-1])
        values = take_rows(rows, index).astype(computed)
        if zeros is not None:
            values = values - _spread(zeros, index_maps, places).astype(computed)
        values = (values * _spread(scales, index_maps, places)).astype(_torchao_dtype(parts))
        return _scale_torchao_inputs(parts, values.astype(np.float32))

    target: Any = parts.config.get("_data", {}).get("target_dtype")
    width = target.get("_data") if isinstance(target, dict) else codes.dtype.name
    sharing = "one scale" if scales.size == 1 else f"block {'x'.join(map(str, sizes))}"
    dtype = f"torchao {label(str(width))}, {sharing}"
    return parts.weight(codes.shape, dtype, decode_rows)


def _decode_torchao_int4(parts: Parts) -> StoredTensor:
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
        return _scale_torchao_inputs(parts, rounded.astype(np.float32))

    return parts.weight(shape, f"torchao int4, group {group}", decode_rows)


def _torchao_blocks(parts: Parts) -> tuple[int, ...]:
    """Return how many codes along each axis share a scale; raises MisfitError."""
    shape, scale = parts["qdata"].shape, parts["scale"]
    stated: Any = parts.config.get("_data", {}).get("block_size")
    misfit = parts.misfit("qdata", "scale", beside=f"blocks of {label(str(stated))}")
    is_of_axes = isinstance(stated, list) and len(stated) == len(shape) > 1
    if not is_of_axes or not all(type(n) is int and n > 0 for n in stated):
        raise misfit
    counts = [exact_ratio(n, size, misfit) for n, size in zip(shape, stated, strict=True)]
    zero_point = parts.get("zero_point")
    if scale.size != prod(counts) or (zero_point is not None and zero_point.size != scale.size):
        raise misfit
    return tuple(stated)


def _torchao_dtype(parts: Parts) -> np.dtype[Any]:
    """Return the dtype that the metadata say a weight is computed in."""
    stated: Any = parts.config.get("_data", {}).get("dtype")
    return compute_dtype(stated.get("_data") if isinstance(stated, dict) else None)


def _scale_torchao_inputs(parts: Parts, rows: FloatArray) -> FloatArray:
    """Multiply the columns of rows by what their inputs are multiplied by."""
    factors = parts.get("act_pre_scale")
    if factors is None:
        return rows
    if factors.size not in (1, rows.shape[1]):
        raise parts.misfit("qdata", "act_pre_scale")
    return rows * factors.reshape(-1).astype(np.float32)


WEIGHT, SCALES = (*CODES,), (*FLOATS, *EXPONENTS)
SUFFIXED = {  # what comes after the whole name of the weight
    "weight": Part("", WEIGHT),
    "scale": Part(("_scale_inv", "_scale", "_weight_scale_inv", "_weight_scale"), SCALES),
    "zero_point": Part("_zero_point", ("int8",), is_optional=True),
}
BESIDE = {  # what stands beside a part called weight
    "weight": Part(".weight", WEIGHT),
    "scale": Part((".scale_weight", ".qscale_weight", ".scale", INT8_SCALE), SCALES),
}
KINDS = (
    TorchaoKind(),
    Kind(SUFFIXED, "scale", _decode, _has_scale, original=""),
    Kind(BESIDE, "scale", _decode, _has_scale),
)
