"""AWQ, as AutoAWQ's gemm version writes it: 4-bit codes along the outputs, in an order of its own.

``W[o, i] = (q[i, o] - z[i // g, o]) * s[i // g, o]``; of the eight codes of a word the lowest bits
are output 0, then 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
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
    whole,
)
from quantlab.sources.tensor import Tensor

METHODS = ("awq",)
BITS = 4
PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where in its word each output is
LINEAR = np.arange(8)


def find(tensors: Tensors, config: Config) -> Iterator[StoredTensor]:
    """Yield the tensors whose words hold several outputs each."""
    for base in bases(tensors, ".qweight"):
        parts = parts_of(tensors, base, ("qweight", "qzeros", "scales"))
        if f"{base}.g_idx" not in tensors and _is_awq(parts, config):
            yield guarded(f"{base}.weight", parts, _stored, config)


def _is_awq(parts: dict[str, Tensor], config: Config) -> bool:
    if "scales" not in parts:
        return config.get("quant_method") in METHODS
    return parts["qweight"].shape[-1:] != parts["scales"].shape[-1:]


def _stored(name: str, parts: dict[str, Tensor], config: Config) -> StoredTensor:
    qweight, qzeros, scales = require_parts(parts, qweight=WORDS, qzeros=WORDS, scales=FLOATS)
    if not qweight.ndim == qzeros.ndim == scales.ndim == 2:
        raise MisfitError("has words or scales that are no matrix")
    inputs, outputs = qweight.shape[0], scales.shape[1]
    found = f"words of {list(qweight.shape)} and scales of {list(scales.shape)}"
    group = whole(inputs, scales.shape[0], found)
    if qweight.shape[1] * 8 != outputs or qzeros.shape != (scales.shape[0], outputs // 8):
        raise MisfitError(f"has {found} and zero points of {list(qzeros.shape)}, which do not fit")
    of = np.arange(inputs) // group

    def rows(places: NDArray[Any], shift: int = 0) -> Rows:
        def decode(which: Which) -> FloatArray:
            word, place = which // 8, 4 * places[which % 8]
            codes = (qweight[:, word] >> place) & 15
            zeros = ((qzeros[:, word] >> place) & 15) + shift
            values = (codes - zeros[of]).astype(scales.dtype) * scales[:, which][of]
            return np.ascontiguousarray(values.T, np.float32)

        return decode

    return StoredTensor(
        name,
        (outputs, inputs),
        f"AWQ {BITS} bits, group {group}",
        tuple(parts.values()),
        rows(PLACES),
        readings={"with zero points stored less 1": rows(PLACES, 1)},
        rearranged={"with codes in the order of outputs": rows(LINEAR)},
        remark=contradiction(config, bits=BITS, group_size=group),
    )
