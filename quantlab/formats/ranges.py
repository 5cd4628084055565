"""Which range the scale of a block covers.

To add a way: a class with `choose` here, and a yaml in ``conf/range/``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import BATCH
from quantlab.formats.element import Bounds, Element, FloatArray, Store, per_value
from quantlab.formats.floats import FixedPoint, Float
from quantlab.formats.levels import NormalFloat4
from quantlab.formats.scales import Array64
from quantlab.formats.uniform import Symmetric

T = TypeVar("T")
CANDIDATES = 80  # ranges that `Mse` tries, each a hundredth of the whole narrower
ROUND = 8  # of them that many blocks try before one looks which can still win
ROUNDS = 64  # that one block in many parts is tried in
SAMPLE = 2**16  # values that guess which will win
ALIKE = 1e-12  # sums of squares that differ by less may differ by their rounding alone
SURE = 1e-9  # sums that differ by more do not
MARGIN = 1 + 1e-6  # covers the rounding of an end of a grid times a scale, in float32
FAR = 2.0**111  # beyond the numbers of every grid, and still finite in the steps of any
PROPORTIONAL = Symmetric, Float, FixedPoint, NormalFloat4  # their ends are multiples of the scale
ALL = slice(None)
NARROW = 256  # values of a block; NumPy reduces so few slowly
SIGN = np.uint32(0x8000_0000)


@dataclass(frozen=True)
class Values:
    """The values of some blocks, `count` a block, and `each` to call something with them.

    ``each(f)`` returns what `f` makes of each of their `parts`, an array ``(blocks, values)``, in
    order. `reduce` says who does the sums.
    """

    count: int
    each: "Each"
    reduce: "Reductions" = field(default_factory=lambda: NUMPY)
    parts: int = 1


class Each(Protocol):
    """Calls a function with every part of some blocks."""

    def __call__(self, function: Callable[[FloatArray], T], of: slice = ALL) -> list[T]:
        """Return what the function makes of the parts, or of some of them, in order."""


class Reductions(NamedTuple):
    """What is reduced block by block: see `bounds` and `squared_errors`."""

    bounds: Callable[[FloatArray, bool], Bounds]
    squared_errors: Callable[[Element, FloatArray, Any], Array64]


class Range(Protocol):
    """Which range a scale covers."""

    @property
    def name(self) -> str:
        """The name of the option."""

    def choose(self, found: Bounds, values: Values, element: Element, store: Store) -> Bounds:
        """Return the range of blocks, of which the least and greatest values are known."""


@dataclass(frozen=True)
class Settings:
    """The settings of a range, the same for all options of the group; `uses` names its own."""

    p: float = 99.9
    name: ClassVar[str]
    uses: ClassVar[tuple[str, ...]] = ()


class AbsMax(Settings):
    """From the least to the greatest value: the lab's rule."""

    name = "absmax"

    def choose(self, found: Bounds, values: Values, element: Element, store: Store) -> Bounds:  # noqa: ARG002 Range
        """Return the range found."""
        return found


class Mse(Settings):
    """The multiple ``f`` of the whole range with the least sum of squared errors.

    ``f = 1 - i / 100`` for i from 0 to 79; of equals the widest.
    """

    name = "mse"

    def choose(self, found: Bounds, values: Values, element: Element, store: Store) -> Bounds:
        """Try each multiple on all the values, but for those that can win no more."""
        if found.lo.size == 1 and values.count > BATCH:
            best = _best_of_one(found, values, element, store)
        else:
            best = _best_of_many(found, values, element, store)
        return _scaled(found, _factor(best))


def _factor(i: Any) -> Any:
    return 1 - i / 100


def _params(found: Bounds, element: Element, store: Store, which: Sequence[int]) -> Any:
    """Return the parameters of blocks for some of the ranges, ``(ranges, blocks)`` each."""
    factors = _factor(np.reshape(which, (-1, 1)))
    return element.fit(_scaled(found, factors), store).params


def _chosen(params: Any, which: Any) -> Any:
    return type(params)(*(each[which] for each in params))


def _first_least(losses: Array64) -> tuple[NDArray[np.intp], Array64]:
    """Return which of some ranges loses least in each block, and what; the widest of equals."""
    least = losses.min(axis=0)
    return np.argmax(losses <= least * (1 + ALIKE), axis=0), least


