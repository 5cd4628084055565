"""The frame of a kind of checkpoint: which tensors make a weight, and its rows decoded on demand.

A `Kind` lists the parts of a weight by their suffixes and dtypes; `Parts` are those of one weight,
`StoredTensor` is the weight decoded. Below it, codes that share words and bytes.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Read, Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.file import BadFileError, FileEntry
from quantlab.sources.tensor import Tensor, dtype_name
from quantlab.text import label

LONG_ROW = 2**16  # values; a longer row is decoded once, and not for every stretch of it
MAX_FAULT_CHARS = 250
MAX_SHAPES = 64  # whose indices are kept
RowIndex = NDArray[np.int64]  # numbers of rows
DecodeRows = Callable[[RowIndex], FloatArray]  # rows by number to values, (rows, columns)
Stored = tuple[Tensor, ...]  # all that a weight is stored in
Config = Mapping[str, Any]  # what config.json says of the quantization

# Names of dtypes.
WORDS, INTEGERS, BYTES = ("int32", "uint32"), ("int32", "int64"), ("uint8",)
FLOATS = ("float16", "bfloat16", "float32")
EXPONENTS = ("float8_e8m0fnu", "uint8")  # of powers of two, each in a byte


class MisfitError(ValueError):
    """Parts of a tensor that do not belong together, as the rest of a sentence."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor under the name that its original has, and of its shape.

    A row is an index of all axes but the last; a tensor of one dimension is one row.
    `read_elements` reads any stretch without whole rows, which may be long. `parts` hold all that
    is stored of it. `readings` are other known readings of the same words, `rearranged` those that
    put values in other places; `remark` says what is wrong with the file, `fault` why the tensor
    cannot be decoded. `is_dense` says that values are stored as they are, in no codes. Where others
    are seen in the same parts, `share` of them is this one's; `stored_names` are those of the
    tensors that it is put together from.
    """

    name: str
    shape: Shape
    dtype: str
    parts: tuple[Tensor, ...]
    decode_rows: DecodeRows
    read_elements: Read | None = None
    readings: Mapping[str, DecodeRows] = field(default_factory=dict)
    rearranged: Mapping[str, DecodeRows] = field(default_factory=dict)
    remark: str | None = None
    fault: str | None = None
    is_dense: bool = False
    share: float = 1.0
    stored_names: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the stored tensors that hold it."""
        return self.stored_names or (self.name,)

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def bits(self) -> int:
        """Number of bits as stored, of all parts."""
        return round(8 * self.share * sum(part.n_bytes for part in self.parts))

    def find_fault(self) -> str | None:
        """Return the reason why the tensor cannot be decoded, None where it can.

        Both its ends are decoded, which finds what a look at shapes does not.
        """
        if self.fault:
            return self.fault
        try:
            read = self.reader()
            read(0, 1), read(self.size - 1, self.size)
        except Exception as error:
            return describe_fault(error)
        return None

    def open(self) -> Tensor:
        """Return the decoded values as a tensor that other formats are measured on.

        Raises BadFileError where they cannot be decoded.
        """
        if fault := self.find_fault():
            raise BadFileError(fault)
        states = tuple(part.state for part in self.parts)
        state = None if None in states else (self.dtype, *states)
        return DecodedTensor(self.name, np.empty(0, np.float32), state, weight=self)

    def entry(self) -> FileEntry:
        """Return the entry of the weight in the list of its file."""
        n_bytes = self.bits // 8
        entry = FileEntry(self.name, self.shape, self.dtype, self.open, self.fault, n_bytes)
        return replace(entry, is_quantized=True, numpy_dtype=self.dtype)

    def sha256(self) -> str:
        """Return the sha256 of all parts as stored."""
        if len(self.parts) == 1:
            return self.parts[0].sha256()
        hashes = "".join(part.sha256() for part in self.parts)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def reader(self, decode_rows: DecodeRows | None = None, order: RowIndex | None = None) -> Read:
        """Return a function that reads elements ``start`` to ``stop``, flat in C order.

        Rows are decoded by `decode_rows`, in another reading than the tensor's own, and come in
        `order`; elements, where the tensor has one dimension.
        """
        decode = decode_rows or self.decode_rows
        if self.read_elements and decode is self.decode_rows and order is None:
            return self.read_elements
        width = row_width(self.shape)

        # Blocks of a tensor are read one after the other: without this a row of millions of values
        # would be decoded as a whole for each of its blocks.
        @lru_cache(maxsize=1)
        def decode_long_row(row: int) -> FloatArray:
            return decode(np.array([row])).reshape(-1)

        def read(start: int, stop: int) -> FloatArray:
            first, last = start // width, -(-stop // width)
            with np.errstate(all="ignore"):  # whoever reads the values refuses what is not finite
                if width > LONG_ROW and order is None and last - first == 1:
                    return decode_long_row(first)[start - first * width : stop - first * width]
                if order is not None and len(self.shape) < 2:
                    return decode(np.zeros(1, np.int64)).reshape(-1)[order[start:stop]]
                index = np.arange(first, last) if order is None else order[first:last]
                values = decode(index).reshape(-1)
            return values[start - first * width : stop - first * width]

        return read


