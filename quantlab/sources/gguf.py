"""Files of llama.cpp, read and decoded by the package gguf."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources import hub
from quantlab.sources.file import (
    PLAIN_DTYPES,
    BadFileError,
    File,
    FileEntry,
    MappedArray,
    file_state,
)
from quantlab.sources.kinds.decoding import (
    StoredTensor,
    dense_tensor,
    faulty_tensor,
    row_width,
    rows_of,
)
from quantlab.sources.names import Architecture, Family
from quantlab.sources.pairing import StoredFile
from quantlab.sources.tensor import FileState, Tensor, map_values

INTEGERS = ("I8", "I16", "I32", "I64")
UNDECODED = ("Q8_1", "Q8_K", "Q1_0")  # types of intermediate results, or too new for gguf
MAX_FIELD_VALUES = 2**12  # of an array; a vocabulary is longer
FIXED_BYTES, INFO_BYTES = 24, 24  # of a header; of a tensor's description, without name and shape
SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
SCALE, INPUT_SCALE = ".scale", ".input_scale"  # of a weight, and of what is multiplied by it
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # before the name of a tensor that was reshaped


@dataclass(frozen=True)
class GgufTensor(MappedArray):
    """A tensor as its file describes it; `block` values are stored together, in `block_bytes`.

    `fault` says why it cannot be read; `scale` is one of the whole tensor, or of each expert.
    """

    block: int = 1
    block_bytes: int = 0
    fault: str | None = None
    scale: "GgufTensor | None" = None

    @property
    def is_quantized(self) -> bool:
        """True where values are stored in codes."""
        return self.dtype is None

    def open_bytes(self) -> Tensor:
        """Map the bytes of each block."""
        shape = self.n_bytes // self.block_bytes, self.block_bytes
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
    def family(self) -> Family:
        """What the file says of its model."""
        return Family(read_contents(self.path).architecture)

    def _entries(self) -> Iterator[FileEntry]:
        for tensor in read_contents(self.path).tensors:
            reason = tensor.fault
            if tensor.is_quantized and not reason:
                reason = f"{tensor.kind} is quantized already"
            elif tensor.kind in INTEGERS:
                reason = f"{tensor.kind} is no floating-point type"  # a part of the keys of runs
            elif tensor.name.endswith(INPUT_SCALE):
                reason = "it is a scale of activations"
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
            if tensor.kind not in INTEGERS and not tensor.name.endswith(INPUT_SCALE):
                yield _decode(tensor)


def _decode(tensor: GgufTensor) -> StoredTensor:
    if tensor.fault or tensor.kind in UNDECODED:
        reason = tensor.fault or f"is of type {tensor.kind}, which cannot be decoded"
        return faulty_tensor(tensor.name, reason, tensor.kind, tensor.shape)
    if not tensor.is_quantized:
        return dense_tensor(tensor.open(), tensor.kind)
    part, scale = tensor.open_bytes(), tensor.scale.open() if tensor.scale else None
    size = prod(tensor.shape)
    factors = np.ones(1, np.float32) if scale is None else scale.array.reshape(-1)

    def read_elements(start: int, stop: int) -> FloatArray:
        first, last = start // tensor.block, -(-stop // tensor.block)
        values = _dequantize(part.array[first:last], tensor.kind).reshape(-1)
        values = values[start - first * tensor.block : stop - first * tensor.block]
        if scale is None:
            return values
        return values * factors[np.arange(start, stop) // (size // factors.size)]

    decode_rows = rows_of(read_elements, row_width(tensor.shape))
    parts = (part,) if scale is None else (part, scale)
    return StoredTensor(tensor.name, tensor.shape, tensor.kind, parts, decode_rows, read_elements)


def _dequantize(octets: Any, kind: str) -> FloatArray:
    import gguf

    with np.errstate(all="ignore"):  # whoever reads the values refuses what is not finite
        values = gguf.quants.dequantize(octets, gguf.GGMLQuantizationType[kind])
    return values.astype(np.float32, copy=False)


def read_contents(path: str) -> GgufContents:
    """Return the contents of a GGUF file and of those it is split into, read once per state."""
    return _read_contents(tuple(file_state(shard) for shard in _find_shards(path)))


def list_shards(path: str) -> list[str]:
    """List the files of a split one, of which any stands for all."""
    match = SHARD.fullmatch(Path(path).name)
    if not match:
        return [path]
    numbers = range(1, int(match["count"]) + 1)
    names = [f"{match['stem']}-{n:05}-of-{match['count']}.gguf" for n in numbers]
    return [str(Path(path).with_name(name)) for name in names]


def _find_shards(path: str) -> list[str]:
    shards = list_shards(path)
    for shard in shards:
        hub.fetch_beside(shard)
    missing = [Path(shard).name for shard in shards if not Path(shard).is_file()]
    if missing and len(shards) > 1:
        raise BadFileError(f"is one of {len(shards)} files, of which {missing[0]} does not exist")
    return shards


@lru_cache  # the reader takes seconds where there is a vocabulary
def _read_contents(shards: tuple[FileState, ...]) -> GgufContents:
    readers = [open_reader(shard[0]) for shard in shards]
    tensors = [
        _describe(file, reader, info)
        for file, reader in zip(shards, readers, strict=True)
        for info in reader.infos
    ]
    return GgufContents(_attach_scales(tensors), _read_architecture(readers[0]))


def open_reader(path: str) -> Any:
    """Open a file with the package gguf; raises what it raises, or ValueError at an early end."""
    import gguf

    class Reader(gguf.GGUFReader):
        """A reader of the list of tensors, whose types it need not know.

        It refuses arrays beyond the end of the file.
        """

        # gguf's own would go on reading a declared length that the file does not have, for ever.
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            values = super()._get(offset, dtype, count, override_order)
            if len(values) < count:
                raise ValueError("it ends early")
            return values

        # gguf's own refuses the file for one tensor of a type that it does not know.
        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            self.infos = [
                TensorInfo(
                    str(bytes(name), encoding="utf-8"),
                    tuple(dims.tolist()[::-1]),
                    int(number[0]),
                    start_offs + int(offset[0]),
                )
                for _, name, _, dims, number, offset in (field.parts for field in fields)
            ]

    with np.errstate(all="ignore"):
        reader = Reader(path)
    if reader.endianess == gguf.GGUFEndian.BIG:
        raise BadFileError("is big-endian: convert it with gguf's gguf-convert-endian first")
    return reader


class TensorInfo(NamedTuple):
    """What a GGUF file says of a tensor."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int


