"""GPTQ: codes along the inputs, lowest bits first.

``W[o, i] = (q[i, o] - z[g_idx[i], o]) * s[g_idx[i], o]``. Version 1 of the format, which is meant
unless ``checkpoint_format`` is gptq_v2, stores zero points less 1: it is taken from all in a word
at once, so that a zero point of 0 borrows from the next.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
    INTEGERS,
    WORDS,
    DecodeRows,
    Kind,
    Part,
    Parts,
    RowIndex,
    StoredTensor,
    config_contradiction,
    exact_ratio,
    group_index,
    largest_group,
    multiply,
    slice_words,
    unpack_codes,
)

PACKED = (*WORDS, "int16", "uint8", "int8")  # GPTQModel packs into words of any size
V1, V2 = "with zero points stored less 1 (gptq_v1)", "with zero points as they are (gptq_v2)"


def _decode(parts: Parts) -> StoredTensor:
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
            zeros = _unpack_zeros(qzeros, index, bits, zero_shift)
            scale = scales[:, index].T[:, group_of]
            return multiply(codes - zeros[:, group_of], scale)

        return decode_rows

    is_v2 = parts.config.get("checkpoint_format") == "gptq_v2"
    return StoredTensor(
        parts.name,
        (outputs, inputs),
        f"GPTQ {bits} bits, group {group}",
        parts.stored,
        decoder(0 if is_v2 else 1),
        readings={V1: decoder(1)} if is_v2 else {V2: decoder(0)},
        remark=config_contradiction(parts.config, bits=bits, group_size=group),
    )


def _unpack_zeros(
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


PARTS = {
    "qweight": Part(".qweight", PACKED, ndim=2),
    "qzeros": Part(".qzeros", PACKED, ndim=2),
    "scales": Part(".scales", FLOATS, ndim=2),
    "g_idx": Part(".g_idx", INTEGERS, is_optional=True),
}
KINDS = (Kind(PARTS, "qweight", _decode),)
