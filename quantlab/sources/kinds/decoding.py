"""A tensor that a file stores in codes, decoded row by row."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Read, Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.tensor import Tensor
from quantlab.text import label

LONG = 2**16  # values of a row that is decoded once, and not for every stretch of it
Which = NDArray[np.int64]  # rows of a tensor, by their numbers
Rows = Callable[[Which], FloatArray]  # those rows, decoded, an array ``(rows, columns)``


@dataclass(frozen=True)
class StoredTensor:
    """A tensor under the name that its original has, and of its shape.

    A row is an index of all axes but the last; a tensor of one dimension is one row. `elements`
    reads any stretch without whole rows, which may be long. `parts` hold all that is stored of it.
    `readings` are other known readings of the same words, `rearranged` those that put values in
    other places; `remark` says what is wrong with the file, `fault` why the tensor cannot be
    decoded.
    """

    name: str
    shape: Shape
    dtype: str
    parts: tuple[Tensor, ...]
    rows: Rows
    elements: Read | None = None
    readings: Mapping[str, Rows] = field(default_factory=dict)
    rearranged: Mapping[str, Rows] = field(default_factory=dict)
    remark: str | None = None
    fault: str | None = None
    is_dense: bool = False  # whether it is stored as it is, in no codes

    @property
    def size(self) -> int:
        """The number of values."""
        return prod(self.shape)

    @property
    def bits(self) -> int:
        """The number of bits that are stored."""
        return 8 * sum(part.size * part.itemsize for part in self.parts)

    def sha256(self) -> str:
        """Return the sha256 of all that is stored."""
        if len(self.parts) == 1:
            return self.parts[0].sha256()
        hashes = "".join(part.sha256() for part in self.parts)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def reader(self, rows: Rows, order: Which | None = None) -> Read:
        """Return what reads elements, flat in C order, with rows in some other `order`."""
        if self.elements and rows is self.rows and order is None:
            return self.elements
        width = row_width(self.shape)

        @lru_cache(maxsize=1)
        def row(n: int) -> FloatArray:
            return rows(np.array([n])).reshape(-1)

        def read(start: int, stop: int) -> FloatArray:
            first, last = start // width, -(-stop // width)
            if width > LONG and order is None and last - first == 1:
                with np.errstate(all="ignore"):
                    return row(first)[start - first * width : stop - first * width]
            if order is not None and len(self.shape) < 2:
                return rows(np.zeros(1, np.int64)).reshape(-1)[order[start:stop]]
            which = np.arange(first, last) if order is None else order[first:last]
            with np.errstate(all="ignore"):  # whoever reads the values refuses what is not finite
                values = rows(which).reshape(-1)
            return values[start - first * width : stop - first * width]

        return read


def row_width(shape: Shape) -> int:
    """Return the number of values in a row; a tensor of one dimension is one."""
    return shape[-1] if len(shape) > 1 else prod(shape)


def dense(tensor: Tensor, dtype: str | None = None) -> StoredTensor:
    """Return a tensor that is stored as it is."""
    values = tensor.array.reshape(-1, row_width(tensor.shape)) if tensor.size else tensor.array

    def rows(which: Which) -> FloatArray:
        return take(values, which).astype(np.float32)

    dtype = dtype or tensor.dtype
    return StoredTensor(
        tensor.name, tensor.shape, dtype, (tensor,), rows, tensor.block, is_dense=True
    )


def _span(which: Which) -> Any:
    """Return consecutive rows as a slice, which copies nothing."""
    if which.size and which[-1] - which[0] + 1 == which.size and (np.diff(which) == 1).all():
        return slice(int(which[0]), int(which[-1]) + 1)
    return which


def take(array: NDArray[Any], which: Which) -> NDArray[Any]:
    """Return some rows of a stored array."""
    return array[_span(which)]


Tensors = Mapping[str, Tensor]
Kinds = tuple[str, ...]  # dtypes
WORDS, INTEGERS, BYTES = ("int32", "uint32"), ("int32", "int64"), ("uint8",)
FLOATS = ("float16", "bfloat16", "float32")
Config = Mapping[str, Any]  # of the quantization, from config.json


def parts_of(tensors: Tensors, base: str, keys: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors ``BASE.KEY`` that there are."""
    return {key: tensors[f"{base}.{key}"] for key in keys if f"{base}.{key}" in tensors}