@dataclass(frozen=True)
class DecodedTensor(Tensor):
    """The values of a weight that is stored in codes, decoded where they are read."""

    weight: StoredTensor = field(kw_only=True, repr=False)

    @property
    def shape(self) -> Shape:
        """Shape of the values."""
        return self.weight.shape

    @property
    def dtype(self) -> str:
        """What the values are stored in."""
        return self.weight.dtype

    @property
    def size(self) -> int:
        """Number of values."""
        return self.weight.size

    @property
    def n_bytes(self) -> int:
        """Number of bytes as stored, of all parts."""
        return self.weight.bits // 8

    @cached_property
    def _read(self) -> Read:
        return self.weight.reader()

    def stored(self, start: int, stop: int) -> FloatArray:
        """Return elements `start` to `stop`, decoded."""
        return self._read(start, min(stop, self.size))

    def sha256(self) -> str:
        """Return the sha256 of all parts as stored."""
        return self.weight.sha256()


@dataclass(frozen=True)
class Parts:
    """The tensors that one weight is stored in, by what they are, and the quantization's config.

    ``parts[key]`` is an array as stored.
    """

    name: str
    tensors: Mapping[str, Tensor]
    config: Config

    def __contains__(self, key: str) -> bool:
        """Say that a part is stored."""
        return key in self.tensors

    def __getitem__(self, key: str) -> NDArray[Any]:
        """Return the array of a part; raises MisfitError where there is none."""
        if key not in self.tensors:
            raise MisfitError(f"has no {key}")
        return self.tensors[key].array

    def get(self, key: str) -> NDArray[Any] | None:
        """Return the array of a part, None where there is none."""
        tensor = self.tensors.get(key)
        return tensor.array if tensor else None

    def dtype(self, key: str) -> str:
        """Return the name of the dtype of a part; raises MisfitError where there is none."""
        return dtype_name(self[key].dtype)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """All tensors."""
        return tuple(self.tensors.values())

    def require(
        self, key: str, dtypes: tuple[str, ...] | None = None, ndim: int | None = None
    ) -> None:
        """Raise MisfitError unless a part is stored, of one of `dtypes`, with `ndim` axes."""
        array = self[key]
        if dtypes and self.dtype(key) not in dtypes:
            raise MisfitError(f"has {key} of {array.dtype}, where {' or '.join(dtypes)} belongs")
        if ndim not in (None, array.ndim):
            shape = "no matrix" if ndim == 2 else f"not of {ndim} axes"
            raise MisfitError(f"has {key} of {list(array.shape)}, which is {shape}")

    def misfit(self, *keys: str, beside: str = "") -> MisfitError:
        """Return the error of parts, all by default, whose shapes do not fit, `beside` a fact."""
        shapes = [f"{key} of {list(self[key].shape)}" for key in keys or self.tensors]
        listed = " and ".join([", ".join(shapes[:-1]), shapes[-1]] if shapes[1:] else shapes)
        return MisfitError(f"has {listed}{beside and f' for {beside}'}, which do not fit")

    def weight(
        self, shape: Shape, dtype: str, decode_rows: DecodeRows, **further: Any
    ) -> StoredTensor:
        """Return the weight that is decoded from all parts, with `further` fields."""
        return StoredTensor(self.name, shape, dtype, self.stored, decode_rows, **further)


@dataclass(frozen=True)
class Part:
    """A tensor of a weight: its suffix, or several spellings of it, its dtypes, its axes."""

    suffix: str | tuple[str, ...]
    dtypes: tuple[str, ...] | None = None
    ndim: int | None = None
    is_optional: bool = False


Decode = Callable[[Parts], StoredTensor]