def _best_of_one(found: Bounds, values: Values, element: Element, store: Store) -> NDArray[np.intp]:
    """Return the best range of a large block.

    A range is given up when a part of the block loses more under it than the whole does under
    another, which a sample takes for the best.
    """
    params, left = _params(found, element, store, range(CANDIDATES)), list(range(CANDIDATES))

    def losses(which: list[int], every: int = 1, of: slice = ALL) -> Array64:
        def part(x: FloatArray) -> Array64:
            x = np.ascontiguousarray(x[:, ::every])
            return values.reduce.squared_errors(element, x, some)

        some = _chosen(params, which)
        return sum(values.each(part, of), np.zeros((len(which), 1)))

    guess = int(np.argmin(losses(left, -(-values.count // SAMPLE))))
    limit = losses([guess]) * (1 + SURE)
    lost = np.zeros((CANDIDATES, 1))
    for part in _parts(values.parts):
        lost[left] += losses(left, of=part)
        left = [i for i in left if lost[i] <= limit]
    lost[np.delete(np.arange(CANDIDATES), left)] = np.inf
    return _first_least(lost)[0]


def _parts(n: int) -> Iterator[slice]:
    """Yield `ROUNDS` stretches of `n` parts, or fewer."""
    step = -(-n // ROUNDS)
    return (slice(start, start + step) for start in range(0, n, step))


def _best_of_many(
    found: Bounds, values: Values, element: Element, store: Store
) -> NDArray[np.intp]:
    """Return the best range of each block, which has tried one after the other until none can win.

    None can where the ends of the block alone lose more.
    """
    best, left = np.zeros(found.lo.size, np.intp), np.arange(found.lo.size)
    some, loss = Bounds(*map(np.ravel, found)), np.full(left.shape, np.inf)
    last = _params(some, element, store, [CANDIDATES - 1])
    ends, narrowest = _ends(element, last), last.scale[0]
    for first in range(0, CANDIDATES, ROUND):
        params = _params(some, element, store, range(first, min(first + ROUND, CANDIDATES)))
        which, least = _first_least(_losses(values, element, params, left))
        better = least < loss * (1 - ALIKE)
        best[left[better]] = first + which[better]
        loss = np.where(better, least, loss)
        keep = ~_loses(some, ends, params.scale[-1], narrowest, loss)
        left, loss, narrowest = left[keep], loss[keep], narrowest[keep]
        some = Bounds(*(each[keep] for each in some))
        if not left.size:
            break
    return best.reshape(found.lo.shape)


def _losses(values: Values, element: Element, params: Any, left: NDArray[np.intp]) -> Array64:
    """Return the losses of the blocks that are left under some parameters."""

    def part(x: FloatArray) -> Array64:
        blocks = x.reshape(-1, x.shape[-1])
        blocks = blocks if len(left) == len(blocks) else blocks[left]
        return values.reduce.squared_errors(element, blocks, params)

    first, *others = values.each(part)
    return sum(others, first)


def _loses(
    found: Bounds, ends: Array64 | None, scale: FloatArray, narrowest: FloatArray, least: Array64
) -> NDArray[np.bool_]:
    """Say of which blocks every narrower range loses more than `least`.

    A value beyond the `ends` of a grid comes back as one of them, and the smaller the scale the
    further from it, unless the scale falls below float32 and becomes 1.
    """
    if ends is None:
        return np.zeros(least.shape, bool)
    low, high = ends[:, None] * scale
    beyond = np.maximum(np.maximum(low - found.lo, found.hi - high), 0)
    return (np.square(beyond) > least * (1 + SURE)) & (narrowest <= scale)


def _ends(element: Element, params: Any) -> Array64 | None:
    """Return the least and the greatest value of a grid with a scale of 1, or hardly beyond.

    None of a grid of which it is not known that its ends are multiples of the scale.
    """
    if type(element) not in PROPORTIONAL:
        return None
    one = _chosen(params, (slice(1), slice(1)))._replace(scale=np.ones((1, 1), np.float32))
    ends = element.reconstruct(np.array([[[-FAR, FAR]]], np.float32), per_value(one))
    return ends.ravel().astype(np.float64) * MARGIN


@dataclass(frozen=True)
class Percentile(Settings):
    """The p-th percentile of the magnitudes; of an asymmetric grid the (100 - p)-th and the p-th.

    Percentiles are interpolated linearly, as NumPy does by default.
    """

    name = "percentile"
    uses = ("p",)

    def __post_init__(self) -> None:
        """Raise ValueError unless `p` is above 50 and at most 100."""
        number = isinstance(self.p, int | float) and not isinstance(self.p, bool)
        if not number or not 50 < self.p <= 100:
            raise ValueError(f"range.p must be a number above 50, up to 100, got {self.p!r}")

    def choose(self, found: Bounds, values: Values, element: Element, store: Store) -> Bounds:  # noqa: ARG002 Range
        """Find the percentiles of each block."""
        hi = _percentile(values, self.p, magnitudes=element.symmetric)
        lo = -hi if element.symmetric else _percentile(values, 100 - self.p, magnitudes=False)
        return found._replace(lo=lo, hi=hi)


def bounds(x: FloatArray, least: bool) -> Bounds:
    """Return the bounds of blocks ``(blocks, values)``, with the least magnitude if asked for."""
    x, axis = _reducible(x)
    lo, hi = (ufunc.reduce(x, axis=axis).astype(np.float64) for ufunc in (np.minimum, np.maximum))
    nothing = np.full(lo.shape, np.inf)
    if not least:
        return Bounds(lo, hi, nothing)
    magnitudes = np.abs(x)
    np.putmask(magnitudes, magnitudes == 0, np.inf)
    return Bounds(lo, hi, np.minimum.reduce(magnitudes, axis=axis).astype(np.float64))


def _reducible(x: FloatArray) -> tuple[FloatArray, int]:
    """Return values and the axis to reduce: of narrow blocks the first, several times as fast."""
    if x.shape[-1] > NARROW:
        return x, -1
    return np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0


def union(parts: list[Bounds]) -> Bounds:
    """Return the bounds of blocks from those of their parts."""
    if len(parts) == 1:
        return parts[0]
    lo, hi, least = zip(*parts, strict=True)
    return Bounds(np.minimum.reduce(lo), np.maximum.reduce(hi), np.minimum.reduce(least))


def _scaled(found: Bounds, factor: Any) -> Bounds:
    return found._replace(lo=found.lo * factor, hi=found.hi * factor)


def squared_errors(element: Element, x: FloatArray, params: Any) -> Array64:
    """Return the sums of squared errors of blocks ``(blocks, values)``, ``(choices, blocks)``.

    Errors are float32, and summed in float64; `params` has entries ``(choices, blocks)``.
    """
    blocks, axis = _reducible(x)
    choices = (_chosen(params, n) for n in range(len(params.scale)))
    return np.stack([_squared_error(element, blocks, each, axis) for each in choices])


def _squared_error(element: Element, x: FloatArray, params: Any, axis: int) -> Array64:
    """Return the sum of squared errors of blocks along an axis."""
    error = element.reconstruct(x, per_value(params) if axis else params)
    error -= x
    exact = error.astype(np.float64)
    if axis:
        return np.vecdot(exact, exact)
    return np.add.reduce(np.square(exact, out=exact), axis=0)


NUMPY: Reductions = Reductions(bounds, squared_errors)


def _percentile(values: Values, p: float, *, magnitudes: bool) -> Array64:
    """Return a percentile of each block, in float64."""
    position = p / 100 * (values.count - 1)
    below = int(position)
    ranks = below, min(below + 1, values.count - 1)
    if values.count > BATCH:
        low, high = (np.array([_select(values, rank, magnitudes)]) for rank in ranks)
    else:
        low, high = _partition(values, ranks, magnitudes)
    return np.quantile([low, high], position - below, axis=0)


def _partition(values: Values, ranks: tuple[int, int], magnitudes: bool) -> tuple[Array64, Array64]:
    """Return the values of two ranks in each block, counting from the least."""
    parts = values.each(np.abs if magnitudes else np.copy)
    x = np.partition(np.concatenate(parts, axis=-1), ranks, axis=-1)
    low, high = (x[..., rank].astype(np.float64) for rank in ranks)
    return low, high


def _select(values: Values, rank: int, magnitudes: bool) -> float:
    """Return the value of a rank in one block that is too large to sort: sixteen bits at a time."""

    def upper(x: FloatArray) -> NDArray[np.intp]:
        return np.bincount(_ordered(x, magnitudes) >> 16, minlength=2**16)

    counts = np.cumsum(np.sum(values.each(upper), axis=0))
    high = int(np.searchsorted(counts, rank, side="right"))
    before = int(counts[high - 1]) if high else 0

    def lower(x: FloatArray) -> NDArray[np.intp]:
        keys = _ordered(x, magnitudes)
        return np.bincount(keys[keys >> 16 == high] & 0xFFFF, minlength=2**16)

    counts = np.cumsum(np.sum(values.each(lower), axis=0))
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
