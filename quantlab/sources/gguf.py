"""Files of llama.cpp."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.file import BadFileError, File, FileEntry, file_state, mapped, mapped_entry
from quantlab.sources.kinds.decoding import StoredTensor, Which, dense, take
from quantlab.sources.names import Architecture
from quantlab.sources.pairing import StoredFile
from quantlab.sources.tensor import Tensor

INTEGERS = ("I8", "I16", "I32", "I64")
NO_FLOAT = "no floating-point type"
UNKNOWN = ("Q8_1", "Q8_K", "Q1_0")  # types of intermediate results, or too new for gguf


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as its file describes it; `dtype` is None where it is quantized, or of integers.

    `block` values are stored together, in `block_bytes`.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: np.dtype[Any] | None
    offset: int
    block: int
    block_bytes: int

    @property
    def is_decodable(self) -> bool:
        """Whether it holds real numbers, in codes that gguf decodes or in none."""
        return self.kind not in (*INTEGERS, *UNKNOWN)

    @property
    def n_bytes(self) -> int:
        """The size as stored."""
        return prod(self.shape) // self.block * self.block_bytes

    def open(self) -> Tensor:
        """Map values that are stored as they are."""
        return mapped(self.name, self.dtype, self.shape, self.path, self.offset)

    def raw(self) -> Tensor:
        """Map the bytes of each row."""
        row_bytes = self.shape[-1] // self.block * self.block_bytes
        shape = prod(self.shape[:-1]), row_bytes
        return mapped(self.name, np.uint8, shape, self.path, self.offset)


class Contents(NamedTuple):
    """What a GGUF file holds."""

    tensors: list[GgufTensor]
    architecture: Architecture


class Gguf(File):
    """A GGUF file; tensors that are quantized already are left out."""

    format = "gguf"
    needs = ("gguf", "ml_dtypes")

    def architecture(self) -> Architecture:
        """Return what the file says of its model."""
        return contents(self.path).architecture

    def _entries(self) -> Iterator[FileEntry]:
        for each in contents(self.path).tensors:
            quantized = each.dtype is None and each.kind not in INTEGERS
            reason = f"{each.kind} is {'quantized already' if quantized else NO_FLOAT}"
            yield mapped_entry(
                each.name,
                each.shape,
                each.kind,
                each.dtype,
                reason,
                each.path,
                each.offset,
                each.n_bytes,
                is_quantized=quantized,
            )


def contents(path: str) -> Contents:
    """Return what a GGUF file holds."""
    return _contents(file_state(path))


@lru_cache
def _contents(state: tuple[str, int, int]) -> Contents:
    """Read a GGUF file once per state: its reader takes seconds where there is a vocabulary."""
    import gguf

    class Reader(gguf.GGUFReader):  # it would read arrays that the file does not have, for ever
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
    for each in reader.tensors:
        if each.data_offset < reader.data_offset:
            raise ValueError(f"{each.name} begins before the data")
    return Contents([_tensor(path, each) for each in reader.tensors], _architecture(reader))


def _tensor(path: str, tensor: Any) -> GgufTensor:
    import gguf
    import ml_dtypes

    dtypes = {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
    }
    kind, shape = tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1])
    block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    if shape and shape[-1] % block:
        raise BadFileError(
            f"has rows of {shape[-1]} values in {tensor.name}, no multiple of the {block} of {kind}"
        )
    offset = int(tensor.data_offset)
    return GgufTensor(path, tensor.name, shape, kind, dtypes.get(kind), offset, block, size)


def _architecture(reader: Any) -> Architecture:
    name = str(_value(reader, "general.architecture") or "")
    heads, kv_heads = (
        _value(reader, f"{name}.attention.{key}") for key in ("head_count", "head_count_kv")
    )
    return Architecture(name, _counts(heads), _counts(kv_heads))


def _counts(value: Any) -> tuple[int, ...]:
    """Return a number of heads, or that of each block."""
    counts = value if isinstance(value, list) else [value]
    return tuple(counts) if all(isinstance(each, int) for each in counts) else ()


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return field.contents() if field else None


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
