"""AWQ, as AutoAWQ's gemm version writes it: 4-bit codes along the outputs, in an order of its own.

``W[o, i] = (q[i, o] - z[i // g, o]) * s[i // g, o]``; of the eight codes of a word the lowest bits
are output 0, then 2, 4, 6, 1, 3, 5, 7. The gemv version has codes along the inputs in their order,
and scales and zero points along the groups, of which there are more than the inputs need.
"""

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
    WORDS,
    DecodeRows,
    Kind,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    config_contradiction,
    even_groups,
    exact_ratio,
    multiply,
    take_rows,
    unpack_codes,
)

BITS = 4
PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where in its word each output is
LINEAR_PLACES = np.arange(8)


def _is_awq(parts: Parts) -> bool:
    # GPTQ names its parts alike, but packs inputs: its words have a column an output.
    if "g_idx" in parts:
        return False
    if _is_gemv(parts):
        return True
    if "scales" not in parts:
        return parts.config.get("quant_method") == "awq"
    return parts["qweight"].shape[-1:] != parts["scales"].shape[-1:]


def _is_gemv(parts: Parts) -> bool:
    rows = [parts[key].shape[:1] for key in ("qweight", "qzeros", "scales") if key in parts]
    return len(rows) == 3 and len(set(rows)) == 1


def _decode(parts: Parts) -> StoredTensor:
    return _decode_gemv(parts) if _is_gemv(parts) else _decode_gemm(parts)


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
        codes = unpack_codes(take_rows(qweight, index), BITS, inputs)
        zeros = unpack_codes(take_rows(qzeros, index), BITS, 8 * qzeros.shape[1])[:, group_of]
        scale = take_rows(scales, index)[:, group_of]
        return multiply(codes - zeros, scale)

    return StoredTensor(
        parts.name,
        (outputs, inputs),
        f"AWQ {BITS} bits (gemv), group {group}",
        parts.stored,
        decode_rows,
        remark=config_contradiction(parts.config, bits=BITS, group_size=group),
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

    return StoredTensor(
        parts.name,
        (outputs, inputs),
        f"AWQ {BITS} bits, group {group}",
        parts.stored,
        decoder(PLACES),
        readings={"with zero points stored less 1": decoder(PLACES, 1)},
        rearranged={"with codes in the order of outputs": decoder(LINEAR_PLACES)},
        remark=config_contradiction(parts.config, bits=BITS, group_size=group),
    )


def _columns(array: NDArray[Any], index: RowIndex) -> NDArray[Any]:
    """Return columns as rows; unsigned words as signed ones, whose differences may be negative."""
    columns = np.ascontiguousarray(array[:, index].T)
    return columns.view(np.int32) if columns.dtype == np.uint32 else columns


PARTS = {
    "qweight": Part(".qweight", WORDS, ndim=2),
    "qzeros": Part(".qzeros", WORDS, ndim=2),
    "scales": Part(".scales", FLOATS, ndim=2),
    "g_idx": Part(".g_idx", is_optional=True),  # of GPTQ alone
}
KINDS = (Kind(PARTS, "qweight", _decode, _is_awq),)
