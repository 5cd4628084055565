"""Blocks of a tensor that share a scale, and pieces that cover a stretch of it.

To add a way to share scales: a class with `layout` here, and a yaml in ``conf/block/``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray

Read = Callable[[int, int], FloatArray]  # elements `start` to `stop` of a tensor, flat in C order
Shape = tuple[int, ...]

PART = 2**16  # values of blocks that are read in one go
BATCH = 2**21  # values of several blocks whose parameters are chosen together
SPAN = 2**18  # elements that a part of scattered blocks may span
MAX_WHOLE_BLOCK = 2**12  # values of a block that is always read whole
INPUT = "input"  # the axis of groups along which the inputs of a layer lie, if a file tells


def read_flat(values: FloatArray) -> Read:
    """Return a function that reads values that are in memory, flat."""
    return lambda start, stop: values[start:stop]


class UnfitError(ValueError):
    """A tensor that a format cannot hold, and leaves out; the message says why."""


class Piece(NamedTuple):
    """A grid of blocks, or of parts of them: `rows` times `blocks`, of `width` values each.

    The first value is element `start`, a row begins `stride` elements after the last; `first` is
    the number of the first block.
    """

    start: int
    rows: int
    stride: int
    blocks: int
    width: int
    first: int

    @property
    def stop(self) -> int:
        """The element after the last."""
        return self.start + (self.rows - 1) * self.stride + self.blocks * self.width

    def view(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return flat values from `start` to `stop` as an array ``(rows, blocks, width)``."""
        strides = tuple(n * values.itemsize for n in (self.stride, self.width, 1))
        shape = self.rows, self.blocks, self.width
        return np.lib.stride_tricks.as_strided(values, shape, strides)


@dataclass(frozen=True)
class Batch:
    """Blocks numbered ``first`` to ``first + blocks``, and the pieces that hold them.

    A block has `count` values; several blocks have `BATCH` at most in all.
    """

    first: int
    blocks: int
    count: int
    pieces: list[Piece]


