"""Quantize and reconstruct any stretch of one tensor, whatever shares a scale.

`BlockQuantizer` is the one place where the parameters of blocks are chosen. Small blocks are read
whole as the round trip meets them; the parameters of others are chosen beforehand. Codes and values
do not depend on where a stretch begins and ends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import PART, Batch, Layout, Piece, Read
from quantlab.formats.element import (
    BlockParams,
    Bounds,
    FloatArray,
    NotFiniteError,
    Quantized,
    code_dtype,
    per_value,
    select_params,
)
from quantlab.formats.format import Format
from quantlab.formats.ranges import ALL, NUMPY, BlockValues, Range, Reductions, merge_bounds
from quantlab.formats.uniform import code_range

T = TypeVar("T")
MapFn = Callable[[Callable[[Any], Any], list[Any]], list[Any]]  # like map, on threads or not


class ScaleStats(NamedTuple):
    """The scales of blocks: their number, their ends, how many saturated or vanished."""

    n: int
    smallest: float
    largest: float
    saturated: int
    vanished: int

    @classmethod
    def of(cls, blocks: BlockParams, index: Any = ...) -> "ScaleStats":
        """Summarize the scales of all blocks, or of those at an index."""
        scale = np.ravel(blocks.params.scale[index])
        if not scale.size:
            return NO_SCALES
        saturated, vanished = (
            int(np.count_nonzero(mask[index])) for mask in (blocks.saturated, blocks.vanished)
        )
        return cls(scale.size, float(scale.min()), float(scale.max()), saturated, vanished)

    def __or__(self, other: "ScaleStats") -> "ScaleStats":
        """Summarize the scales of both."""
        return ScaleStats(
            self.n + other.n,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
            self.saturated + other.saturated,
            self.vanished + other.vanished,
        )


NO_SCALES = ScaleStats(0, np.inf, -np.inf, 0, 0)


@dataclass(frozen=True)
class BlockLayoutParams:
    """A layout, and the parameters of its blocks from number `first` on, one entry each."""

    layout: Layout
    first: int
    params: Any


def map_in_order(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Call a function with each item, without threads."""
    return [function(item) for item in items]