@dataclass(frozen=True)
class Kind:
    """Weights that are stored in parts ``STEM + suffix``.

    Each stem is recognised by its part `anchor`, if `accepts` does not refuse its parts; its
    original is called ``STEM + original``. `decode` gets parts whose dtypes and axes are checked;
    it raises MisfitError where shapes do not fit each other.
    """

    parts: Mapping[str, Part]
    anchor: str
    decode: Decode
    accepts: Callable[[Parts], bool] = lambda _: True
    original: str = ".weight"

    def find(self, tensors: Mapping[str, Tensor], config: Config) -> Iterator[StoredTensor]:
        """Yield the weights of this kind, decoded, or with the fault that they have."""
        for stem in self._stems(tensors):
            parts = Parts(f"{stem}{self.original}", dict(self._parts(tensors, stem)), config)
            if self.accepts(parts):
                yield decode_or_fault(parts, self._decode_checked)

    def _stems(self, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        for suffix in _spellings(self.parts[self.anchor]):
            yield from (name.removesuffix(suffix) for name in tensors if name.endswith(suffix))

    def _parts(self, tensors: Mapping[str, Tensor], stem: str) -> Iterator[tuple[str, Tensor]]:
        for key, part in self.parts.items():
            names = [f"{stem}{suffix}" for suffix in _spellings(part)]
            if tensor := next((tensors[name] for name in names if name in tensors), None):
                yield key, tensor

    def _decode_checked(self, parts: Parts) -> StoredTensor:
        for key, part in self.parts.items():
            if key in parts or not part.is_optional:
                parts.require(key, part.dtypes, part.ndim)
        return self.decode(parts)


def _spellings(part: Part) -> tuple[str, ...]:
    return (part.suffix,) if isinstance(part.suffix, str) else part.suffix


def decode_or_fault(parts: Parts, decode: Decode) -> StoredTensor:
    """Return a tensor, or one whose `fault` says why its parts make none."""
    try:
        tensor = decode(parts)
        if not tensor.size:
            raise MisfitError(f"is empty, its shape is {list(tensor.shape)}")
    except Exception as error:  # files hold anything: a fault costs one tensor, never the file
        return faulty_tensor(parts.name, describe_fault(error), parts=parts.stored)
    return tensor


def describe_fault(error: Exception) -> str:
    """Describe an error of decoding as the rest of a sentence, in one line."""
    is_sentence = isinstance(error, MisfitError)
    cause = str(error) if is_sentence else f"cannot be decoded ({type(error).__name__}: {error})"
    return label(" ".join(cause.split()), MAX_FAULT_CHARS)


def faulty_tensor(
    name: str, reason: str, dtype: str = "damaged", shape: Shape = (0,), parts: Stored = ()
) -> StoredTensor:
    """Return a tensor that cannot be decoded, for a reason."""
    fault = label(" ".join(reason.split()), MAX_FAULT_CHARS)

    def decode_rows(_: RowIndex) -> FloatArray:
        raise ValueError(fault)

    return StoredTensor(name, shape, dtype, parts, decode_rows, fault=fault)


def dense_tensor(tensor: Tensor, dtype: str | None = None) -> StoredTensor:
    """Wrap a tensor that is stored as it is, its dtype called `dtype`."""
    values = tensor.array.reshape(-1, row_width(tensor.shape)) if tensor.size else tensor.array

    def decode_rows(index: RowIndex) -> FloatArray:
        return take_rows(values, index).astype(np.float32)

    dtype = dtype or tensor.dtype
    return StoredTensor(
        tensor.name, tensor.shape, dtype, (tensor,), decode_rows, tensor.block, is_dense=True
    )


def row_width(shape: Shape) -> int:
    """Return the number of values in a row; a tensor of one dimension is one."""
    return shape[-1] if len(shape) > 1 else prod(shape)


def take_rows(array: NDArray[Any], index: RowIndex) -> NDArray[Any]:
    """Return rows of an array, consecutive ones as a view."""
    # Fancy indexing copies; rows that are asked for mostly follow each other.
    if index.size and index[-1] - index[0] + 1 == index.size and (np.diff(index) == 1).all():
        return array[int(index[0]) : int(index[-1]) + 1]
    return array[index]


def as_scales(stored: NDArray[Any]) -> NDArray[Any]:
    """Return scales as numbers: exponents of a byte each are powers of two."""
    return stored.view(ml_dtypes.float8_e8m0fnu) if stored.dtype == np.uint8 else stored


def compute_dtype(name: Any) -> np.dtype[Any]:
    """Return the dtype of a name, float32 of any but those of 16 bits."""
    return np.dtype(name if name in ("float16", "bfloat16") else "float32")


def multiply(steps: NDArray[Any], scales: NDArray[Any]) -> FloatArray:
    """Multiply whole numbers of up to 256 by scales, as in the dtype of the scales.

    A product is exact in float32 and rounded once, as it would be in float16, in which NumPy takes
    more than twice as long.
    """
    products = steps.astype(np.float32) * scales.astype(np.float32)
    return products.astype(scales.dtype, copy=False).astype(np.float32, copy=False)


def rows_of(read: Read, width: int) -> DecodeRows:
    """Return a function that decodes rows of `width` values by reading elements."""

    def decode_rows(index: RowIndex) -> FloatArray:
        if index.size and (np.diff(index) == 1).all():
            values = read(int(index[0]) * width, (int(index[-1]) + 1) * width)
            return values.reshape(-1, width)
        rows = [read(row * width, (row + 1) * width) for row in index.tolist()]
        return np.stack(rows) if rows else np.empty((0, width), np.float32)

    return decode_rows


def exact_ratio(numerator: int, denominator: int, misfit: MisfitError) -> int:
    """Return a quotient; raises `misfit` unless it is a whole number above 0."""
    if not denominator or numerator % denominator or not numerator:
        raise misfit
    return numerator // denominator


def group_size(parts: Parts, inputs: int, groups: int) -> int:
    """Return the inputs of a group, of which the last may be short; raises MisfitError.

    It is the one that the config states, if that fits; else inputs are divided evenly, unless that
    makes a size that no runtime has.
    """
    if not groups:
        raise parts.misfit()
    even = inputs // groups if inputs % groups == 0 else 0
    stated = parts.config.get("group_size")
    sizes = [stated] if type(stated) is int and stated > 0 else []
    sizes += (
        [even] if (even and even % 8 == 0) or groups == 1 else [*(2**k for k in range(4, 13)), even]
    )
    size = next((size for size in sizes if size and -(-inputs // size) == groups), None)
    if size is None:
        raise parts.misfit()
    return size


def largest_group(parts: Parts, key: str, inputs: int, groups: int) -> int:
    """Return the inputs of the largest group, by shapes; by the part `key` where they give none.

    Raises MisfitError where inputs do not make so many groups.
    """
    try:
        return min(group_size(parts, inputs, groups), inputs)
    except MisfitError:
        if key not in parts or not groups:
            raise
        index = group_index(parts, key, inputs, groups, wraps=True)
        return int(np.bincount(index % groups).max())


def group_index(
    parts: Parts, key: str, inputs: int, groups: int, *, wraps: bool = False
) -> NDArray[Any]:
    """Return the group of each input: as a part says, or in order where there is none.

    A group of ``-groups`` to -1 counts from the last where `wraps` says so. Raises MisfitError
    where inputs do not make so many groups, or where the part names others.
    """
    if key not in parts:
        return even_groups(inputs, group_size(parts, inputs, groups))
    index = parts[key]
    if index.shape != (inputs,) or index.min() < -groups * wraps or index.max() >= groups:
        raise MisfitError(f"has {key} of {list(index.shape)} that names no group of {groups}")
    return index


# A checkpoint has tens of thousands of weights of a few shapes.
@lru_cache(maxsize=MAX_SHAPES)
def even_groups(inputs: int, group: int) -> RowIndex:
    """Return the group of each input, in order, the last one short."""
    return np.arange(inputs) // group


def config_contradiction(config: Config, **decoded: Any) -> str | None:
    """Return a sentence where config.json states other settings than the tensors have."""
    sentences = [
        f"config.json says {key} {label(str(config[key]))}, the tensors {value}"
        for key, value in decoded.items()
        if key in config and config[key] not in (value, None, -1)
    ]
    return "; ".join(sentences) or None


def unpack_codes(words: NDArray[Any], bits: int, n: int) -> NDArray[np.int32]:
    """Unpack the first `n` codes of each row of unsigned words, lowest bits first, ``(rows, n)``.

    A row is a stream of bits: where a width does not divide a word, codes go on in the next.

    >>> unpack_codes(np.array([[0x87654321]], np.uint32), 4, 8)
    array([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=int32)
    """
    rows, columns = words.shape
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(rows, columns * words.itemsize)
    if bits == 8:
        return octets[:, :n].astype(np.int32)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (octets[:, :, None] >> shifts) & np.uint8(2**bits - 1)
        return codes.reshape(rows, octets.shape[1] * 8 // bits)[:, :n].astype(np.int32)
    stream = np.unpackbits(octets, axis=1, bitorder="little", count=n * bits)
    weights = 1 << np.arange(bits, dtype=np.int32)
    return (stream.reshape(rows, n, bits) * weights).sum(axis=2, dtype=np.int32)


def slice_words(words: NDArray[Any], bits: int, codes: RowIndex) -> tuple[NDArray[Any], int]:
    """Return the columns of words that hold the `codes` of each row, and their first code."""
    # As many codes as a word has bits fill as many words as a code has: a place to cut.
    word = 8 * words.itemsize
    first, last = int(codes.min()) // word * word, int(codes.max()) // word * word + word
    return words[:, first * bits // word : last * bits // word], first


def unpack_nibbles(octets: NDArray[np.uint8], *, high_first: bool = False) -> NDArray[np.uint8]:
    """Unpack the two codes of each byte, ``(..., 2 n)``."""
    low, high = octets & 15, octets >> 4
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*octets.shape[:-1], -1)


FP4 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)  # by code