@dataclass(frozen=True)
class Layout:
    """The blocks of a tensor of `size` values: consecutive `width` values of each `row` of it.

    The last block of a row may be short. Rows have blocks of their own, or, `shared`, the n-th
    blocks of all rows are one, as channels of a later axis are.
    """

    size: int
    row: int
    width: int
    shared: bool = False

    @property
    def per_row(self) -> int:
        """Number of blocks of a row."""
        return -(-self.row // self.width)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return self.per_row if self.shared else self.per_row * (self.size // self.row)

    @property
    def chosen_beforehand(self) -> bool:
        """Whether parameters are chosen in a pass before the round trip.

        They are if there is one block, or if blocks are too large or too scattered to be read whole
        as the round trip meets them.
        """
        return self.shared or self.width > MAX_WHOLE_BLOCK or self.n_blocks == 1

    def number(self, element: Any) -> Any:
        """Return the number of the block that holds an element, or those of an array of them."""
        row, within = divmod(element, self.row)
        return within // self.width + (0 if self.shared else row * self.per_row)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield pieces that cover elements `start` to `stop`.

        They end with these, or, where blocks are read whole, with the blocks they are in.
        """
        first, last = start // self.row, (stop - 1) // self.row
        head, tail = start - first * self.row, stop - last * self.row
        if first == last:
            yield from self._of_row(first, head, tail)
            return
        if head:
            yield from self._of_row(first, head, self.row)
            first += 1
        whole = last + 1 if tail == self.row else last
        if whole > first:
            yield from self._of_rows(first, whole - first)
        if tail < self.row:
            yield from self._of_row(last, 0, tail)

    def _of_rows(self, row: int, rows: int) -> Iterator[Piece]:
        """Yield the full blocks of whole rows, and their short ones."""
        full, rest = divmod(self.row, self.width)
        for blocks, width, block in ((full, self.width, 0), (1, rest, full)):
            if blocks and width:
                yield self._piece(row, block, rows, blocks, width)

    def _of_row(self, row: int, start: int, stop: int) -> Iterator[Piece]:
        """Yield a part of one row: a block that it begins in, full ones, one that it ends in."""
        block, within = divmod(start, self.width)
        if not self.chosen_beforehand:
            start, within = block * self.width, 0
            stop = min(-(-stop // self.width) * self.width, self.row)
        if within:
            end = min(stop, (block + 1) * self.width)
            yield self._piece(row, block, 1, 1, end - start, within)
            start, block = end, block + 1
        full, rest = divmod(stop - start, self.width)
        if full:
            yield self._piece(row, block, 1, full, self.width)
        if rest:
            yield self._piece(row, block + full, 1, 1, rest)

    def _piece(
        self, row: int, block: int, rows: int, blocks: int, width: int, within: int = 0
    ) -> Piece:
        start = row * self.row + block * self.width + within
        first = block if self.shared else row * self.per_row + block
        return Piece(start, rows, self.row, blocks, width, first)

    def batches(self) -> Iterator[Batch]:
        """Yield all blocks in batches."""
        if self.shared:
            yield from self._batches_of_rows(0, self.size // self.row)
        else:
            for row in range(self.size // self.row):
                yield from self._batches_of_rows(row, 1)

    def _batches_of_rows(self, row: int, rows: int) -> Iterator[Batch]:
        full, rest = divmod(self.row, self.width)
        at_once = max(1, min(PART // self.width, BATCH // (rows * self.width)))
        spans = [(n, min(at_once, full - n), self.width) for n in range(0, full, at_once)]
        for block, blocks, width in [*spans, *([(full, 1, rest)] if rest else ())]:
            pieces = list(self._parts(row, rows, block, blocks, width))
            yield Batch(pieces[0].first, blocks, rows * width, pieces)

    def _parts(self, row: int, rows: int, block: int, blocks: int, width: int) -> Iterator[Piece]:
        """Yield the parts of a batch, each of about `PART` values."""
        at_once = max(1, min(PART // (blocks * width), SPAN // self.row))
        for first in range(row, row + rows, at_once):
            n = min(at_once, row + rows - first)
            for within in range(0, width, PART):
                part = min(PART, width - within)
                yield self._piece(first, block, n, blocks, part, within)


@dataclass(frozen=True)
class Block(ABC):
    """A way to share scales; `scale` names the type they are stored in."""

    scale: str = field(default="float32", kw_only=True)
    name: ClassVar[str]

    @property
    def block_size(self) -> int | None:
        """Number of values in a block, if it is the same for every tensor."""
        return None

    @abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """Return the blocks of a tensor; raises UnfitError if it has none of this kind."""


class PerTensor(Block):
    """One scale a tensor."""

    name: ClassVar[str] = "tensor"

    def layout(self, shape: Shape) -> Layout:
        """Return the one block."""
        return _contiguous(prod(shape), prod(shape))


@dataclass(frozen=True)
class PerChannel(Block):
    """One scale for each index of an axis; a tensor of fewer than two dimensions is one block."""

    axis: int = 0
    name: ClassVar[str] = "channel"

    def __post_init__(self) -> None:
        """Raise ValueError unless `axis` is a whole number."""
        if type(self.axis) is not int:
            raise ValueError(f"block.axis must be a whole number, got {self.axis!r}")

    def layout(self, shape: Shape) -> Layout:
        """Return a block for each index of the axis, counted from the end where it is negative."""
        size = prod(shape)
        if len(shape) < 2:
            return _contiguous(size, size)
        axis = find_axis(self.axis, shape)
        inner = prod(shape[axis + 1 :])
        row = inner * shape[axis]
        return _contiguous(size, inner) if row == size else Layout(size, row, inner, shared=True)


@dataclass(frozen=True)
class Head(Block):
    """One scale for each of `heads` equal parts of the last axis, as of a cache of K or V.

    Of four axes the second is that of heads if it is as long, ``(batch, heads, tokens, dim)``, else
    the third, ``(batch, tokens, heads, dim)``.
    """

    heads: int
    name: ClassVar[str] = "head"

    def __post_init__(self) -> None:
        """Raise ValueError unless `heads` is a whole number of 1 or more."""
        if type(self.heads) is not int or self.heads < 1:
            raise ValueError(f"block.heads must be a whole number of 1 or more, got {self.heads!r}")

    def layout(self, shape: Shape) -> Layout:
        """Return a block for each head; raises UnfitError where they do not divide the axis."""
        if len(shape) == 4 and self.heads in shape[1:3]:
            return PerChannel(axis=1 + shape[1:3].index(self.heads)).layout(shape)
        width = shape[-1] if shape else 1
        if width % self.heads:
            raise UnfitError(
                f"block.heads={self.heads} does not divide the last axis of its shape {list(shape)}"
            )
        return Layout(prod(shape), width, width // self.heads, shared=True)


@dataclass(frozen=True)
class Group(Block):
    """One scale for `size` consecutive values of a row, a tensor flattened from axis 1 on.

    With an `axis` a row is what lies along it, as of the tensor with this axis moved to the end.
    Groups do not cross rows, and the last of a row may be short. A tensor of one dimension is one
    row.
    """

    size: int = 32
    axis: int | str | None = None
    name: ClassVar[str] = "group"

    def __post_init__(self) -> None:
        """Raise ValueError unless `size` is a whole number of 1 or more, and `axis` is known."""
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"block.size must be a whole number of 1 or more, got {self.size!r}")
        if self.axis not in (None, INPUT) and type(self.axis) is not int:
            raise ValueError(
                f"block.axis must be a whole number, {INPUT}, or null for rows, got {self.axis!r}"
            )

    @property
    def block_size(self) -> int:
        """Number of values in a group."""
        return self.size

    def along(self, input_axis: int | None) -> "Group":
        """Return the groups of a tensor whose inputs lie along an axis; None is not known."""
        return replace(self, axis=input_axis) if self.axis == INPUT else self

    def moved_axis(self, shape: Shape) -> int | None:
        """Return the axis to move to the end before a tensor is divided, None of the last."""
        if self.axis in (None, INPUT) or len(shape) < 2:
            return None
        axis = find_axis(self.axis, shape)
        return None if axis == len(shape) - 1 else axis

    def row_length(self, shape: Shape) -> int:
        """Return the number of values in a row; raises UnfitError where the axis is none."""
        if len(shape) < 2 or self.axis in (None, INPUT):
            return row_length(shape)
        return shape[find_axis(self.axis, shape)]

    def layout(self, shape: Shape) -> Layout:
        """Return the groups of each row, in the order of the tensor with the axis moved."""
        row = self.row_length(shape)
        if row % self.size:
            return Layout(prod(shape), row, min(self.size, row))
        return _contiguous(prod(shape), self.size)


def row_length(shape: Shape) -> int:
    """Return the length of a row of a tensor, which is flattened from axis 1 on."""
    return prod(shape[1:] if len(shape) > 1 else shape)


def find_axis(axis: Any, shape: Shape) -> int:
    """Return an axis counted from 0; raises UnfitError where a shape does not have it."""
    if not -len(shape) <= axis < len(shape):
        raise UnfitError(
            f"block.axis={axis} does not exist in its shape {list(shape)}: "
            f"choose one from {-len(shape)} to {len(shape) - 1}"
        )
    return int(axis % len(shape))


@lru_cache
def _contiguous(size: int, width: int) -> Layout:
    """Return blocks that follow each other, as those of one row."""
    return Layout(size, size, width)