class BlockQuantizer:
    """Takes any stretch of one tensor to codes and back."""

    def __init__(
        self,
        form: Format,
        layout: Layout,
        read: Read,
        absmax: float,
        bounds: Bounds | None = None,
        map_fn: MapFn = map_in_order,
        reductions: Reductions = NUMPY,
        static: BlockParams | None = None,
    ) -> None:
        """Choose the parameters of blocks that are not read whole.

        `read` returns elements of the tensor, of which `absmax` is the largest magnitude; types of
        scales that store nothing of the tensor do without. `bounds` are those of a tensor of one
        block, if they are known; `static` are parameters that were chosen for another tensor.
        """
        self.form, self.layout, self.read, self.reductions = form, layout, read, reductions
        self._bounds = None if form.element.needs_min_magnitude else bounds  # which lack it
        self.store = lambda scale: form.scale_type.store(scale, absmax)
        self._chosen = static
        if static is None and layout.chosen_beforehand:
            self._chosen = self.choose_all(map_fn)

    def choose_all(self, map_fn: MapFn) -> BlockParams:
        """Choose the parameters of all blocks, unless they have been."""
        if self._chosen is not None:
            return self._chosen
        batches = list(self.layout.batches())
        if len(batches) == 1:
            return self._choose_batch(batches[0], map_fn)
        return _concatenate(map_fn(lambda batch: self._choose_batch(batch, map_in_order), batches))

    def _choose_batch(self, batch: Batch, map_fn: MapFn) -> BlockParams:
        def map_parts(function: Callable[[FloatArray], T], parts: slice = ALL) -> list[T]:
            return map_fn(lambda piece: function(self._read_blocks(piece)), batch.pieces[parts])

        values = BlockValues(batch.count, map_parts, self.reductions, len(batch.pieces))
        return self._choose(values, self._bounds if self.layout.n_blocks == 1 else None)

    def _read_blocks(self, piece: Piece) -> FloatArray:
        """Read a piece, a row a block."""
        x = piece.view(self.read(piece.start, piece.stop))
        return np.moveaxis(x, 1, 0).reshape(piece.blocks, -1) if self.layout.shared else x[0]

    def _choose(self, values: BlockValues, bounds: Bounds | None = None) -> BlockParams:
        """Choose the parameters of blocks by all their values; raises NotFiniteError."""
        element = self.form.element
        if bounds is None:
            parts = values.map_parts(
                lambda x: self.reductions.bounds(x, element.needs_min_magnitude)
            )
            bounds = merge_bounds(parts)
        absmax = bounds.absmax
        if not np.isfinite(absmax).all():
            raise NotFiniteError
        chosen_range = cast("Range", self.form.range)  # of a format that is opened
        covered = chosen_range.choose(bounds, values, element, self.store)
        blocks = element.fit(covered, self.store)
        empty = (blocks.params.scale == 0) & (absmax > 0)  # also where the range chosen is 0
        return blocks._replace(vanished=blocks.vanished | empty)

    def choose(self, x: FloatArray) -> BlockParams:
        """Choose the parameters of blocks ``(..., values)``; raises NotFiniteError."""
        values = BlockValues(x.shape[-1], lambda function, _=ALL: [function(x)], self.reductions)
        return self._choose(values)

    @property
    def chosen_params(self) -> Any:
        """The parameters that were chosen beforehand, as they are where there is one block."""
        return self._chosen.params if self._chosen else None

    @property
    def chosen_scales(self) -> ScaleStats:
        """The scales that were chosen beforehand."""
        return ScaleStats.of(self._chosen) if self._chosen else NO_SCALES

    def block_params(self, start: int, stop: int) -> tuple[BlockLayoutParams, ScaleStats]:
        """Choose the parameters of the blocks of a stretch; summarize the scales that begin there.

        Blocks whose parameters were chosen beforehand are returned as they are, without scales.
        """
        if self._chosen:
            return BlockLayoutParams(self.layout, 0, self._chosen.params), NO_SCALES
        scales = NO_SCALES
        pieces = list(self.layout.pieces(start, stop))
        chosen = [self._piece_params(piece)[0] for piece in pieces]
        for piece, blocks in zip(pieces, chosen, strict=True):
            scales |= self._begun_scales(piece, blocks, range(start, stop))
        numbers = np.concatenate([np.ravel(piece.first + self._numbers(piece)) for piece in pieces])
        # Pieces come as they are cut, full blocks before short ones; the loops count blocks.
        order = np.argsort(numbers)
        fields = zip(*(blocks.params for blocks in chosen), strict=True)
        joined = (np.concatenate([*map(np.ravel, field)])[order] for field in fields)
        params = type(chosen[0].params)(*joined)
        return BlockLayoutParams(self.layout, self.layout.number(start), params), scales

    def round_trip(self, start: int, stop: int) -> tuple[Quantized, ScaleStats]:
        """Take elements `start` to `stop` to codes and back; summarize the scales begun there."""
        size = stop - start
        codes: Any = np.empty(size, code_dtype(self.form.n_bits))
        x_hat = np.empty(size, np.float32)
        clipped, scales = None, NO_SCALES
        for piece, part in self._pieces(start, stop):
            blocks, x = self._piece_params(piece)
            quantized = self.form.element.round_trip(x, per_value(blocks.params))
            _require_codes(quantized.codes, self.form.n_bits)
            scales |= self._begun_scales(piece, blocks, part)
            _write_piece(codes, quantized.codes, piece, start)
            _write_piece(x_hat, quantized.x_hat, piece, start)
            if quantized.clipped is not None:
                clipped = np.zeros(size, bool) if clipped is None else clipped
                _write_piece(clipped, quantized.clipped, piece, start)
        return Quantized(codes, x_hat, clipped), scales

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Piece, range]]:
        """Yield the pieces of a stretch, small enough for the cache, and the part they cover."""
        for first in range(start, stop, PART):
            part = range(first, min(first + PART, stop))
            yield from ((piece, part) for piece in self.layout.pieces(part.start, part.stop))

    def _piece_params(self, piece: Piece) -> tuple[BlockParams, FloatArray]:
        """Return the parameters of a piece's blocks, ``(rows, blocks)``, and its values."""
        x = piece.view(self.read(piece.start, piece.stop))
        if self._chosen is None:
            return self.choose(x), x
        numbers = piece.first + self._numbers(piece)
        params = select_params(self._chosen.params, numbers)
        return BlockParams(
            params, self._chosen.saturated[numbers], self._chosen.vanished[numbers]
        ), x

    def _numbers(self, piece: Piece) -> NDArray[np.intp]:
        """Return the numbers of a piece's blocks from its first on, ``(rows, blocks)``."""
        rows = 0 if self.layout.shared else np.arange(piece.rows)[:, None] * self.layout.per_row
        return rows + np.arange(piece.blocks)

    def _begun_scales(self, piece: Piece, blocks: BlockParams, part: range) -> ScaleStats:
        """Summarize the scales of the blocks that begin in a part, unless chosen beforehand."""
        if self._chosen is not None:
            return NO_SCALES
        if piece.start >= part.start and piece.stop <= part.stop:
            return ScaleStats.of(blocks)
        rows, columns = np.arange(piece.rows)[:, None], np.arange(piece.blocks)
        begins = piece.start + rows * piece.stride + columns * piece.width
        return ScaleStats.of(blocks, (begins >= part.start) & (begins < part.stop))


def _require_codes(codes: Any, n_bits: int) -> None:
    """Raise ValueError if an element has codes beyond its width, which would not be counted."""
    qmin, qmax = code_range(n_bits)
    smallest, largest = int(codes.min()), int(codes.max())
    if smallest < qmin or largest > qmax:
        raise ValueError(
            f"the mode has codes from {smallest} to {largest}, and those of {n_bits} bits are from "
            f"{qmin} to {qmax}: shift them, or give it the width that it has"
        )


def _concatenate(batches: list[BlockParams]) -> BlockParams:
    params, saturated, vanished = zip(*batches, strict=True)
    joined = type(params[0])(*(np.concatenate(field) for field in zip(*params, strict=True)))
    return BlockParams(joined, np.concatenate(saturated), np.concatenate(vanished))


def _write_piece(target: np.ndarray[Any, Any], values: Any, piece: Piece, start: int) -> None:
    """Write the values of a piece into a stretch that begins at `start`."""
    if piece.rows == 1 or piece.blocks * piece.width == piece.stride:
        flat = values.reshape(-1)
        low, high = max(piece.start, start), min(piece.stop, start + target.size)
        target[low - start : high - start] = flat[low - piece.start : high - piece.start]
    else:
        inside = target[piece.start - start : piece.stop - start]
        piece.view(inside)[:] = values
