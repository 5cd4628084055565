"""gpt-oss: experts in MXFP4, 32 e2m1 codes and an exponent, the lower half of a byte first.

The original has the last two axes the other way round: ``[experts, columns, rows]``.
"""

from collections.abc import Iterator

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    BYTES,
    FP4,
    Config,
    MisfitError,
    StoredTensor,
    Tensors,
    Which,
    bases,
    guarded,
    require_parts,
)
from quantlab.sources.tensor import Tensor

METHODS = ("mxfp4",)
BLOCK = 32


def find(tensors: Tensors, config: Config) -> Iterator[StoredTensor]:
    """Yield the tensors that are stored as blocks and scales."""
    for name in bases(tensors, "_blocks"):
        keys = {key: f"{name}_{key}" for key in ("blocks", "scales")}
        parts = {key: tensors[each] for key, each in keys.items() if each in tensors}
        if "scales" in parts or parts["blocks"].dtype in BYTES:
            yield guarded(name, parts, _stored, config)


def _stored(name: str, parts: dict[str, Tensor], _: Config) -> StoredTensor:
    import ml_dtypes

    blocks, scales = require_parts(parts, blocks=BYTES, scales=BYTES)
    if blocks.ndim != 4 or blocks.shape[-1] != BLOCK // 2 or scales.shape != blocks.shape[:-1]:
        raise MisfitError(
            f"has blocks of {list(blocks.shape)} and scales of {list(scales.shape)}, which do not "
            "fit"
        )
    experts, outputs, groups, _ = blocks.shape
    inputs = groups * BLOCK

    def rows(which: Which, *, low_first: bool = True) -> FloatArray:
        expert, column = which // inputs, which % inputs
        block, place = column // BLOCK, column % BLOCK
        octets = blocks[expert, :, block, place // 2]
        low = (place % 2 == 0) == low_first
        codes = np.where(low[:, None], octets & 15, octets >> 4)
        powers = scales[expert, :, block].view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        return FP4[codes] * powers

    swapped = {"with the halves of bytes swapped": lambda which: rows(which, low_first=False)}
    shape = experts, inputs, outputs
    return StoredTensor(name, shape, "MXFP4", tuple(parts.values()), rows, rearranged=swapped)
