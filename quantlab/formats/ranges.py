"""The range that the scale of a block covers.

To add a way: a class with `choose` here, and a yaml in ``conf/range/``. `bounds` and
`squared_errors` are what ranges are chosen by; their compiled twins are `stats.kernel.bounds` and
`squared_errors`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import BATCH
from quantlab.formats.element import (
    Bounds,
    Element,
    FloatArray,
    RoundScale,
    per_value,
    select_params,
)
from quantlab.formats.scales import Array64

T = TypeVar("T")
CANDIDATES = 80  # ranges that `Mse` tries, each a hundredth of the whole narrower
ROUND = 8  # of them that many blocks try before one looks which can still win
ROUNDS = 64  # that one block in many parts is tried in
SAMPLE = 2**16  # values that guess which will win
SUM_RTOL = 1e-12  # sums of squares that differ by less may differ by their rounding alone
PRUNE_RTOL = 1e-9  # sums that differ by more do not
GRID_END_SLACK = 1 + 1e-6  # covers the rounding of an end of a grid times a scale, in float32
PROBE = 2.0**111  # beyond the numbers of every grid, and still finite in the steps of any
ALL = slice(None)
SMALL_BLOCK = 256  # values; NumPy reduces so few slowly
SIGN = np.uint32(0x8000_0000)


@dataclass(frozen=True)
class BlockValues:
    """The values of some blocks, `count` a block, and a function that is called with them.

    ``map_parts(f)`` calls `f` with each of their `parts`, an array ``(blocks, values)``, and
    returns its results in order. `reductions` do the sums.
    """

    count: int
    map_parts: "MapParts"
    reductions: "Reductions" = field(default_factory=lambda: NUMPY)
    parts: int = 1


class MapParts(Protocol):
    """Calls a function with every part of some blocks."""

    def __call__(self, function: Callable[[FloatArray], T], parts: slice = ALL) -> list[T]:
        """Return the results of the parts, or of some of them, in order."""


class Reductions(NamedTuple):
    """Reductions block by block: see `bounds` and `squared_errors`."""

    bounds: Callable[[FloatArray, bool], Bounds]
    squared_errors: Callable[[Element, FloatArray, Any], Array64]


class Range(Protocol):
    """The range that a scale covers."""

    @property
    def name(self) -> str:
        """Name of the option."""

    def choose(
        self, bounds: Bounds, values: BlockValues, element: Element, store: RoundScale
    ) -> Bounds:
        """Choose the range of blocks, given their least and greatest values."""


@dataclass(frozen=True)
class AbsMax:
    """From the least to the greatest value: the lab's rule."""

    name: ClassVar[str] = "absmax"

    def choose(
        self,
        bounds: Bounds,
        values: BlockValues,  # noqa: ARG002 Range
        element: Element,  # noqa: ARG002
        store: RoundScale,  # noqa: ARG002
    ) -> Bounds:
        """Return the bounds."""
        return bounds


@dataclass(frozen=True)
class Mse:
    """The multiple ``f`` of the whole range with the least sum of squared errors.

    ``f = 1 - i / 100`` for i from 0 to 79; of equals the widest.
    """

    name: ClassVar[str] = "mse"

    def choose(
        self, bounds: Bounds, values: BlockValues, element: Element, store: RoundScale
    ) -> Bounds:
        """Try each multiple on all the values, but for those that can win no more.

        There are two searches, for two costs. One large block is read in parts, again for every
        multiple: it is given up in the middle of the block. Many small blocks are in memory: they
        share one call for several multiples, and blocks leave the search one by one. Either as the
        other takes several times as long.
        """
        if bounds.lo.size == 1 and values.count > BATCH:
            best = _search_one_block(bounds, values, element, store)
        else:
            best = _search_blocks(bounds, values, element, store)
        return _scale_bounds(bounds, _factor(best))


def _factor(candidate: Any) -> Any:
    return 1 - candidate / 100


def _params(bounds: Bounds, element: Element, store: RoundScale, candidates: Sequence[int]) -> Any:
    """Choose the parameters of blocks for some of the ranges, ``(ranges, blocks)`` each."""
    factors = _factor(np.reshape(candidates, (-1, 1)))
    return element.fit(_scale_bounds(bounds, factors), store).params


def _first_least(losses: Array64) -> tuple[NDArray[np.intp], Array64]:
    """Return the index of the best range of each block and its loss; ties go to the widest."""
    least = losses.min(axis=0)
    return np.argmax(losses <= least * (1 + SUM_RTOL), axis=0), least


