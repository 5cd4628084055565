"""A storage format: an element grid, blocks that share a scale, its range, and its type.

The four are chosen independently, and none knows another's insides; what they make of a tensor is
put together here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from quantlab.formats.blocks import PART, Batch, Block, Layout, PerTensor, Piece, Read
from quantlab.formats.element import (
    Bounds,
    ContradictionError,
    Element,
    Fit,
    FloatArray,
    Store,
    Trip,
    per_value,
)
from quantlab.formats.ranges import AbsMax, Range, Values, bounds, union
from quantlab.formats.scales import ScaleType, scale_type
from quantlab.formats.uniform import Params, Uniform

PLAIN = {"block": "tensor", "block_size": None, "scale_dtype": "float32", "range": "absmax"}
T = TypeVar("T")
Run = Callable[[Callable[[Any], Any], list[Any]], list[Any]]  # like map, on threads or not


class Quantizer(Protocol):
    """What a mode may be at the least: a uniform quantizer of one block."""

    n_bits: int

    def choose(self, lo: float, hi: float) -> Params:
        """Choose the parameters of a block with the range [lo, hi]."""


class Chosen(Uniform):
    """A quantizer of somebody's own, whose parameters are chosen block by block."""

    symmetric = False
    keeps_zero = False

    def __init__(self, quantizer: Quantizer) -> None:
        """Take a quantizer with ``choose(lo, hi)``."""
        self.quantizer = quantizer
        self.n_bits = quantizer.n_bits

    def choose(self, lo: float, hi: float) -> Params:
        """Choose as the quantizer does."""
        return self.quantizer.choose(lo, hi)

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Choose for one block after the other, then round the scales to their type."""
        ends = zip(np.ravel(bounds.lo), np.ravel(bounds.hi), strict=True)
        chosen = [self.quantizer.choose(float(lo), float(hi)) for lo, hi in ends]
        scale, zero_point, replaced, clipped = (
            np.reshape([params[n] for params in chosen], np.shape(bounds.lo)) for n in range(4)
        )
        stored = store(scale)
        params = Params(stored.scale, zero_point, replaced, clipped)
        return Fit(params, stored.saturated, stored.vanished)

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits of a scale and a zero point."""
        return scale_bits + self.n_bits


def as_element(mode: Any) -> Element:
    """Return an element grid; a quantizer that has ``choose`` alone is made one."""
    return mode if hasattr(mode, "round_trip") else Chosen(mode)


@dataclass(frozen=True)
class Format:
    """How a tensor is stored.

    `scale` is the type of the scales, that of the block's setting unless a preset has its own.
    """

    element: Element
    block: Block = field(default_factory=PerTensor)
    range: Range = field(default_factory=AbsMax)
    scale: ScaleType | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when the scale's type is unknown or the range makes no difference."""
        _ = self.scale_type
        if not self.element.ranged and self.range.name != "absmax":
            raise ContradictionError(
                f"range={self.range.name} does not go with mode=log: leave it out"
            )
        if not self.element.ranged and self.scale_type.name != "float32":
            raise ContradictionError(
                f"block.scale={self.scale_type.name} does not go with mode=log, which stores two "
                "float32 a block: leave it out"
            )

    @property
    def n_bits(self) -> int:
        """The width of a code."""
        return self.element.n_bits

    @property
    def scale_type(self) -> ScaleType:
        """The type that scales are stored in."""
        return self.scale or scale_type(self.block.scale)

    @property
    def plain(self) -> bool:
        """Whether there is one float32 scale over the whole range, as in the lab."""
        return self.describe() == PLAIN

    def describe(self) -> dict[str, Any]:
        """Return the format in full, as each row of results.csv has it."""
        return {
            "block": self.block.name,
            "block_size": self.block.block_size,
            "scale_dtype": self.scale_type.name,
            "range": self.range.name if self.element.ranged else None,
        }

    def bits_per_value(self, layout: Layout) -> float:
        """Return what is stored in all, codes, scales, zero points and constants, over the size."""
        of_blocks = layout.n_blocks * self.element.block_bits(self.scale_type.bits)
        return self.n_bits + (of_blocks + self.scale_type.tensor_bits) / layout.size


