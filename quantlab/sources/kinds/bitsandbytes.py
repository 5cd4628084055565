"""bitsandbytes in 4 bits: levels of a table times the largest magnitude of a block.

Two codes share a byte, the first in the high half. Nested, the magnitudes are codes themselves:
``absmax = nested_quant_map[absmax] * nested_absmax + nested_offset``.
"""

import json
import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    FLOATS,
    Kind,
    MisfitError,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    compute_dtype,
    row_width,
)
from quantlab.text import label

MAX_STATE_BYTES = 2**16
BlockMagnitudes = Callable[[RowIndex], NDArray[np.float32]]  # by the numbers of blocks


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


def _decode(parts: Parts) -> StoredTensor:
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


STATE = ".quant_state.bitsandbytes__"
PARTS = {
    "absmax": Part(".absmax", (*BYTES, *FLOATS)),
    "quant_map": Part(".quant_map", FLOATS),
    "nested_absmax": Part(".nested_absmax", FLOATS, is_optional=True),
    "nested_quant_map": Part(".nested_quant_map", FLOATS, is_optional=True),
    "state": Part((f"{STATE}nf4", f"{STATE}fp4")),
    # Packed bytes may be stored under any dtype (bnb_4bit_quant_storage).
    "weight": Part("", (*BYTES, "int8", *FLOATS)),
}
KINDS = (Kind(PARTS, "state", _decode, original=""),)
