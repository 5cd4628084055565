"""GPTQ: codes along the inputs, lowest bits first.

``W[o, i] = (q[i, o] - z[g_idx[i], o]) * s[g_idx[i], o]``. Version 1 of the format, which is meant
unless ``checkpoint_format`` is gptq_v2, stores zero points less 1: it is taken from all in a word
at once, so that a zero point of 0 borrows from the next.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
    INTEGERS,
    WORDS,
    Config,
    MisfitError,
    Rows,
    StoredTensor,
    Tensors,
    Which,
    bases,
    contradiction,
    guarded,
    parts_of,
    require_parts,
    unpack,
    whole,
    words_of,
)
from quantlab.sources.tensor import Tensor

METHODS = ("gptq",)
KEYS = ("qweight", "qzeros", "scales", "g_idx")
V1, V2 = "with zero points stored less 1 (gptq_v1)", "with zero points as they are (gptq_v2)"


def find(tensors: Tensors, config: Config) -> Iterator[StoredTensor]:
    """Yield the tensors whose words hold several inputs each."""
    for base in bases(tensors, ".qweight"):
        parts, name = parts_of(tensors, base, KEYS), f"{base}.weight"
        yield guarded(name, parts, _stored, config)


def _stored(name: str, parts: dict[str, Tensor], config: Config) -> StoredTensor:
    qweight, qzeros, scales = require_parts(parts, qweight=WORDS, qzeros=WORDS, scales=FLOATS)
    if not qweight.ndim == qzeros.ndim == scales.ndim == 2:
        raise MisfitError("has words or scales that are no matrix")
    found = (
        f"words of {list(qweight.shape)}, zero points of {list(qzeros.shape)} and scales of "
        f"{list(scales.shape)}"
    )
    groups, outputs = scales.shape
    bits = whole(32 * qzeros.shape[1], outputs, found)
    if qweight.shape[1] != outputs or qzeros.shape[0] != groups or not 2 <= bits <= 8:
        raise MisfitError(f"has {found}, which do not fit")
    inputs = whole(32 * qweight.shape[0], bits, found)
    if not groups:
        raise MisfitError(f"has {found}, which do not fit")
    group, of = -(-inputs // groups), _groups(parts, inputs, groups)
    v2 = config.get("checkpoint_format") == "gptq_v2"

    def rows(shift: int) -> Rows:
        def decode(which: Which) -> FloatArray:
            codes = unpack(qweight[:, which].T, bits, inputs)
            zeros = _zeros(qzeros, which, bits, shift)
            values = (codes - zeros[:, of]).astype(scales.dtype) * scales[:, which].T[:, of]
            return values.astype(np.float32)

        return decode

    return StoredTensor(
        name,
        (outputs, inputs),
        f"GPTQ {bits} bits, group {group}",
        tuple(parts.values()),
        rows(0 if v2 else 1),
        readings={V1: rows(1)} if v2 else {V2: rows(0)},
        remark=contradiction(config, bits=bits, group_size=group),
    )


def _groups(parts: dict[str, Tensor], inputs: int, groups: int) -> NDArray[Any]:
    """Return the group of each input."""
    if "g_idx" not in parts:
        return np.arange(inputs) // whole(inputs, groups, f"{groups} groups of {inputs} inputs")
    (of,) = require_parts(parts, g_idx=INTEGERS)
    if of.shape != (inputs,) or int(of.min()) < -groups or int(of.max()) >= groups:
        raise MisfitError(f"has a g_idx of {list(of.shape)} that names no group of {groups}")
    return of


def _zeros(qzeros: NDArray[Any], which: Which, bits: int, more: int) -> NDArray[Any]:
    """Return the zero points of some outputs, each `more` than stored, ``(outputs, groups)``."""
    held, first = words_of(qzeros, bits, which)
    words = np.ascontiguousarray(held).view(np.uint32)
    n = words.shape[1] * 32 // bits
    if 32 % bits == 0:
        of_each = sum(more << place for place in range(0, 32, bits))
        return unpack(words + np.uint32(of_each), bits, n).T[which - first]
    return (unpack(words, bits, n).T[which - first] + more) % 2**bits
