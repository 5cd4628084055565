"""Codes that are numbers already, times a scale: fp8 of several kinds, and int8.

``W = weight * scale``, of one scale, one an index of an axis, one a group of a row, or one a block
of rows and columns, as DeepSeek's ``weight_scale_inv``; experts may be stacked along a first axis.
bitsandbytes' int8 has ``SCB``, 127 scales. Values are rounded to the type of the scale.
"""

from collections.abc import Sequence
from functools import lru_cache
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
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    as_scales,
    config_contradiction,
    take_rows,
)

CODES = {
    "float8_e4m3fn": "fp8 e4m3",
    "float8_e5m2": "fp8 e5m2",
    "float8_e4m3fnuz": "fp8 e4m3fnuz",
    "float8_e5m2fnuz": "fp8 e5m2fnuz",
    "int8": "int8",
}
DEEPSEEK_BLOCK = (128, 128)
INT8_SCALE = ".SCB"


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
    Kind(SUFFIXED, "scale", _decode, _has_scale, original=""),
    Kind(BESIDE, "scale", _decode, _has_scale),
)
