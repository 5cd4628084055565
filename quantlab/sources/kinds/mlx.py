"""MLX: codes along the inputs, lowest bits first.

``W = q * scale + bias``, each step rounded to the type of the scale. Its modes mxfp4, mxfp8 and
nvfp4 have no biases; codes are floats, and scales powers of two or fp8.
"""

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    FLOATS,
    FP4,
    WORDS,
    Config,
    Kind,
    MisfitError,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    config_contradiction,
    exact_ratio,
    take_rows,
    unpack_codes,
    unpack_nibbles,
)

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (64, 32, 128)
MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # bits and group size


def _settings(parts: Parts) -> Config:
    """Return the settings of a layer of its own, or those of all."""
    own = parts.config.get(parts.name.removesuffix(".weight"))
    return own if isinstance(own, dict) else parts.config


def _decode_affine(parts: Parts) -> StoredTensor:
    weight, scales, biases = parts["weight"], parts["scales"], parts["biases"]
    if weight.ndim < 2 or scales.shape != biases.shape or scales.shape[:-1] != weight.shape[:-1]:
        raise parts.misfit()
    settings = _settings(parts)
    bits, group = _bits_and_group(parts, settings)
    inputs = scales.shape[-1] * group
    flat = [array.reshape(-1, array.shape[-1]) for array in (weight, scales, biases)]

    def decode_rows(index: RowIndex) -> FloatArray:
        words, scale, bias = (take_rows(array, index) for array in flat)
        codes = unpack_codes(words, bits, inputs).reshape(len(index), -1, group)
        values = codes.astype(scale.dtype) * scale[..., None] + bias[..., None]
        return values.reshape(len(index), inputs).astype(np.float32)

    return parts.weight(
        (*weight.shape[:-1], inputs),
        f"MLX {bits} bits, group {group}",
        decode_rows,
        remark=config_contradiction(settings, bits=bits, group_size=group),
    )


def _bits_per_scale(parts: Parts) -> int:
    words, groups = parts["weight"].shape[-1], parts["scales"].shape[-1]
    return exact_ratio(32 * words, groups, parts.misfit())


def _bits_and_group(parts: Parts, settings: Config) -> tuple[int, int]:
    """Return bits and group size; shapes give their product alone, settings choose among equals."""
    product = _bits_per_scale(parts)
    options = [(bits, group) for group in GROUPS for bits in BITS if bits * group == product]
    if not options:
        raise MisfitError(f"has {product} bits a scale, which no width and group size make")
    stated = settings.get("bits"), settings.get("group_size")
    return next((option for option in options if option == stated), options[0])


def _decode_floats(parts: Parts) -> StoredTensor:
    import ml_dtypes

    weight, scales = parts["weight"], parts["scales"]
    if weight.ndim < 2 or weight.shape[:-1] != scales.shape[:-1]:
        raise parts.misfit()
    product, stated = _bits_per_scale(parts), _settings(parts).get("mode")
    fitting = [mode for mode, (bits, group) in MODES.items() if bits * group == product]
    if not fitting:
        raise parts.misfit()
    mode = stated if stated in fitting else fitting[0]
    bits, group = MODES[mode]
    scale_dtype = ml_dtypes.float8_e4m3fn if mode == "nvfp4" else ml_dtypes.float8_e8m0fnu
    inputs = scales.shape[-1] * group
    words, flat_scales = (array.reshape(-1, array.shape[-1]) for array in (weight, scales))

    def decode_rows(index: RowIndex) -> FloatArray:
        octets = np.ascontiguousarray(take_rows(words, index)).view(np.uint8)
        values = FP4[unpack_nibbles(octets)] if bits == 4 else octets.view(ml_dtypes.float8_e4m3fn)
        scale = take_rows(flat_scales, index).view(scale_dtype).astype(np.float32)
        grouped = values.astype(np.float32).reshape(len(index), -1, group)
        return (grouped * scale[..., None]).reshape(len(index), inputs)

    return parts.weight((*weight.shape[:-1], inputs), f"MLX {mode}", decode_rows)


def _has_words(parts: Parts) -> bool:
    return "weight" in parts and parts["weight"].dtype == np.uint32


FLOAT_CODES = {"weight": Part(".weight", WORDS), "scales": Part(".scales", BYTES)}
AFFINE = {
    "weight": Part(".weight", WORDS),
    "scales": Part(".scales", FLOATS),
    "biases": Part(".biases", FLOATS),
}
KINDS = (
    Kind(
        FLOAT_CODES,
        "scales",
        _decode_floats,
        lambda parts: _has_words(parts) and parts["scales"].dtype == np.uint8,
    ),
    Kind(AFFINE, "scales", _decode_affine, _has_words),
)
