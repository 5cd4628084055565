"""Codes that are numbers already, times a scale: fp8 of several kinds, and int8.

``W = weight * scale``, of one scale, one a row, one a group of a row, or one a block of rows and
columns, as DeepSeek's ``weight_scale_inv``; bitsandbytes' int8 has ``SCB``, 127 scales. Values are
rounded to the type of the scale.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
    Config,
    Kind,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    config_contradiction,
    take_rows,
)

METHODS = ("fp8", "fbgemm_fp8", "finegrained_fp8", "compressed-tensors", "bitsandbytes")
CODES = {"float8_e4m3fn": "fp8 e4m3", "float8_e5m2": "fp8 e5m2", "int8": "int8"}
DEEPSEEK_BLOCK = (128, 128)
BLOCK_SCALE, INT8_SCALE = ".weight_scale_inv", ".SCB"


def _decode(parts: Parts) -> StoredTensor:
    weight, scale = parts["weight"], parts["scale"]
    scale_name = parts.tensors["scale"].name
    factor = np.float32(1 / 127 if scale_name.endswith(INT8_SCALE) else 1)
    # A scale of one byte is a type for scales alone: no runtime computes in it.
    rounded = scale.dtype if scale.itemsize > 1 else np.dtype(np.float32)
    scale = scale.astype(np.float32)
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    block = _block_shape(parts, weight.shape, scale.shape)
    zero = parts.get("zero_point")
    if zero is not None and zero.size != scale.size:
        raise parts.misfit("zero_point", "scale")
    columns = np.arange(weight.shape[1]) // block[1]

    def decode_rows(index: RowIndex) -> FloatArray:
        codes = take_rows(weight, index).astype(np.float32)
        if zero is not None:
            codes -= _spread(zero.reshape(scale.shape), index // block[0], columns)
        values = codes * _spread(scale, index // block[0], columns) * factor
        return values.astype(rounded).astype(np.float32)

    is_blocks = scale_name.endswith(BLOCK_SCALE)
    return StoredTensor(
        parts.name,
        weight.shape,
        f"{CODES[weight.dtype.name]}, {_sharing(scale.shape, weight.shape, block)}",
        parts.stored,
        decode_rows,
        remark=config_contradiction(parts.config if is_blocks else {}, weight_block_size=[*block]),
    )


def _block_shape(parts: Parts, shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of rows and of columns that share a scale."""
    if len(scales) != 2 or 0 in scales:
        raise parts.misfit("weight", "scale")
    even = tuple(-(-n // m) for n, m in zip(shape, scales, strict=True))
    for block in (_stated_block(parts.config), DEEPSEEK_BLOCK, even):
        if all(-(-n // b) == m for n, m, b in zip(shape, scales, block, strict=True)):
            return block[0], block[1]
    raise parts.misfit("weight", "scale")


def _stated_block(config: Config) -> tuple[int, ...]:
    """Return the block size in the config, or DeepSeek's where it makes no sense."""
    block: Any = config.get("weight_block_size")
    is_pair = isinstance(block, list) and len(block) == 2
    is_sound = is_pair and all(type(n) is int and n > 0 for n in block)
    return tuple(block) if is_sound else DEEPSEEK_BLOCK


def _spread(scale: NDArray[Any], rows: RowIndex, columns: RowIndex) -> NDArray[Any]:
    """Return the scale of each value of rows, or one that broadcasts to them."""
    return scale[rows] if scale.shape[1] == 1 else scale[rows][:, columns]


def _sharing(scales: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, int]) -> str:
    if scales == (1, 1):
        return "one scale"
    if scales[1] == 1:
        return "per channel"
    return f"group {block[1]}" if scales[0] == shape[0] else f"blocks of {block[0]}x{block[1]}"


def _has_scale(parts: Parts) -> bool:
    return "scale" in parts and parts["weight"].dtype.name in CODES


PARTS = {
    "weight": Part(".weight", tuple(CODES), ndim=2),
    "scale": Part((BLOCK_SCALE, ".weight_scale", INT8_SCALE), (*FLOATS, "float8_e8m0fnu")),
    "zero_point": Part(".weight_zero_point", ("int8",), is_optional=True),
}
KINDS = (Kind(PARTS, "weight", _decode, _has_scale),)
