"""gpt-oss: experts in MXFP4, 32 e2m1 codes and an exponent, the lower half of a byte first.

``W = code * 2^(exponent - 127)``. The original has the last two axes the other way round:
``[experts, columns, rows]``.
"""

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import BYTES, FP4, Kind, Part, Parts, RowIndex, StoredTensor

BLOCK = 32


def _decode(parts: Parts) -> StoredTensor:
    import ml_dtypes

    blocks, scales = parts["blocks"], parts["scales"]
    if blocks.ndim != 4 or blocks.shape[-1] != BLOCK // 2 or scales.shape != blocks.shape[:-1]:
        raise parts.misfit()
    experts, outputs, groups, _ = blocks.shape
    inputs = groups * BLOCK

    def decode_rows(index: RowIndex, *, low_first: bool = True) -> FloatArray:
        expert, column = index // inputs, index % inputs
        block, place = column // BLOCK, column % BLOCK
        octets = blocks[expert, :, block, place // 2]
        is_low = (place % 2 == 0) == low_first
        codes = np.where(is_low[:, None], octets & 15, octets >> 4)
        powers = scales[expert, :, block].view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        return FP4[codes] * powers

    return StoredTensor(
        parts.name,
        (experts, inputs, outputs),
        "MXFP4",
        parts.stored,
        decode_rows,
        rearranged={
            "with the halves of bytes swapped": lambda index: decode_rows(index, low_first=False)
        },
    )


def _is_mxfp4(parts: Parts) -> bool:
    return "scales" in parts or parts["blocks"].dtype == np.uint8


PARTS = {"blocks": Part("_blocks", BYTES), "scales": Part("_scales", BYTES)}
KINDS = (Kind(PARTS, "blocks", _decode, _is_mxfp4, original=""),)