def _search_one_block(
    bounds: Bounds, values: BlockValues, element: Element, store: RoundScale
) -> NDArray[np.intp]:
    """Return the best range of a large block.

    A range is given up when a part of the block loses more under it than the whole does under
    another, which a sample takes for the best.
    """
    params, candidates = _params(bounds, element, store, range(CANDIDATES)), list(range(CANDIDATES))

    def compute_losses(candidates: list[int], stride: int = 1, parts: slice = ALL) -> Array64:
        def square(x: FloatArray) -> Array64:
            x = np.ascontiguousarray(x[:, ::stride])
            return values.reductions.squared_errors(element, x, candidate_params)

        candidate_params = select_params(params, candidates)
        return sum(values.map_parts(square, parts), np.zeros((len(candidates), 1)))

    guess = int(np.argmin(compute_losses(candidates, -(-values.count // SAMPLE))))
    limit = compute_losses([guess]) * (1 + PRUNE_RTOL)
    losses = np.zeros((CANDIDATES, 1))
    for parts in _split_parts(values.parts):
        losses[candidates] += compute_losses(candidates, parts=parts)
        candidates = [n for n in candidates if losses[n] <= limit]
    losses[np.delete(np.arange(CANDIDATES), candidates)] = np.inf
    return _first_least(losses)[0]


def _split_parts(n: int) -> Iterator[slice]:
    """Yield `ROUNDS` stretches of `n` parts, or fewer."""
    step = -(-n // ROUNDS)
    return (slice(start, start + step) for start in range(0, n, step))


def _search_blocks(
    bounds: Bounds, values: BlockValues, element: Element, store: RoundScale
) -> NDArray[np.intp]:
    """Return the best range of each block, tried in rounds until no narrower one can win.

    None can where the ends of the block alone lose more.
    """
    best, blocks = np.zeros(bounds.lo.size, np.intp), np.arange(bounds.lo.size)
    flat, loss = Bounds(*map(np.ravel, bounds)), np.full(blocks.shape, np.inf)
    last = _params(flat, element, store, [CANDIDATES - 1])
    ends, narrowest = _unit_ends(element, last), last.scale[0]
    for first in range(0, CANDIDATES, ROUND):
        params = _params(flat, element, store, range(first, min(first + ROUND, CANDIDATES)))
        place, least = _first_least(_block_losses(values, element, params, blocks))
        better = least < loss * (1 - SUM_RTOL)
        best[blocks[better]] = first + place[better]
        loss = np.where(better, least, loss)
        open_ = ~_can_only_lose(flat, ends, params.scale[-1], narrowest, loss)
        blocks, loss, narrowest = blocks[open_], loss[open_], narrowest[open_]
        flat = Bounds(*(field[open_] for field in flat))
        if not blocks.size:
            break
    return best.reshape(bounds.lo.shape)


def _block_losses(
    values: BlockValues, element: Element, params: Any, numbers: NDArray[np.intp]
) -> Array64:
    """Compute the losses of the blocks of some numbers, under some parameters."""

    def square(x: FloatArray) -> Array64:
        blocks = x.reshape(-1, x.shape[-1])
        blocks = blocks if len(numbers) == len(blocks) else blocks[numbers]
        return values.reductions.squared_errors(element, blocks, params)

    first, *others = values.map_parts(square)
    return sum(others, first)


def _can_only_lose(
    bounds: Bounds, ends: Array64 | None, scale: FloatArray, narrowest: FloatArray, loss: Array64
) -> NDArray[np.bool_]:
    """Mask the blocks of which every narrower range loses more than `loss`.

    A value beyond the `ends` of a grid comes back as one of them, and the smaller the scale the
    further from it, unless the scale falls below float32 and becomes 1.
    """
    if ends is None:
        return np.zeros(loss.shape, bool)
    low, high = ends[:, None] * scale
    beyond = np.maximum(np.maximum(low - bounds.lo, bounds.hi - high), 0)
    return (np.square(beyond) > loss * (1 + PRUNE_RTOL)) & (narrowest <= scale)


def _unit_ends(element: Element, params: Any) -> Array64 | None:
    """Return the least and the greatest value of a grid with a scale of 1, or hardly beyond.

    None of a grid whose ends are not multiples of the scale, or that does not say so.
    """
    if not getattr(element, "scales_ends", False):
        return None
    unit = select_params(params, (slice(1), slice(1)))._replace(scale=np.ones((1, 1), np.float32))
    ends = element.reconstruct(np.array([[[-PROBE, PROBE]]], np.float32), per_value(unit))
    return ends.ravel().astype(np.float64) * GRID_END_SLACK


@dataclass(frozen=True)
class Percentile:
    """The p-th percentile of the magnitudes; of an asymmetric grid the (100 - p)-th and the p-th.

    Percentiles are interpolated linearly, as NumPy does by default.
    """

    p: float = 99.9
    name: ClassVar[str] = "percentile"

    def __post_init__(self) -> None:
        """Raise ValueError unless `p` is above 50 and at most 100."""
        number = isinstance(self.p, int | float) and not isinstance(self.p, bool)
        if not number or not 50 < self.p <= 100:
            raise ValueError(f"range.p must be a number above 50, up to 100, got {self.p!r}")

    def choose(
        self,
        bounds: Bounds,
        values: BlockValues,
        element: Element,
        store: RoundScale,  # noqa: ARG002 Range
    ) -> Bounds:
        """Compute the percentiles of each block."""
        hi = _percentile(values, self.p, magnitudes=element.symmetric)
        lo = -hi if element.symmetric else _percentile(values, 100 - self.p, magnitudes=False)
        return bounds._replace(lo=lo, hi=hi)


def bounds(x: FloatArray, needs_min_magnitude: bool) -> Bounds:
    """Compute the bounds of blocks ``(blocks, values)``."""
    x, axis = _reducible(x)
    lo, hi = (ufunc.reduce(x, axis=axis).astype(np.float64) for ufunc in (np.minimum, np.maximum))
    nothing = np.full(lo.shape, np.inf)
    if not needs_min_magnitude:
        return Bounds(lo, hi, nothing)
    magnitudes = np.abs(x)
    np.putmask(magnitudes, magnitudes == 0, np.inf)
    return Bounds(lo, hi, np.minimum.reduce(magnitudes, axis=axis).astype(np.float64))


def _reducible(x: FloatArray) -> tuple[FloatArray, int]:
    """Return values and the axis to reduce: of narrow blocks the first, several times as fast."""
    if x.shape[-1] > SMALL_BLOCK:
        return x, -1
    return np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0


def merge_bounds(parts: list[Bounds]) -> Bounds:
    """Merge the bounds of the parts of blocks."""
    if len(parts) == 1:
        return parts[0]
    lo, hi, min_magnitude = zip(*parts, strict=True)
    return Bounds(np.minimum.reduce(lo), np.maximum.reduce(hi), np.minimum.reduce(min_magnitude))


def _scale_bounds(bounds: Bounds, factor: Any) -> Bounds:
    return bounds._replace(lo=bounds.lo * factor, hi=bounds.hi * factor)


def squared_errors(element: Element, x: FloatArray, params: Any) -> Array64:
    """Compute the sums of squared errors of blocks ``(blocks, values)``, ``(choices, blocks)``.

    Errors are float32, and summed in float64; `params` has entries ``(choices, blocks)``.
    """
    blocks, axis = _reducible(x)
    choices = (select_params(params, n) for n in range(len(params.scale)))
    return np.stack([_squared_error(element, blocks, choice, axis) for choice in choices])


def _squared_error(element: Element, x: FloatArray, params: Any, axis: int) -> Array64:
    """Return the sum of squared errors of blocks along an axis."""
    error = element.reconstruct(x, per_value(params) if axis else params)
    error -= x
    exact = error.astype(np.float64)
    if axis:
        return np.vecdot(exact, exact)
    return np.add.reduce(np.square(exact, out=exact), axis=0)


NUMPY: Reductions = Reductions(bounds, squared_errors)


def _percentile(values: BlockValues, p: float, *, magnitudes: bool) -> Array64:
    """Return a percentile of each block, in float64."""
    position = p / 100 * (values.count - 1)
    below = int(position)
    ranks = below, min(below + 1, values.count - 1)
    if values.count > BATCH:
        low, high = (np.array([_select_rank(values, rank, magnitudes)]) for rank in ranks)
    else:
        low, high = _partition(values, ranks, magnitudes)
    return np.quantile([low, high], position - below, axis=0)


def _partition(
    values: BlockValues, ranks: tuple[int, int], magnitudes: bool
) -> tuple[Array64, Array64]:
    """Return the values of two ranks in each block, counting from the least."""
    parts = values.map_parts(np.abs if magnitudes else np.copy)
    x = np.partition(np.concatenate(parts, axis=-1), ranks, axis=-1)
    low, high = (x[..., rank].astype(np.float64) for rank in ranks)
    return low, high


def _select_rank(values: BlockValues, rank: int, magnitudes: bool) -> float:
    """Return the value of a rank in one block that is too large to sort: sixteen bits at a time."""

    def upper(x: FloatArray) -> NDArray[np.intp]:
        return np.bincount(_ordered(x, magnitudes) >> 16, minlength=2**16)

    counts = np.cumsum(np.sum(values.map_parts(upper), axis=0))
    high = int(np.searchsorted(counts, rank, side="right"))
    before = int(counts[high - 1]) if high else 0

    def lower(x: FloatArray) -> NDArray[np.intp]:
        keys = _ordered(x, magnitudes)
        return np.bincount(keys[keys >> 16 == high] & 0xFFFF, minlength=2**16)

    counts = np.cumsum(np.sum(values.map_parts(lower), axis=0))
    low = int(np.searchsorted(counts, rank - before, side="right"))
    key = np.uint32(high << 16 | low)
    bits = key if magnitudes else (key ^ SIGN if key & SIGN else ~key)
    return float(np.array(bits, np.uint32).view(np.float32))


def _ordered(x: FloatArray, magnitudes: bool) -> NDArray[np.uint32]:
    """Return whole numbers that are ordered as some values, or as their magnitudes, are."""
    keys = np.ascontiguousarray(x).view(np.uint32).ravel()
    if magnitudes:
        return keys & ~SIGN
    return np.where(keys & SIGN, ~keys, keys | SIGN)