def preset(element: Callable[..., Element], block: Block, scale: ScaleType, n_bits: int) -> Format:
    """Return a format that fixes all four choices; `element` takes the width."""
    return Format(element(n_bits=n_bits), block, AbsMax(), scale)


def compose(mode: Any, block: Block, range: Range) -> Format:
    """Return the format that three choices make; raises ValueError where they contradict."""
    if not isinstance(mode, Format):
        return Format(as_element(mode), block, range)
    for key, chosen, free in (
        ("block", block.name, "tensor"),
        ("block.scale", block.scale, "float32"),
        ("range", range.name, "absmax"),
    ):
        if chosen != free:
            raise ContradictionError(
                f"{key}={chosen} does not go with a mode that fixes blocks, scales and range: "
                "leave it out"
            )
    return mode


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

    def __init__(self, form: Format, layout: Layout, read: Read, absmax: float, run: Run) -> None:
        """Choose the parameters of blocks that are not looked at whole.

        `read` returns elements of the tensor, of which `absmax` is the largest magnitude.
        """
        self.form, self.layout, self.read = form, layout, read
        self.store = lambda scale: form.scale_type.store(scale, absmax)
        self.fit = self._survey(run) if layout.surveyed else None

    def _survey(self, run: Run) -> Fit:
        batches = list(self.layout.batches())
        if len(batches) == 1:
            return self._fit_batch(batches[0], run)
        fits = run(lambda batch: self._fit_batch(batch, _one_by_one), batches)
        return _concatenate(fits)

    def _fit_batch(self, batch: Batch, run: Run) -> Fit:
        def each(function: Callable[[FloatArray], T]) -> list[T]:
            return run(lambda piece: function(self._blocks_of(piece)), batch.pieces)

        return self.choose(Values(batch.count, each))

    def _blocks_of(self, piece: Piece) -> FloatArray:
        """Return the values of a piece, a row a block."""
        x = piece.view(self.read(piece.start, piece.stop))
        return np.moveaxis(x, 1, 0).reshape(piece.blocks, -1) if self.layout.shared else x[0]

    def choose(self, values: Values) -> Fit:
        """Choose the parameters of blocks by all their values."""
        element = self.form.element
        found = union(values.each(lambda x: bounds(x, element.least)))
        chosen = self.form.range.choose(found, values, element, self.store)
        return element.fit(chosen, self.store)

    @property
    def known_params(self) -> Any:
        """The parameters that were chosen beforehand; there are some where there is one block."""
        return self.fit.params if self.fit else None

    @property
    def known_scales(self) -> Scales:
        """The scales that were chosen beforehand."""
        return Scales.of(self.fit) if self.fit else NO_SCALES

    def round_trip(self, start: int, stop: int) -> tuple[Trip, Scales]:
        """Take elements `start` to `stop` to codes and back; say what scales begin there."""
        size, code = stop - start, np.int8 if self.form.n_bits <= 8 else np.int16
        codes: Any = np.empty(size, code)
        x_hat = np.empty(size, np.float32)
        clipped, scales = None, NO_SCALES
        for piece, part in self._pieces(start, stop):
            fit, x = self._fitted(piece)
            trip = self.form.element.round_trip(x, per_value(fit.params))
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
            return self.choose(Values(piece.width, lambda function: [function(x)])), x
        rows = 0 if self.layout.shared else np.arange(piece.rows)[:, None] * self.layout.per_row
        return _select(self.fit, piece.first + rows + np.arange(piece.blocks)), x

    def _new_scales(self, piece: Piece, fit: Fit, part: range) -> Scales:
        """Return the scales of the blocks that begin in a part, none where they are known."""
        if self.fit is not None:
            return NO_SCALES
        if piece.start >= part.start and piece.stop <= part.stop:
            return Scales.of(fit)
        rows, blocks = np.arange(piece.rows)[:, None], np.arange(piece.blocks)
        begins = piece.start + rows * piece.stride + blocks * piece.width
        return Scales.of(fit, (begins >= part.start) & (begins < part.stop))


def _one_by_one(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
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
