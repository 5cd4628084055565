"""Types of safetensors whose values share bytes: F4, F6_E2M3 and F6_E3M2, lowest bits first.

``W = value * scale * scale_2``: one scale, one a row, or one a group of a row, in fp8, floats or
exponents of powers of two, and one of the whole tensor. Without scales the values stand alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.file import MappedArray
from quantlab.sources.kinds.decoding import (
    EXPONENTS,
    FLOATS,
    FP4,
    Config,
    Parts,
    StoredTensor,
    as_scales,
    decode_or_fault,
    exact_ratio,
    row_width,
    rows_of,
    unpack_codes,
)
from quantlab.sources.tensor import Tensor, map_values

BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
CODES_A_STRIDE = 4  # the fewest whose bits fill bytes
SCALES = {  # what follows the name of the weight, and that of its layer
    "scale": ("_scale", "_scale_inv"),
    "scale_2": ("_scale_2",),
}


@dataclass(frozen=True)
class PackedTensor(Tensor):
    """Bytes that hold values of a type of safetensors, in a shape of values."""

    kind: str = field(kw_only=True)
    value_shape: Shape = field(kw_only=True)

    @classmethod
    def of(cls, array: MappedArray) -> "PackedTensor":
        """Map the bytes of an array."""
        octets = map_values(array.name, np.uint8, (array.n_bytes,), array.file, array.offset)
        state = octets.state
        return cls(array.name, octets.array, state, kind=array.kind, value_shape=array.shape)


class SubByteKind:
    """Weights of a type whose values share bytes, with their scales or without."""

    def find(self, tensors: Mapping[str, Tensor], config: Config) -> Iterator[StoredTensor]:
        """Yield the weights of this kind, decoded, or with the fault that they have."""
        for name, tensor in tensors.items():
            if isinstance(tensor, PackedTensor):
                parts = {"weight": tensor} | dict(_find_scales(tensors, name))
                yield decode_or_fault(Parts(name, parts, config), _decode)


def _find_scales(tensors: Mapping[str, Tensor], name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the scales of a weight; beside one called ``.weight`` they may be ``.scale``."""
    layer = name.removesuffix(".weight")
    for key, suffixes in SCALES.items():
        names = [f"{name}{suffix}" for suffix in suffixes]
        names += [f"{layer}.{suffix[1:]}" for suffix in suffixes] if layer != name else []
        if scale := next((tensors[scale] for scale in names if scale in tensors), None):
            yield key, scale


def _decode(parts: Parts) -> StoredTensor:
    weight = parts.tensors["weight"]
    assert isinstance(weight, PackedTensor)
    shape, levels, bits = weight.value_shape, _levels(weight.kind), BITS[weight.kind]
    octets, size = weight.array, prod(shape)
    width = row_width(shape)
    scale, group = _group_scales(parts, shape)
    for key in SCALES:
        if key in parts:
            parts.require(key, (*FLOATS, *EXPONENTS, "float8_e4m3fn", "float8_e5m2"))
    if "scale_2" in parts and parts["scale_2"].size != 1:
        raise parts.misfit("weight", "scale_2")

    def read_elements(start: int, stop: int) -> FloatArray:
        first = start // CODES_A_STRIDE * CODES_A_STRIDE
        last = min(-(-stop // CODES_A_STRIDE) * CODES_A_STRIDE, size)
        part = octets[first * bits // 8 : -(-last * bits // 8)]
        codes = unpack_codes(part[None], bits, last - first)[0, start - first : stop - first]
        if scale is None:
            return levels[codes]
        factors = as_scales(scale)[start // group : -(-stop // group)].astype(np.float32)
        if "scale_2" in parts:
            factors = factors * parts["scale_2"].reshape(-1).astype(np.float32)
        return levels[codes] * factors[np.arange(start, stop) // group - start // group]

    sharing = f", group {group}" if scale is not None and group < width else ""
    return StoredTensor(
        parts.name,
        shape,
        f"{weight.kind.lower()}{sharing}",
        parts.stored,
        rows_of(read_elements, width),
        read_elements,
    )


def _group_scales(parts: Parts, shape: Shape) -> tuple[NDArray[Any] | None, int]:
    """Return the scales in C order, and how many values share one; raises MisfitError."""
    scale = parts.get("scale")
    if scale is None or not scale.size:
        return None, 1
    misfit = parts.misfit("weight", "scale", beside=f"the shape {list(shape)}")
    group = exact_ratio(prod(shape), scale.size, misfit)
    if scale.size > 1 and row_width(shape) % group:
        raise misfit
    return scale.reshape(-1), group


@cache
def _levels(kind: str) -> FloatArray:
    """Return the value of each code of a type."""
    import ml_dtypes

    if kind == "F4":
        return FP4
    dtypes = {"F6_E2M3": ml_dtypes.float6_e2m3fn, "F6_E3M2": ml_dtypes.float6_e3m2fn}
    return np.arange(64, dtype=np.uint8).view(dtypes[kind]).astype(np.float32)


KINDS = (SubByteKind(),)
