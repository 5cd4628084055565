"""Codes packed into words, in groups of inputs: GPTQ, AWQ, compressed-tensors and MLX.

GPTQ packs along the inputs, lowest bits first: ``W[o, i] = (q[i, o] - z[g_idx[i], o]) *
s[g_idx[i], o]``. Version 1 of the format, which is meant unless ``checkpoint_format`` is gptq_v2,
stores zero points less 1: it is taken from all in a word at once, so that a zero point of 0 borrows
from the next.

AWQ, as AutoAWQ's gemm version writes it, packs 4 bits along the outputs: ``W[o, i] = (q[i, o] -
z[i // g, o]) * s[i // g, o]``; of the eight codes of a word the lowest bits are output 0, then 2,
4, 6, 1, 3, 5, 7. The gemv version packs along the inputs in their order, and scales and zero points
along the groups, of which there are more than the inputs need.

compressed-tensors packs along the inputs codes plus half their range, lowest bits first: ``W = (q -
2^(bits-1) - z) * scale``; without zero points z is 0. Its fp4 is in
``small_floats.py``.

MLX packs along the inputs, lowest bits first: ``W = q * scale + bias``, each step rounded. In its
modes mxfp4, mxfp8 and nvfp4, without biases, codes are floats, and scales powers of two or fp8.

Values are rounded to the type of the scale.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    FLOATS,
    FP4,
    INTEGERS,
    WORDS,
    Config,
    DecodeRows,
    Kind,
    MisfitError,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    config_contradiction,
    even_groups,
    exact_ratio,
    group_index,
    largest_group,
    multiply,
    slice_words,
    take_rows,
    unpack_codes,
    unpack_nibbles,
)

V1, V2 = "with zero points stored less 1 (gptq_v1)", "with zero points as they are (gptq_v2)"
AWQ_BITS = 4
AWQ_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where in its word each output is
MLX_BITS, MLX_GROUPS = (2, 3, 4, 5, 6, 8), (64, 32, 128)
MLX_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # bits and group size


def _decode_gptq(parts: Parts) -> StoredTensor:
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    groups, outputs = scales.shape
    word = 8 * qweight.itemsize
    bits = exact_ratio(word * qzeros.shape[1], outputs, parts.misfit())
    inputs = exact_ratio(word * qweight.shape[0], bits, parts.misfit())
    if qweight.shape[1] != outputs or qzeros.shape[0] != groups or qzeros.itemsize != word // 8:
        raise parts.misfit()
    if not groups or not 2 <= bits <= 8:
        raise parts.misfit()
    group = largest_group(parts, "g_idx", inputs, groups)

    def decoder(zero_shift: int) -> DecodeRows:
        def decode_rows(index: RowIndex) -> FloatArray:
            # Negative indices count from the end, as in the kernels that the format was made for.
            group_of = group_index(parts, "g_idx", inputs, groups, wraps=True)
            codes = unpack_codes(qweight[:, index].T, bits, inputs)
            zeros = _unpack_gptq_zeros(qzeros, index, bits, zero_shift)
            scale = scales[:, index].T[:, group_of]
            return multiply(codes - zeros[:, group_of], scale)

        return decode_rows

    is_v2 = parts.config.get("checkpoint_format") == "gptq_v2"
    return parts.weight(
        (outputs, inputs),
        f"GPTQ {bits} bits, group {group}",
        decoder(0 if is_v2 else 1),
        readings={V1: decoder(1)} if is_v2 else {V2: decoder(0)},
        remark=config_contradiction(parts.config, bits=bits, group_size=group),
    )


def _unpack_gptq_zeros(
    qzeros: NDArray[Any], index: RowIndex, bits: int, zero_shift: int
) -> NDArray[Any]:
    """Unpack the zero points of outputs, `zero_shift` added, ``(outputs, groups)``."""
    columns, first = slice_words(qzeros, bits, index)
    words = np.ascontiguousarray(columns).view(f"u{columns.itemsize}")
    word = 8 * words.itemsize
    n = words.shape[1] * word // bits
    if word % bits == 0:
        # Added to words, not to codes: the carry into the next code undoes the borrow of v1.
        of_all = sum(zero_shift << place for place in range(0, word, bits))
        return unpack_codes(words + words.dtype.type(of_all), bits, n).T[index - first]
    return (unpack_codes(words, bits, n).T[index - first] + zero_shift) % 2**bits


# GPTQ names its parts as AWQ does, but packs inputs: its words have a column an output.
def _is_gemm(parts: Parts) -> bool:
    if "g_idx" in parts or "scales" not in parts:
        return "g_idx" not in parts and parts.config.get("quant_method") == "awq"
    return parts["qweight"].shape[-1:] != parts["scales"].shape[-1:]


def _is_gemv(parts: Parts) -> bool:
    rows = [parts[key].shape[:1] for key in ("qweight", "qzeros", "scales") if key in parts]
    return "g_idx" not in parts and len(rows) == 3 and len(set(rows)) == 1


def _decode_gemv(parts: Parts) -> StoredTensor:
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    outputs, inputs = len(qweight), 8 * qweight.shape[1]
    stated = parts.config.get("group_size")
    sizes = [stated] if type(stated) is int and stated > 0 else [128, 64, 32]
    group = next((size for size in sizes if _padded_groups(inputs, size) == scales.shape[1]), None)
    if group is None or qzeros.shape[1] * 8 < -(-inputs // group):
        raise parts.misfit()

    def decode_rows(index: RowIndex) -> FloatArray:
        group_of = even_groups(inputs, group)
        codes = unpack_codes(take_rows(qweight, index), AWQ_BITS, inputs)
        zeros = unpack_codes(take_rows(qzeros, index), AWQ_BITS, 8 * qzeros.shape[1])[:, group_of]
        return multiply(codes - zeros, take_rows(scales, index)[:, group_of])

    return parts.weight(
        (outputs, inputs),
        f"AWQ {AWQ_BITS} bits (gemv), group {group}",
        decode_rows,
        remark=config_contradiction(parts.config, bits=AWQ_BITS, group_size=group),
    )


def _padded_groups(inputs: int, group: int) -> int:
    """Return the groups that AutoAWQ makes room for: what its kernel reads at once."""
    multiple = 8 * {64: 2, 32: 4}.get(group, 1)
    return ceil(ceil(inputs / group) / multiple) * multiple


def _decode_gemm(parts: Parts) -> StoredTensor:
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    inputs, (groups, outputs) = qweight.shape[0], scales.shape
    if qweight.shape[1] * 8 != outputs or qzeros.shape != (groups, outputs // 8):
        raise parts.misfit()
    group = exact_ratio(inputs, groups, parts.misfit())

    def decoder(places: RowIndex, zero_shift: int = 0) -> DecodeRows:
        def decode_rows(index: RowIndex) -> FloatArray:
            # Each word once, then along the inputs: a column of words is slow to read.
            words, word_of = np.unique(index // 8, return_inverse=True)
            place = 4 * places[index % 8][:, None]
            codes = (_columns(qweight, words)[word_of] >> place) & 15
            zeros = ((_columns(qzeros, words)[word_of] >> place) & 15) + zero_shift
            steps = codes.reshape(len(index), groups, group) - zeros[:, :, None]
            return multiply(steps, _columns(scales, index)[:, :, None]).reshape(-1, inputs)

        return decode_rows

    return parts.weight(
        (outputs, inputs),
        f"AWQ {AWQ_BITS} bits, group {group}",
        decoder(AWQ_PLACES),
        readings={"with zero points stored less 1": decoder(AWQ_PLACES, 1)},
        rearranged={"with codes in the order of outputs": decoder(np.arange(8))},
        remark=config_contradiction(parts.config, bits=AWQ_BITS, group_size=group),
    )


def _columns(array: NDArray[Any], index: RowIndex) -> NDArray[Any]:
    """Return columns as rows; unsigned words as signed ones, whose differences may be negative."""
    columns = np.ascontiguousarray(array[:, index].T)
    return columns.view(np.int32) if columns.dtype == np.uint32 else columns


def _decode_compressed(parts: Parts) -> StoredTensor:
    packed, scale, shape = parts["weight_packed"], parts["weight_scale"], parts["weight_shape"]
    if shape.size != 2:
        raise MisfitError(f"has a weight_shape of {shape.size} numbers, where 2 belong")
    outputs, inputs = (int(n) for n in shape.reshape(-1))
    misfit = parts.misfit("weight_packed", "weight_scale", beside=f"the shape {[outputs, inputs]}")
    bits = 32 * packed.shape[1] // inputs if inputs > 0 else 0
    if outputs != len(packed) or outputs != len(scale) or not 2 <= bits <= 8:
        raise misfit
    groups = scale.shape[1]
    if -(-inputs * bits // 32) != packed.shape[1] or not groups:
        raise misfit
    group = largest_group(parts, "weight_g_idx", inputs, groups)

    def decode_rows(index: RowIndex) -> FloatArray:
        group_of = group_index(parts, "weight_g_idx", inputs, groups)
        codes = unpack_codes(take_rows(packed, index), bits, inputs) - 2 ** (bits - 1)
        zeros = _unpack_compressed_zeros(parts, index, bits, scale.shape)[:, group_of]
        return multiply(codes - zeros, take_rows(scale, index)[:, group_of])

    stated = {"num_bits": bits} | ({"group_size": group} if groups > 1 else {})
    return parts.weight(
        (outputs, inputs),
        f"compressed-tensors {bits} bits, {f'group {group}' if groups > 1 else 'per channel'}",
        decode_rows,
        remark=config_contradiction(_compressed_settings(parts.config), **stated),
    )


def _unpack_compressed_zeros(
    parts: Parts, index: RowIndex, bits: int, scales: tuple[int, ...]
) -> Any:
    """Return the zero points of rows, ``(rows, groups)``; they may be packed along rows."""
    if "weight_zero_point" not in parts:
        return np.zeros((index.size, scales[1]), np.int32)
    zeros: NDArray[Any] = parts["weight_zero_point"]
    if zeros.shape == scales:
        return take_rows(zeros, index).astype(np.int32)
    if zeros.dtype != np.int32 or zeros.shape != (-(-scales[0] * bits // 32), scales[1]):
        raise parts.misfit("weight_zero_point", "weight_scale")
    words, first = slice_words(zeros.T, bits, index)
    codes = unpack_codes(words, bits, words.shape[1] * 32 // bits)
    return codes.T[index - first] - 2 ** (bits - 1)


def _compressed_settings(config: Config) -> Config:
    """Return the settings of weights in the first group of the config."""
    groups = config.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}


def _mlx_settings(parts: Parts) -> Config:
    """Return the settings of a layer of its own, or those of all."""
    own = parts.config.get(parts.name.removesuffix(".weight"))
    return own if isinstance(own, dict) else parts.config


def _decode_mlx(parts: Parts) -> StoredTensor:
    weight, scales, biases = parts["weight"], parts["scales"], parts["biases"]
    if weight.ndim < 2 or scales.shape != biases.shape or scales.shape[:-1] != weight.shape[:-1]:
        raise parts.misfit()
    settings = _mlx_settings(parts)
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
    options = [
        (bits, group) for group in MLX_GROUPS for bits in MLX_BITS if bits * group == product
    ]
    if not options:
        raise MisfitError(f"has {product} bits a scale, which no width and group size make")
    stated = settings.get("bits"), settings.get("group_size")
    return next((option for option in options if option == stated), options[0])


def _decode_mlx_floats(parts: Parts) -> StoredTensor:
    weight, scales = parts["weight"], parts["scales"]
    if weight.ndim < 2 or weight.shape[:-1] != scales.shape[:-1]:
        raise parts.misfit()
    product, stated = _bits_per_scale(parts), _mlx_settings(parts).get("mode")
    fitting = [mode for mode, (bits, group) in MLX_MODES.items() if bits * group == product]
    if not fitting:
        raise parts.misfit()
    mode = stated if stated in fitting else fitting[0]
    bits, group = MLX_MODES[mode]
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


def _parts_of(words: tuple[str, ...], g_idx: tuple[str, ...] | None) -> Mapping[str, Part]:
    """Return the parts of GPTQ and AWQ, which have the same names."""
    return {
        "qweight": Part(".qweight", words, ndim=2),
        "qzeros": Part(".qzeros", words, ndim=2),
        "scales": Part(".scales", FLOATS, ndim=2),
        "g_idx": Part(".g_idx", g_idx, is_optional=True),  # of GPTQ alone
    }


COMPRESSED = {
    "weight_packed": Part(".weight_packed", WORDS, ndim=2),
    "weight_scale": Part(".weight_scale", FLOATS, ndim=2),
    "weight_zero_point": Part(".weight_zero_point", ("int8", *WORDS), is_optional=True),
    "weight_shape": Part(".weight_shape", INTEGERS),
    "weight_g_idx": Part(".weight_g_idx", INTEGERS, is_optional=True),
}
MLX_FLOATS = {"weight": Part(".weight", WORDS), "scales": Part(".scales", BYTES)}
MLX = {
    "weight": Part(".weight", WORDS),
    "scales": Part(".scales", FLOATS),
    "biases": Part(".biases", FLOATS),
}
GPTQ_WORDS = (*WORDS, "int16", "uint8", "int8")  # GPTQModel packs into words of any size
KINDS = (  # AWQ before GPTQ, which takes every qweight
    Kind(_parts_of(WORDS, None), "qweight", _decode_gemv, _is_gemv),
    Kind(_parts_of(WORDS, None), "qweight", _decode_gemm, _is_gemm),
    Kind(_parts_of(GPTQ_WORDS, INTEGERS), "qweight", _decode_gptq),
    Kind(COMPRESSED, "weight_packed", _decode_compressed),
    Kind(
        MLX_FLOATS,
        "scales",
        _decode_mlx_floats,
        lambda parts: _has_words(parts) and parts["scales"].dtype == np.uint8,
    ),
    Kind(MLX, "scales", _decode_mlx, _has_words),
)