def _describe(file: FileState, reader: Any, info: TensorInfo) -> GgufTensor:
    import gguf

    name, shape, number, offset = info
    try:
        ggml_type = gguf.GGMLQuantizationType(number)
    except ValueError:
        unknown = f"is of type {number}, which is not known"
        return GgufTensor(file, name, shape, f"type {number}", None, offset, 0, fault=unknown)
    kind, dtype = ggml_type.name, PLAIN_DTYPES.get(ggml_type.name)
    block, size = gguf.GGML_QUANT_SIZES[ggml_type]
    n_bytes = prod(shape) // block * size
    fault: str | None = None
    if shape and shape[-1] % block:
        fault = f"has rows of {shape[-1]} values, no multiple of the {block} of {kind}"
    elif offset + n_bytes > file[1]:
        fault = "ends beyond the end of the file, which is cut off or damaged"
    stated = _read_field(reader, f"{ORIGINAL_SHAPE}{name}")
    if isinstance(stated, list) and prod(stated) == prod(shape):
        shape = tuple(int(n) for n in stated)
    return GgufTensor(file, name, shape, kind, dtype, offset, n_bytes, block, size, fault)


def _attach_scales(tensors: list[GgufTensor]) -> list[GgufTensor]:
    """Give each weight in codes the scale that stands beside it, which is no tensor of its own."""
    by_name = {tensor.name: tensor for tensor in tensors}
    scales = {}
    for tensor in tensors:
        scale = by_name.get(f"{tensor.name.removesuffix('.weight')}{SCALE}")
        if scale and tensor.is_quantized and prod(scale.shape) in (1, tensor.shape[0]):
            scales[tensor.name] = scale
    used = {scale.name for scale in scales.values()}
    return [
        replace(tensor, scale=scales.get(tensor.name))
        for tensor in tensors
        if tensor.name not in used
    ]


def _read_architecture(reader: Any) -> Architecture:
    name = str(_read_field(reader, "general.architecture") or "")
    heads, kv_heads = (
        _read_field(reader, f"{name}.attention.{key}") for key in ("head_count", "head_count_kv")
    )
    return Architecture(name, _head_counts(heads), _head_counts(kv_heads))


def read_fields(path: str) -> dict[str, Any]:
    """Read the metadata of a GGUF file, but arrays of more than `MAX_FIELD_VALUES`."""
    fields = open_reader(path).fields.items()
    return {key: field.contents() for key, field in fields if len(field.data) <= MAX_FIELD_VALUES}


class HeaderSize(NamedTuple):
    """Bytes of each field of a GGUF file, of its list of tensors, and what values are aligned to.

    `tensors` are the bytes of the values of each tensor.
    """

    fields: dict[str, int]
    infos: int
    alignment: int
    tensors: dict[str, int]

    def file_size(self, field_bytes: int, tensor_bytes: Iterable[int]) -> int:
        """Return the size of a file with fields and values of so many bytes, and these names."""
        header = self.align(FIXED_BYTES + field_bytes + self.infos)
        return header + sum(map(self.align, tensor_bytes))

    def align(self, n_bytes: int) -> int:
        """Round a number of bytes up to the alignment."""
        return -(-n_bytes // self.alignment) * self.alignment


def read_header_size(path: str) -> HeaderSize:
    """Return the sizes of the parts of a GGUF file, of one in shards as if it were not split."""
    first, *others = (open_reader(shard) for shard in _find_shards(path))
    fields = {
        key: sum(part.nbytes for part in field.parts)
        for key, field in first.fields.items()
        if not key.startswith(("GGUF.", "split."))  # of the fixed part, and of shards
    }
    infos = sum(
        INFO_BYTES + len(info.name.encode()) + 8 * len(info.shape)
        for reader in (first, *others)
        for info in reader.infos
    )
    tensors = {tensor.name: tensor.n_bytes for tensor in read_contents(path).tensors}
    return HeaderSize(fields, infos, first.alignment, tensors)


def field_bytes(key: str) -> int:
    """Return the bytes of a field that holds a uint32."""
    return 8 + len(key.encode()) + 4 + 4


def _head_counts(value: Any) -> tuple[int, ...]:
    """Return a number of heads, or that of each block."""
    counts = value if isinstance(value, list) else [value]
    return tuple(counts) if all(isinstance(count, int) for count in counts) else ()


def _read_field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return field.contents() if field else None