def bases(tensors: Tensors, suffix: str) -> list[str]:
    """Return what stands before a suffix in the names that end with it."""
    return [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]


class MisfitError(ValueError):
    """Parts of a tensor that do not belong together, as the rest of a sentence."""


def guarded(
    name: str,
    parts: dict[str, Tensor],
    stored: Callable[[str, dict[str, Tensor], Config], StoredTensor],
    config: Config,
) -> StoredTensor:
    """Return a tensor, or one whose `fault` says why its parts make none.

    Both its ends are decoded, which finds what a look at shapes does not.
    """
    try:
        found = stored(name, parts, config)
        if not found.size:
            raise MisfitError(f"is empty, its shape is {list(found.shape)}")
        read = found.reader(found.rows)
        read(0, 1), read(found.size - 1, found.size)
    except MisfitError as reason:
        return _damaged(name, parts, str(reason))
    except Exception as stumble:  # a decoder stumbles over what nobody thought of
        return _damaged(name, parts, f"cannot be decoded ({type(stumble).__name__}: {stumble})")
    return found


def _damaged(name: str, parts: Mapping[str, Tensor], fault: str) -> StoredTensor:
    def rows(_: Which) -> FloatArray:
        raise ValueError(fault)

    fault = label(" ".join(fault.split()), 250)
    return StoredTensor(name, (0,), "damaged", tuple(parts.values()), rows, fault=fault)


def require_parts(parts: Mapping[str, Tensor], **kinds: Kinds) -> list[NDArray[Any]]:
    """Return the arrays of some parts, of one of some dtypes each.

    Raises MisfitError where one is missing or of another dtype.
    """
    for key, dtypes in kinds.items():
        if key not in parts:
            raise MisfitError(f"has no {key}")
        if parts[key].dtype not in dtypes:
            raise MisfitError(
                f"has {key} of {parts[key].dtype}, where {' or '.join(dtypes)} belongs"
            )
    return [parts[key].array for key in kinds]


def whole(n: int, of: int, what: str) -> int:
    """Return ``n / of``; raises MisfitError unless it is a whole number above 0."""
    if not of or n % of or not n:
        raise MisfitError(f"has {what}, which do not go with each other")
    return n // of


def contradiction(config: Config, **found: Any) -> str | None:
    """Say where config.json says something else than the tensors; None where it does not."""
    said = [
        f"config.json says {key} {label(str(config[key]))}, the tensors {value}"
        for key, value in found.items()
        if key in config and config[key] not in (value, None, -1)
    ]
    return "; ".join(said) or None


Codes = NDArray[np.int32]


def unpack(words: NDArray[Any], bits: int, n: int) -> Codes:
    """Return the first `n` codes of each row of unsigned words, ``(rows, n)``.

    A row is a stream of bits: where a width does not divide a word, codes go on in the next.

    >>> unpack(np.array([[0x87654321]], np.uint32), 4, 8)
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


def words_of(words: NDArray[Any], bits: int, which: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
    """Return the columns of words that hold some codes of each row, and which code is their first.

    32 codes fill as many words as they have bits, whatever the width.
    """
    first, last = int(which.min()) // 32 * 32, int(which.max()) // 32 * 32 + 32
    return words[:, first * bits // 32 : last * bits // 32], first


def nibbles(octets: NDArray[np.uint8], *, high_first: bool = False) -> NDArray[np.uint8]:
    """Return the two codes of each byte, ``(..., 2 n)``."""
    low, high = octets & 15, octets >> 4
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*octets.shape[:-1], -1)


FP4 = np.array(  # e2m1, by its code; OCP MX 1.0, table 5
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32
)
