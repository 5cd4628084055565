"""A tensor through its format: any stretch of it to codes and back, whatever shares a scale."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import PART, Batch, Layout, Piece, Read
from quantlab.formats.element import (
    Fit,
    FloatArray,
    NotFiniteError,
    Trip,
    code_dtype,
    per_value,
)
from quantlab.formats.format import Format
from quantlab.formats.ranges import ALL, NUMPY, Reductions, Values, union
from quantlab.formats.uniform import code_range

T = TypeVar("T")
Run = Callable[[Callable[[Any], Any], list[Any]], list[Any]]  # like map, on threads or not


class Scales(NamedTuple):
    """The scales of some blocks: how many, their ends, and how many saturated or vanished."""

    n: int
    least: float
    greatest: float
    saturated: int
    vanished: int

    @classmethod
    def of(cls, fit: Fit, which: Any = ...) -> "Scales":
        """Return the scales of a fit, or of some of its blocks."""
        scale = np.ravel(fit.params.scale[which])
        if not scale.size:
            return cls(0, np.inf, -np.inf, 0, 0)
        ends = float(scale.min()), float(scale.max())
        lost = (int(np.count_nonzero(each[which])) for each in (fit.saturated, fit.vanished))
        return cls(scale.size, *ends, *lost)

    def __or__(self, other: "Scales") -> "Scales":
        """Return the scales of both."""
        return Scales(
            self.n + other.n,
            min(self.least, other.least),
            max(self.greatest, other.greatest),
            self.saturated + other.saturated,
            self.vanished + other.vanished,
        )


NO_SCALES = Scales(0, np.inf, -np.inf, 0, 0)


class Coder:
    """Takes any stretch of one tensor to codes and back.

    What comes out does not depend on where a stretch begins and ends: small blocks are looked at
    whole where they stand, the parameters of others are chosen beforehand.
    """

    def __init__(
        self,
        form: Format,
        layout: Layout,
        read: Read,
        absmax: float,
        run: Run,
        reduce: Reductions = NUMPY,
    ) -> None:
        """Choose the parameters of blocks that are not looked at whole.

        `read` returns elements of the tensor, of which `absmax` is the largest magnitude; types of
        scales that store nothing of the tensor do without.
        """
        self.form, self.layout, self.read, self.reduce = form, layout, read, reduce
        self.store = lambda scale: form.scale_type.store(scale, absmax)
        self.fit = self._survey(run) if layout.surveyed else None

    def _survey(self, run: Run) -> Fit:
        batches = list(self.layout.batches())
        if len(batches) == 1:
            return self._fit_batch(batches[0], run)
        fits = run(lambda batch: self._fit_batch(batch, one_by_one), batches)
        return _concatenate(fits)

    def _fit_batch(self, batch: Batch, run: Run) -> Fit:
        def each(function: Callable[[FloatArray], T], of: slice = ALL) -> list[T]:
            return run(lambda piece: function(self._blocks_of(piece)), batch.pieces[of])

        return self.choose(Values(batch.count, each, self.reduce, len(batch.pieces)))

    def _blocks_of(self, piece: Piece) -> FloatArray:
        """Return the values of a piece, a row a block."""
        x = piece.view(self.read(piece.start, piece.stop))
        return np.moveaxis(x, 1, 0).reshape(piece.blocks, -1) if self.layout.shared else x[0]

    def choose(self, values: Values) -> Fit:
        """Choose the parameters of blocks by all their values; raises NotFiniteError."""
        element = self.form.element
        found = union(values.each(lambda x: self.reduce.bounds(x, element.least)))
        absmax = found.absmax
        if not np.isfinite(absmax).all():
            raise NotFiniteError
        chosen = self.form.range.choose(found, values, element, self.store)
        fit = element.fit(chosen, self.store)
        empty = (fit.params.scale == 0) & (absmax > 0)  # also where the range chosen is 0
        return fit._replace(vanished=fit.vanished | empty)

    @property
    def known_params(self) -> Any:
        """The parameters that were chosen beforehand; there are some where there is one block."""
        return self.fit.params if self.fit else None

    @property
    def known_scales(self) -> Scales:
        """The scales that were chosen beforehand."""
        return Scales.of(self.fit) if self.fit else NO_SCALES

    def fitted(self, start: int, stop: int) -> tuple[int, Any, Scales]:
        """Return the parameters of the blocks of a stretch, one entry each, chosen in place.

        Before them the number of the first, after them what scales begin in the stretch.
        """
        first, scales = self.layout.number(start), NO_SCALES
        pieces = list(self.layout.pieces(start, stop))
        fits = [self._fitted(piece)[0] for piece in pieces]
        for piece, fit in zip(pieces, fits, strict=True):
            scales |= self._new_scales(piece, fit, range(start, stop))
        params = [fit.params for fit in fits]
        if len(pieces) == 1:
            return first, type(params[0])(*map(np.ravel, params[0])), scales
        numbers = [np.ravel(piece.first + self._numbers(piece)) for piece in pieces]
        order = np.argsort(np.concatenate(numbers))
        joined = (
            np.concatenate([*map(np.ravel, each)])[order] for each in zip(*params, strict=True)
        )
        return first, type(params[0])(*joined), scales

    def round_trip(self, start: int, stop: int) -> tuple[Trip, Scales]:
        """Take elements `start` to `stop` to codes and back; say what scales begin there."""
        size = stop - start
        codes: Any = np.empty(size, code_dtype(self.form.n_bits))
        x_hat = np.empty(size, np.float32)
        clipped, scales = None, NO_SCALES
        for piece, part in self._pieces(start, stop):
            fit, x = self._fitted(piece)
            trip = self.form.element.round_trip(x, per_value(fit.params))
            _require_codes(trip.codes, self.form.n_bits)
            scales |= self._new_scales(piece, fit, part)
            _put(codes, trip.codes, piece, start)
            _put(x_hat, trip.x_hat, piece, start)
            if trip.clipped is not None:
                clipped = np.zeros(size, bool) if clipped is None else clipped
                _put(clipped, trip.clipped, piece, start)
        return Trip(codes, x_hat, clipped), scales

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Piece, range]]:
        """Yield the pieces of a stretch, small enough for the cache, and the part they cover."""
        for first in range(start, stop, PART):
            part = range(first, min(first + PART, stop))
            yield from ((piece, part) for piece in self.layout.pieces(part.start, part.stop))

    def _fitted(self, piece: Piece) -> tuple[Fit, FloatArray]:
        """Return the fit of a piece's blocks, an array ``(rows, blocks)``, and its values."""
        x = piece.view(self.read(piece.start, piece.stop))
        if self.fit is None:
            return self.choose(
                Values(piece.width, lambda function, _=ALL: [function(x)], self.reduce)
            ), x
        return _select(self.fit, piece.first + self._numbers(piece)), x

    def _numbers(self, piece: Piece) -> NDArray[np.intp]:
        """Return the numbers of a piece's blocks from its first on, ``(rows, blocks)``."""
        rows = 0 if self.layout.shared else np.arange(piece.rows)[:, None] * self.layout.per_row
        return rows + np.arange(piece.blocks)

    def _new_scales(self, piece: Piece, fit: Fit, part: range) -> Scales:
        """Return the scales of the blocks that begin in a part, none where they are known."""
        if self.fit is not None:
            return NO_SCALES
        if piece.start >= part.start and piece.stop <= part.stop:
            return Scales.of(fit)
        rows, blocks = np.arange(piece.rows)[:, None], np.arange(piece.blocks)
        begins = piece.start + rows * piece.stride + blocks * piece.width
        return Scales.of(fit, (begins >= part.start) & (begins < part.stop))


