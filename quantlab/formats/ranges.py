"""Which range the scale of a block covers.

To add a way: a class with `choose` here, and a yaml in ``conf/range/``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import BATCH
from quantlab.formats.element import Bounds, Element, FloatArray, Store, per_value
from quantlab.formats.scales import Array64

T = TypeVar("T")
CANDIDATES = 80  # ranges that `Mse` tries, each a hundredth of the whole narrower
ROUND = 8  # of them that many blocks try before one looks which can still win
ROUNDS = 16  # that one block in many parts is tried in
SAMPLE = 2**16  # values that guess which will win
ALIKE = 1e-12  # sums of squares that differ by less may differ by their rounding alone
SURE = 1e-9  # sums that differ by more do not
ALL = slice(None)
NARROW = 256  # values of a block; NumPy reduces so few slowly
SIGN = np.uint32(0x8000_0000)


@dataclass(frozen=True)
class Values:
    """The values of some blocks, `count` a block, and `each` to call something with them.

    ``each(f)`` returns what `f` makes of every part of them, an array ``(blocks, values)``, in
    order. `reduce` says who does the sums.
    """

    count: int
    each: "Each"
    reduce: "Reductions" = field(default_factory=lambda: NUMPY)


class Each(Protocol):
    """Calls a function with every part of some blocks."""

    def __call__(self, function: Callable[[FloatArray], T], of: slice = ALL) -> list[T]:
        """Return what the function makes of the parts, or of some of them, in order."""


class Reductions(NamedTuple):
    """What is reduced block by block: see `bounds` and `squared_errors`."""

    bounds: Callable[[FloatArray, bool], Bounds]
    squared_errors: Callable[[Element, FloatArray, Sequence[Any]], Array64]


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

        def params(i: int) -> Any:
            return element.fit(_scaled(found, _factor(i)), store).params

        if np.size(found.lo) == 1 and values.count > BATCH:
            losses = _losses_of_one(values, element, [params(i) for i in range(CANDIDATES)])
        else:
            losses = _losses_of_many(found, values, element, params)
        alike = losses <= losses.min(axis=0) * (1 + ALIKE)
        return _scaled(found, _factor(np.argmax(alike, axis=0)))


def _factor(i: Any) -> Any:
    return 1 - i / 100


def _losses(values: Values, element: Element, params: Sequence[Any], of: slice = ALL) -> Array64:
    """Return the sums of squared errors under some parameters, an array ``(params, blocks)``."""
    first, *others = values.each(lambda x: values.reduce.squared_errors(element, x, params), of)
    return sum(others, first)


def _losses_of_one(values: Values, element: Element, params: Sequence[Any]) -> Array64:
    """Return the losses of one large block; inf where a part of it loses more than all in another.

    That other is what a sample takes for the best.
    """
    n = len(values.each(len))
    step = max(1, values.count // SAMPLE)
    sampled = values.each(
        lambda x: values.reduce.squared_errors(element, np.ascontiguousarray(x[:, ::step]), params)
    )
    guess = int(np.argmin(sum(sampled)))
    limit = _losses(values, element, [params[guess]])[0, 0] * (1 + SURE)
    losses, left = np.zeros((len(params), 1)), np.arange(len(params))
    for first in range(0, n, -(-n // ROUNDS)):
        part = _losses(
            values, element, [params[int(i)] for i in left], slice(first, first + -(-n // ROUNDS))
        )
        losses[left] += part
        left = left[losses[left, 0] <= limit]
    losses[np.setdiff1d(np.arange(len(params)), left)] = np.inf
    return losses


def _losses_of_many(
    found: Bounds, values: Values, element: Element, params: Callable[[int], Any]
) -> Array64:
    """Return the losses of blocks under one factor after the other, until none can win."""
    narrowest, losses = params(CANDIDATES - 1), []
    for first in range(0, CANDIDATES, ROUND):
        fits = [params(i) for i in range(first, min(first + ROUND, CANDIDATES))]
        losses.append(_losses(values, element, fits))
        least = np.minimum.reduce([each.min(axis=0) for each in losses])
        if element.symmetric and _all_lose(found, element, fits[-1], narrowest, least):
            break
    return np.concatenate(losses)


def _all_lose(found: Bounds, element: Element, params: Any, narrowest: Any, least: Array64) -> bool:
    """Say whether every narrower range loses more than `least` in each block.

    A value beyond a grid that is scaled comes back as its end, and the smaller the scale the
    further from it.
    """
    if np.any(narrowest.scale > params.scale):  # it fell below float32 and became 1
        return False
    ends = np.stack([found.lo, found.hi], axis=-1).astype(np.float32)
    trip = element.round_trip(ends, per_value(params))
    if trip.clipped is None:
        return False
    beyond = np.where(trip.clipped, np.subtract(trip.x_hat, ends, dtype=np.float64), 0)
    return bool(np.all(np.square(beyond).max(axis=-1) > least * (1 + SURE)))


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


def squared_errors(element: Element, x: FloatArray, params: Sequence[Any]) -> Array64:
    """Return the sums of squared errors of blocks ``(blocks, values)`` under some parameters.

    An array ``(params, blocks)``: float32 errors in float64.
    """
    blocks, axis = _reducible(x)
    return np.stack([_squared_error(element, blocks, each, axis) for each in params])


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
