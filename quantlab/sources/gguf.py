"""Files of llama.cpp, read and decoded by the package gguf."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.file import (
    BadFileError,
    File,
    FileEntry,
    FileState,
    MappedArray,
    file_state,
    map_values,
)
from quantlab.sources.kinds.decoding import RowIndex, StoredTensor, dense_tensor, take_rows
from quantlab.sources.names import Architecture
from quantlab.sources.pairing import StoredFile
from quantlab.sources.tensor import Tensor

INTEGERS = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
UNDECODED = ("Q8_1", "Q8_K", "Q1_0")  # types of intermediate results, or too new for gguf


@dataclass(frozen=True)
class GgufTensor(MappedArray):
    """A tensor as its file describes it; `block` values are stored together, in `block_bytes`."""

    block: int
    block_bytes: int

    @property
    def is_quantized(self) -> bool:
        """True where values are stored in codes."""
        return self.dtype is None

    def open_bytes(self) -> Tensor:
        """Map the bytes of each row."""
        row_bytes = self.shape[-1] // self.block * self.block_bytes
        shape = prod(self.shape[:-1]), row_bytes
        return map_values(self.name, np.uint8, shape, self.file, self.offset)


class GgufContents(NamedTuple):
    """The tensors of a GGUF file, and the model's family."""

    tensors: list[GgufTensor]
    architecture: Architecture


class Gguf(File):
    """A GGUF file; tensors that are quantized already are left out."""

    format = "gguf"
    needs = ("gguf", "ml_dtypes")

    @property
    def architecture(self) -> Architecture:
        """The model's family."""
        return read_contents(self.path).architecture

    def _entries(self) -> Iterator[FileEntry]:
        for tensor in read_contents(self.path).tensors:
            reason = None
            if tensor.is_quantized:
                reason = f"{tensor.kind} is quantized already"
            elif tensor.kind in INTEGERS:
                reason = f"{tensor.kind} is no floating-point type"
            yield tensor.entry(reason, is_quantized=tensor.is_quantized)


class GgufFile(StoredFile):
    """A GGUF file; each tensor has a type of its own."""

    format = "gguf"
    needs = ("gguf", "ml_dtypes")

    @property
    def file_name(self) -> str:
        """Name of the file, which mostly says what it is."""
        return Path(self.path).name

    @property
    def architecture(self) -> Architecture:
        """The model's family."""
        return read_contents(self.path).architecture

    def _decode(self) -> Iterator[StoredTensor]:
        for tensor in read_contents(self.path).tensors:
            if tensor.kind not in (*INTEGERS, *UNDECODED):
                yield _decode(tensor)


def _decode(tensor: GgufTensor) -> StoredTensor:
    if not tensor.is_quantized:
        return dense_tensor(tensor.open(), tensor.kind)
    part = tensor.open_bytes()
    octets = part.array

    def decode_rows(index: RowIndex) -> FloatArray:
        return _dequantize(take_rows(octets, index), tensor.kind)

    def read_elements(start: int, stop: int) -> FloatArray:
        first, last = start // tensor.block, -(-stop // tensor.block)
        blocks = octets.reshape(-1, tensor.block_bytes)[first:last]
        values = _dequantize(blocks, tensor.kind).reshape(-1)
        return values[start - first * tensor.block : stop - first * tensor.block]

    return StoredTensor(tensor.name, tensor.shape, tensor.kind, (part,), decode_rows, read_elements)


def _dequantize(octets: Any, kind: str) -> FloatArray:
    import gguf

    with np.errstate(all="ignore"):  # whoever reads the values refuses what is not finite
        values = gguf.quants.dequantize(octets, gguf.GGMLQuantizationType[kind])
    return values.astype(np.float32, copy=False)


def read_contents(path: str) -> GgufContents:
    """Return the contents of a GGUF file, read once per state of the file."""
    return _read_contents(file_state(path))


@lru_cache  # the reader takes seconds where there is a vocabulary
def _read_contents(state: FileState) -> GgufContents:
    import gguf

    class Reader(gguf.GGUFReader):
        """A reader that refuses arrays beyond the end of the file."""

        # gguf's own would go on reading a declared length that the file does not have, for ever.
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            values = super()._get(offset, dtype, count, override_order)
            if len(values) < count:
                raise ValueError("it ends early")
            return values

    path, *_ = state
    with np.errstate(all="ignore"):
        reader = Reader(path)
    if reader.endianess == gguf.GGUFEndian.BIG:
        raise BadFileError("is big-endian: convert it with gguf's gguf-convert-endian first")
    for tensor in reader.tensors:
        if tensor.data_offset < reader.data_offset:
            raise ValueError(f"{tensor.name} begins before the data")
    tensors = [_describe(state, tensor) for tensor in reader.tensors]
    return GgufContents(tensors, _read_architecture(reader))


def _describe(file: FileState, tensor: Any) -> GgufTensor:
    import gguf
    import ml_dtypes

    dtypes = {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        **{kind: np.dtype(dtype) for kind, dtype in INTEGERS.items()},
    }
    kind, shape = tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1])
    block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    if shape and shape[-1] % block:
        raise BadFileError(
            f"has rows of {shape[-1]} values in {tensor.name}, no multiple of the {block} of {kind}"
        )
    offset, n_bytes = int(tensor.data_offset), prod(shape) // block * size
    return GgufTensor(
        file, tensor.name, shape, kind, dtypes.get(kind), offset, n_bytes, block, size
    )


def _read_architecture(reader: Any) -> Architecture:
    name = str(_read_field(reader, "general.architecture") or "")
    heads, kv_heads = (
        _read_field(reader, f"{name}.attention.{key}") for key in ("head_count", "head_count_kv")
    )
    return Architecture(name, _head_counts(heads), _head_counts(kv_heads))


def _head_counts(value: Any) -> tuple[int, ...]:
    """Return a number of heads, or that of each block."""
    counts = value if isinstance(value, list) else [value]
    return tuple(counts) if all(isinstance(count, int) for count in counts) else ()


def _read_field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return field.contents() if field else None
