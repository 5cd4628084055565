"""Codes that are numbers already, times a scale: fp8 of several kinds, and int8.

``W = weight * scale``, of one scale, one a row, one a group of a row, or one a block of rows and
columns, as DeepSeek's ``weight_scale_inv``; bitsandbytes' int8 has ``SCB``, 127 scales. Values are
rounded to the type of the scale.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
    Config,
    MisfitError,
    StoredTensor,
    Tensors,
    Which,
    bases,
    contradiction,
    guarded,
    parts_of,
    require_parts,
    take,
)
from quantlab.sources.tensor import Tensor

METHODS = ("fp8", "fbgemm_fp8", "finegrained_fp8", "compressed-tensors", "bitsandbytes")
SCALES = ("weight_scale_inv", "weight_scale", "SCB")
CODES = {"float8_e4m3fn": "fp8 e4m3", "float8_e5m2": "fp8 e5m2", "int8": "int8"}


def find(tensors: Tensors, config: Config) -> Iterator[StoredTensor]:
    """Yield the weights of a byte each that have a scale."""
    for base in bases(tensors, ".weight"):
        parts = parts_of(tensors, base, ("weight", *SCALES, "weight_zero_point"))
        if parts["weight"].dtype in CODES and any(key in parts for key in SCALES):
            yield guarded(f"{base}.weight", parts, _stored, config)


def _stored(name: str, parts: dict[str, Tensor], config: Config) -> StoredTensor:
    weight, key = parts["weight"], next(key for key in SCALES if key in parts)
    require_parts(parts, **{key: (*FLOATS, "float8_e8m0fnu")})
    if len(weight.shape) != 2:
        raise MisfitError(f"has codes of {list(weight.shape)}, which are no matrix")
    scale, last = parts[key].array.astype(np.float32), np.float32(1 / 127 if key == "SCB" else 1)
    dtype = _rounded(parts[key].array.dtype)
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    block = _block(weight.shape, scale.shape, config)
    zero = None
    if "weight_zero_point" in parts:
        (zero,) = require_parts(parts, weight_zero_point=("int8",))
        if zero.size != scale.size:
            raise MisfitError(
                f"has zero points of {list(zero.shape)}, scales of {list(scale.shape)}"
            )
    columns = np.arange(weight.shape[1]) // block[1]

    def rows(which: Which) -> FloatArray:
        codes = take(weight.array, which).astype(np.float32)
        if zero is not None:
            codes -= _spread(zero.reshape(scale.shape), which, block[0], columns)
        values = codes * _spread(scale, which, block[0], columns) * last
        return values.astype(dtype).astype(np.float32)

    return StoredTensor(
        name,
        weight.shape,
        f"{CODES[weight.dtype]}, {_sharing(scale.shape, weight.shape, block)}",
        tuple(parts.values()),
        rows,
        remark=contradiction(config, weight_block_size=list(block))
        if key == "weight_scale_inv"
        else None,
    )


def _rounded(scale: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that values are rounded to: that of scales, unless it is of scales alone."""
    return scale if scale.itemsize > 1 else np.dtype(np.float32)


def _block(shape: tuple[int, ...], scales: tuple[int, ...], config: Config) -> tuple[int, int]:
    """Return how many rows and columns share a scale."""
    misfit = MisfitError(
        f"has codes of {list(shape)} and scales of {list(scales)}, which do not fit"
    )
    if len(scales) != 2 or 0 in scales:
        raise misfit
    of_shapes = [-(-n // m) for n, m in zip(shape, scales, strict=True)]
    for block in (_stated(config), [128, 128], of_shapes):
        if all(-(-n // b) == m for n, m, b in zip(shape, scales, block, strict=True)):
            return block[0], block[1]
    raise misfit


def _stated(config: Config) -> list[int]:
    """Return the block size in the config, or DeepSeek's where it makes no sense."""
    block: Any = config.get("weight_block_size")
    sound = isinstance(block, list) and len(block) == 2
    return block if sound and all(type(n) is int and n > 0 for n in block) else [128, 128]


def _spread(
    scale: NDArray[Any], which: Which, rows: int, columns: NDArray[np.int64]
) -> NDArray[Any]:
    """Return the scale of each value of some rows, or one that broadcasts to them."""
    of_rows = scale[which // rows]
    return of_rows if scale.shape[1] == 1 else of_rows[:, columns]


def _sharing(scales: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, int]) -> str:
    if scales == (1, 1):
        return "one scale"
    if scales[1] == 1:
        return "per channel"
    return f"group {block[1]}" if scales[0] == shape[0] else f"blocks of {block[0]}x{block[1]}"
