"""Files of llama.cpp, decoded by the package gguf."""

from pathlib import Path
from typing import Any

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.gguf import GgufTensor, contents
from quantlab.sources.names import Architecture
from quantlab.sources.stored.file import StoredFile
from quantlab.sources.stored.tensor import StoredTensor, Which, dense, take


class GgufFile(StoredFile):
    """A GGUF file; each tensor has a type of its own."""

    format = "gguf"
    needs = ("gguf", "ml_dtypes")

    @property
    def file_name(self) -> str:
        """The name of the file, which mostly says what it is."""
        return Path(self.path).name

    def architecture(self) -> Architecture:
        """Return what the file says of its model."""
        return contents(self.path).architecture

    def _stored(self) -> list[StoredTensor]:
        return [_stored(each) for each in contents(self.path).tensors if each.is_decodable]


def _stored(tensor: GgufTensor) -> StoredTensor:
    if tensor.dtype is not None:
        return dense(tensor.open(), tensor.kind)
    part = tensor.raw()
    octets = part.array

    def rows(which: Which) -> FloatArray:
        return _dequantize(take(octets, which), tensor.kind)

    def elements(start: int, stop: int) -> FloatArray:
        first, last = start // tensor.block, -(-stop // tensor.block)
        flat = octets.reshape(-1, tensor.block_bytes)[first:last]
        values = _dequantize(flat, tensor.kind).reshape(-1)
        return values[start - first * tensor.block : stop - first * tensor.block]

    return StoredTensor(tensor.name, tensor.shape, tensor.kind, (part,), rows, elements)


def _dequantize(octets: Any, kind: str) -> FloatArray:
    import gguf

    with np.errstate(all="ignore"):  # whoever reads the values refuses what is not finite
        values = gguf.quants.dequantize(octets, gguf.GGMLQuantizationType[kind])
    return values.astype(np.float32, copy=False)
