"""The range that the scale of a block covers.

To add a way: a class with `choose` here, and a yaml in ``conf/range/``. `bounds` and
`squared_errors` are what ranges are chosen by; their compiled twins are `stats.kernel.bounds` and
`squared_errors`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
N_BINS = 2 * 2048 + 1  # of the histogram of `Entropy`, the middle one around 0
SMOOTHING = 1e-4  # counts of an empty bin
CACHED_BINS = 2**18  # of some slices of a histogram, whose divergences are computed together


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


@dataclass(frozen=True)
class Entropy:
    """The range that keeps the histogram of the values best, as TensorRT calibrates INT8.

    Of the ranges [-t, t] that end at one of 2048 bins of magnitudes it has the least
    Kullback-Leibler divergence of the histogram, what lies beyond added to its end bins, from the
    histogram merged to as many levels as there are codes (Migacz, "8-bit inference with TensorRT",
    2017; `get_entropy_threshold` in ONNX Runtime 1.32.0). It is cut to the values that occur.
    """

    name: ClassVar[str] = "entropy"

    def choose(
        self,
        bounds: Bounds,
        values: BlockValues,
        element: Element,
        store: RoundScale,  # noqa: ARG002 Range
    ) -> Bounds:
        """Choose the range of each block by its histogram."""
        absmax = np.ravel(bounds.absmax)
        if values.count > BATCH:  # one block in many parts
            counts = _sum_parts(values, lambda x: _count_bins(x, absmax[0]))
            histograms: Iterable[NDArray[np.intp]] = [counts]
        else:
            x = np.concatenate(values.map_parts(np.copy), axis=-1)
            histograms = map(_count_bins, x.reshape(absmax.size, -1), absmax)
        halves = [find_entropy_slice(counts, 2**element.n_bits) for counts in histograms]
        ends = (absmax * (2 * np.array(halves) + 1) / N_BINS).reshape(np.shape(bounds.lo))
        return bounds._replace(lo=np.maximum(bounds.lo, -ends), hi=np.minimum(bounds.hi, ends))


def _count_bins(x: FloatArray, absmax: float) -> NDArray[np.intp]:
    """Count values in `N_BINS` bins over [-absmax, absmax]."""
    places = (x.ravel() / np.float64(absmax or 1) + 1) * (N_BINS / 2)
    return np.bincount(np.minimum(places.astype(np.intp), N_BINS - 1), minlength=N_BINS)


def find_entropy_slice(counts: NDArray[np.intp], levels: int) -> int:
    """Return how many bins beside the middle one the slice of least divergence has on each side.

    `counts` is a histogram with an odd number of bins, `levels` an even number of merged ones.
    """
    middle = len(counts) // 2
    halves = np.arange(min(levels // 2, middle), middle + 1)
    levels = min(levels, 2 * middle)
    at_once = max(1, CACHED_BINS // (int(np.count_nonzero(counts)) + levels))
    parts = [halves[start : start + at_once] for start in range(0, len(halves), at_once)]
    divergences = [_compute_divergences(counts, part[:, None], levels) for part in parts]
    return int(halves[np.argmin(np.concatenate(divergences))])


def _compute_divergences(
    counts: NDArray[np.intp], halves: NDArray[np.intp], levels: int
) -> Array64:
    """Compute the divergence, in nats, of slices that have `halves` bins beside the middle one.

    Of the slice p are the counts, those beyond it added to its end bins; q are the counts of each
    level, spread over the bins of the level and cut to whole numbers, and 0 in the bins that
    levels of equal width leave over. Arrays are ``(slices, ...)``; of p only the bins that may hold
    something are gone through.
    """
    first, width = len(counts) // 2 - halves, 2 * halves + 1
    below, filled_below = (np.concatenate([[0], np.cumsum(n)]) for n in (counts, counts > 0))
    outliers = np.hstack([below[first], below[-1] - below[first + width]])
    ends = np.hstack([first, first + width - 1])
    merged = width // levels
    edges = first + np.arange(levels + 1) * merged
    n_filled = np.diff(filled_below[edges], axis=1)
    for end, level in enumerate((ends - first).T // merged.T):
        is_filled = (counts[ends[:, end]] == 0) & (outliers[:, end] > 0) & (level < levels)
        n_filled[is_filled, level[is_filled]] += 1
    edges[:, -1:] = first + width  # the last level counts what is left over
    sums = np.diff(below[edges], axis=1)
    q = np.floor(np.divide(sums, n_filled, out=np.zeros(sums.shape), where=n_filled > 0))
    occupied = np.flatnonzero(counts)
    inner = (occupied > ends[:, :1]) & (occupied < ends[:, 1:])
    p = np.hstack([np.where(inner, counts[occupied], 0), counts[ends] + outliers])
    places = np.hstack([np.where(inner, occupied - first, 0), ends - first])
    return _smoothed_divergence(p, places // merged, q, n_filled, merged, width)


def _smoothed_divergence(
    p: NDArray[np.intp],
    level: NDArray[np.intp],
    q: Array64,
    n_filled: NDArray[np.intp],
    merged: NDArray[np.intp],
    width: NDArray[np.intp],
) -> Array64:
    """Compute the divergence of p from q, whose empty bins take `SMOOTHING` counts of the others.

    `p` are counts of bins and `level` where each is; `q` are those of a bin of each level, which
    has `merged` bins, of which p has counts in `n_filled`. A slice has `width` bins.
    """
    levels, total = q.shape[1], p.sum(axis=1, keepdims=True)
    log_q = np.log(_smooth(q, merged * np.count_nonzero(q, axis=1, keepdims=True), width))
    spare_log_q = np.full(total.shape, np.log(SMOOTHING))  # of the bins that no level has
    log_q = np.hstack([log_q, spare_log_q])
    n_empty = np.hstack([merged - n_filled, width - merged * levels])
    spare = (level >= levels) & (p > 0)
    n_empty[:, -1] -= np.count_nonzero(spare, axis=1)
    n_occupied = np.count_nonzero(p, axis=1, keepdims=True)
    smooth_p = np.where(p > 0, _smooth(p, n_occupied, width), 1)
    terms = smooth_p * (np.log(smooth_p) - np.take_along_axis(log_q, np.minimum(level, levels), 1))
    filled = np.where(p > 0, terms, 0).sum(axis=1)
    empty = SMOOTHING * (n_empty * (np.log(SMOOTHING) - log_q)).sum(axis=1)
    total_q = (merged * q).sum(axis=1)
    with np.errstate(divide="ignore"):
        ratio = np.log(total_q) - np.log(total[:, 0])
    return np.where(total_q > 0, (filled + empty) / total[:, 0] + ratio, np.inf)


def _smooth(counts: Any, n_filled: NDArray[np.intp], width: NDArray[np.intp]) -> Array64:
    """Give `SMOOTHING` counts to each empty bin of `width`, evenly from those that are filled."""
    share = SMOOTHING * (width - n_filled) / np.maximum(n_filled, 1)
    smooth: Array64 = np.where(counts > 0, counts - share, SMOOTHING)
    return smooth


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

    counts = np.cumsum(_sum_parts(values, upper))
    high = int(np.searchsorted(counts, rank, side="right"))
    before = int(counts[high - 1]) if high else 0

    def lower(x: FloatArray) -> NDArray[np.intp]:
        keys = _ordered(x, magnitudes)
        return np.bincount(keys[keys >> 16 == high] & 0xFFFF, minlength=2**16)

    counts = np.cumsum(_sum_parts(values, lower))
    low = int(np.searchsorted(counts, rank - before, side="right"))
    key = np.uint32(high << 16 | low)
    bits = key if magnitudes else (key ^ SIGN if key & SIGN else ~key)
    return float(np.array(bits, np.uint32).view(np.float32))


def _sum_parts(
    values: BlockValues, count: Callable[[FloatArray], NDArray[np.intp]]
) -> NDArray[np.intp]:
    """Sum up the counts of one block in parts; those of all parts at once may be gigabytes."""
    rounds = _split_parts(values.parts)
    return np.sum([np.sum(values.map_parts(count, parts), axis=0) for parts in rounds], axis=0)


def _ordered(x: FloatArray, magnitudes: bool) -> NDArray[np.uint32]:
    """Return whole numbers that are ordered as some values, or as their magnitudes, are."""
    keys = np.ascontiguousarray(x).view(np.uint32).ravel()
    if magnitudes:
        return keys & ~SIGN
    return np.where(keys & SIGN, ~keys, keys | SIGN)
