"""bitsandbytes in 4 bits: levels of a table times the largest magnitude of a block.

Two codes share a byte, the first in the high half. Nested, the magnitudes are codes themselves:
``absmax = nested_quant_map[absmax] * nested_absmax + nested_offset``.
"""

import json
import math
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    FLOATS,
    Config,
    MisfitError,
    StoredTensor,
    Tensors,
    Which,
    guarded,
    parts_of,
    require_parts,
    row_width,
)
from quantlab.sources.tensor import Tensor
from quantlab.text import label

Magnitudes = Callable[[NDArray[np.int64]], NDArray[np.float32]]
METHODS = ("bitsandbytes",)
STATE = ".quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
ANY = ("uint8", "int8", "float16", "bfloat16", "float32")  # that bytes are stored under
LARGEST = 2**16  # bytes of a state


def find(tensors: Tensors, config: Config) -> Iterator[StoredTensor]:
    """Yield the tensors that have a state."""
    for state in tensors:
        name, found, kind = state.partition(STATE)
        if found and kind in KINDS:
            keys = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            parts = parts_of(tensors, name, keys) | {"state": tensors[state]}
            if name in tensors:
                parts["weight"] = tensors[name]
            yield guarded(name, parts, _stored, config)


def _state(parts: dict[str, Tensor]) -> dict[str, Any]:
    """Return what the state says; raises MisfitError where it says no shape and block size."""
    array = parts["state"].array
    try:
        if array.nbytes > LARGEST:
            raise ValueError("it is too long")
        state = json.loads(array.tobytes())
        shape = tuple(state["shape"])
        numbers = (state["blocksize"], state.get("nested_blocksize", 256), *shape)
        if not all(type(each) is int and 0 < each < 2**63 for each in numbers) or not shape:
            raise ValueError("its numbers are impossible")
        if not math.isfinite(float(state.get("nested_offset", 0))):
            raise ValueError("its offset is impossible")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as reason:
        raise MisfitError(f"has a quant_state that cannot be read ({reason})") from None
    return dict(state) | {"shape": shape}


def _stored(name: str, parts: dict[str, Tensor], _: Config) -> StoredTensor:
    weight, quant_map = require_parts(parts, weight=ANY, quant_map=FLOATS)
    state = _state(parts)
    shape, block = state["shape"], state["blocksize"]
    size, codes = prod(shape), weight.reshape(-1).view(np.uint8)
    absmax = _absmax(parts, state, -(-size // block))
    if codes.size != -(-size // 2):
        raise MisfitError(f"has {codes.size} bytes of codes for the shape {list(shape)}")
    if quant_map.size != 16:
        raise MisfitError(f"has a quant_map of {quant_map.size} levels, where 16 belong")
    levels, rounded = quant_map.reshape(-1).astype(np.float32), _dtype(state)
    width = row_width(shape)

    def at(places: Which, *, high_first: bool = True) -> FloatArray:
        octets, odd = codes[places // 2], places % 2 == 1
        values = levels[np.where(odd == high_first, octets & 15, octets >> 4)]
        return (values * absmax(places // block)).astype(rounded).astype(np.float32)

    def rows(which: Which, *, high_first: bool = True) -> FloatArray:
        return at(which[:, None] * width + np.arange(width), high_first=high_first)

    return StoredTensor(
        name,
        shape,
        f"bitsandbytes {label(str(state.get('quant_type', '4 bits')))}, block {block}"
        + (", nested" if "nested_absmax" in parts else ""),
        tuple(parts.values()),
        rows,
        elements=lambda start, stop: at(np.arange(start, stop)),
        rearranged={
            "with the halves of bytes swapped": lambda which: rows(which, high_first=False)
        },
    )


def _absmax(parts: dict[str, Tensor], state: dict[str, Any], n: int) -> Magnitudes:
    """Return what gives the magnitudes of some of the `n` blocks, in float32."""
    (absmax,) = require_parts(parts, absmax=(*BYTES, *FLOATS))
    absmax = absmax.reshape(-1)
    if absmax.size != n:
        raise MisfitError(f"has {absmax.size} magnitudes for {n} blocks")
    if absmax.dtype != np.uint8 and "nested_absmax" in parts:
        raise MisfitError(f"has nested magnitudes of {absmax.dtype}, where uint8 belongs")
    if absmax.dtype != np.uint8:
        return lambda blocks: absmax[blocks].astype(np.float32)
    table, outer = require_parts(parts, nested_quant_map=FLOATS, nested_absmax=FLOATS)
    table, outer = table.reshape(-1), outer.reshape(-1)
    block, offset = state.get("nested_blocksize", 256), np.float32(state.get("nested_offset", 0))
    if table.size != 256 or outer.size != -(-n // block):
        raise MisfitError("has nested magnitudes that do not fit")
    return lambda blocks: table[absmax[blocks]] * outer[blocks // block] + offset


def _dtype(state: dict[str, Any]) -> np.dtype[Any]:
    """Return the dtype that weights are computed in."""
    import ml_dtypes

    kinds = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    return np.dtype(kinds.get(str(state.get("dtype")), np.float32))