def _require_codes(codes: Any, n_bits: int) -> None:
    """Raise ValueError where an element has codes beyond its width, of which none are counted."""
    qmin, qmax = code_range(n_bits)
    least, greatest = int(codes.min()), int(codes.max())
    if least < qmin or greatest > qmax:
        raise ValueError(
            f"the mode has codes from {least} to {greatest}, and those of {n_bits} bits are from "
            f"{qmin} to {qmax}: shift them, or give it the width that it has"
        )


def one_by_one(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Return what a function makes of some items, without threads."""
    return [function(item) for item in items]


def _concatenate(fits: list[Fit]) -> Fit:
    params, saturated, vanished = zip(*fits, strict=True)
    kind = type(params[0])
    joined = kind(*(np.concatenate(each) for each in zip(*params, strict=True)))
    return Fit(joined, np.concatenate(saturated), np.concatenate(vanished))


def _select(fit: Fit, which: Any) -> Fit:
    params = type(fit.params)(*(each[which] for each in fit.params))
    return Fit(params, fit.saturated[which], fit.vanished[which])


def _put(target: np.ndarray[Any, Any], values: Any, piece: Piece, start: int) -> None:
    """Write the values of a piece where a stretch that begins at `start` has them."""
    if piece.rows == 1 or piece.blocks * piece.width == piece.stride:
        flat = values.reshape(-1)
        low, high = max(piece.start, start), min(piece.stop, start + target.size)
        target[low - start : high - start] = flat[low - piece.start : high - piece.start]
    else:
        inside = target[piece.start - start : piece.stop - start]
        piece.view(inside)[:] = values
