"""MLX: codes along the inputs, lowest bits first.

``W = q * scale + bias``, each step rounded to the type of the scale. Its modes mxfp4, mxfp8 and
nvfp4 have no biases; codes are floats, and scales powers of two or fp8.
"""

from collections.abc import Iterator

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    FLOATS,
    FP4,
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
)
from quantlab.sources.tensor import Tensor

METHODS = ("mlx",)
BITS, GROUPS = (2, 3, 4, 5, 6, 8), (64, 32, 128)


def find(tensors: Tensors, config: Config) -> Iterator[StoredTensor]:
    """Yield the tensors that have words, scales and biases."""
    for base in bases(tensors, ".scales"):
        parts, name = parts_of(tensors, base, ("weight", "scales", "biases")), f"{base}.weight"
        if "weight" in parts and parts["weight"].dtype == "uint32":
            own = config.get(base, config)
            settings = own if isinstance(own, dict) else config
            floats = parts["scales"].dtype == "uint8"
            yield guarded(name, parts, _of_floats if floats else _stored, settings)


def _stored(name: str, parts: dict[str, Tensor], config: Config) -> StoredTensor:
    weight, scales, biases = require_parts(parts, weight=WORDS, scales=FLOATS, biases=FLOATS)
    if weight.ndim < 2 or scales.shape != biases.shape or scales.shape[:-1] != weight.shape[:-1]:
        raise MisfitError(
            f"has words of {list(weight.shape)}, scales of {list(scales.shape)} and biases of "
            f"{list(biases.shape)}, which do not fit"
        )
    bits, group = _width(weight.shape[-1], scales.shape[-1], config)
    inputs = scales.shape[-1] * group
    flat = [each.reshape(-1, each.shape[-1]) for each in (weight, scales, biases)]

    def rows(which: Which) -> FloatArray:
        words, scale, bias = (take(each, which) for each in flat)
        codes = unpack(words, bits, inputs).reshape(len(which), -1, group)
        values = codes.astype(scale.dtype) * scale[..., None] + bias[..., None]
        return values.reshape(len(which), inputs).astype(np.float32)

    return StoredTensor(
        name,
        (*weight.shape[:-1], inputs),
        f"MLX {bits} bits, group {group}",
        tuple(parts.values()),
        rows,
        remark=contradiction(config, bits=bits, group_size=group),
    )


MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # bits and group size


def _of_floats(name: str, parts: dict[str, Tensor], config: Config) -> StoredTensor:
    """Return a tensor whose codes are e2m1 or e4m3."""
    import ml_dtypes

    weight, scales = require_parts(parts, weight=WORDS, scales=BYTES)
    if weight.ndim < 2 or weight.shape[:-1] != scales.shape[:-1]:
        raise MisfitError(f"has words of {list(weight.shape)} and scales of {list(scales.shape)}")
    product = whole(32 * weight.shape[-1], scales.shape[-1], f"words of {list(weight.shape)}")
    fitting = [mode for mode, (bits, group) in MODES.items() if bits * group == product]
    mode = config.get("mode") if config.get("mode") in fitting else next(iter(fitting), None)
    if mode is None:
        raise MisfitError(f"has words of {list(weight.shape)} and scales of {list(scales.shape)}")
    bits, group = MODES[mode]
    kind = ml_dtypes.float8_e4m3fn if mode == "nvfp4" else ml_dtypes.float8_e8m0fnu
    octets, inputs = weight.reshape(-1, weight.shape[-1]), scales.shape[-1] * group
    of_groups = scales.reshape(-1, scales.shape[-1])

    def rows(which: Which) -> FloatArray:
        held = np.ascontiguousarray(take(octets, which)).view(np.uint8)
        values = FP4[nibbles(held)] if bits == 4 else held.view(ml_dtypes.float8_e4m3fn)
        scale = take(of_groups, which).view(kind).astype(np.float32)
        grouped = values.astype(np.float32).reshape(len(which), -1, group)
        return (grouped * scale[..., None]).reshape(len(which), inputs)

    shape = *weight.shape[:-1], inputs
    return StoredTensor(name, shape, f"MLX {mode}", tuple(parts.values()), rows)


def _width(words: int, groups: int, config: Config) -> tuple[int, int]:
    """Return bits and group size, of which the shapes say the product alone."""
    product = whole(32 * words, groups, f"rows of {words} words and {groups} scales")
    stated = config.get("bits"), config.get("group_size")
    options = [(bits, group) for group in GROUPS for bits in BITS if bits * group == product]
    if not options:
        raise MisfitError(f"has {product} bits a scale, which no width and group size make")
    return next((each for each in options if each == stated), options[0])
