"""Compare the order of the largest values before and after a round trip (lab 03, block E).

Quantization makes ties, and sorting breaks ties by luck: the answer to "is the top 10 the same?"
is then an interval. With one scale a quantizer is monotone and can only merge neighbours; with more
it can swap them.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.tensor import Tensor
from quantlab.stats.survey import Survey
from quantlab.stats.tensor_codec import TensorCodec

ROWS_AT_ONCE = 2**8  # that are read together
TINY = float(np.finfo(np.float32).tiny)
SHOWN = 20  # places of a top k that are listed one by one


class Stability(TypedDict):
    """The rank answers; shares are of the original top k.

    `top_order_kept` says that a value of the top k and a smaller one, in the top or not, always
    came back in this order; values that were equal before may come in any.
    `top_worst`, `top_expected` and `top_best` are the shares kept in the top k when every tie at
    its edge is broken against them, at random, and for them.
    """

    top_k: int
    top_same_set: bool
    top_same_order: bool
    top_order_kept: bool
    top_merged: int
    top_swapped: int
    top_worst: float
    top_expected: float
    top_best: float
    top_bits_sufficient: int | None


def require_k(k: int) -> None:
    """Raise ValueError unless `k` is a whole number of 1 or more."""
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"rank.k must be a whole number of 1 or more, got {k!r}")


class Top(NamedTuple):
    """The largest values of a tensor, largest first, equal ones by lower index."""

    values: FloatArray
    indices: NDArray[np.int64]


def select_top(values: FloatArray, indices: NDArray[np.int64], k: int) -> Top:
    """Select the `k` largest values, given with their indices in the tensor."""
    if values.size > k:  # a selection is linear, a sort is not
        places = np.flatnonzero(values >= np.partition(values, -k)[-k])
        values, indices = values[places], indices[places]
    order = np.lexsort((indices, -values))[:k]
    return Top(values[order], indices[order])


def leading_rows(maxima: FloatArray, k: int) -> NDArray[np.int64]:
    """Return the rows that hold the `k` largest values, given each row's maximum.

    At most 2 k - 1 rows: those whose maximum is above the k-th largest, and the first k at it.
    """
    if maxima.size <= k:
        return np.arange(maxima.size)
    edge = np.partition(maxima, -k)[-k]
    above, at = np.flatnonzero(maxima > edge), np.flatnonzero(maxima == edge)
    return np.sort(np.concatenate([above, at[:k]]))


def compare_tops(
    before: Top,
    after: Top,
    x: FloatArray,
    x_hat: FloatArray,
    reached: int,
    above: int,
    at_edge: int,
    absmax: float | None,
) -> Stability:
    """Compare the k largest values before and after a round trip.

    `before` holds one value more than `after`, the k + 1 largest, unless the tensor has only k;
    `x_hat` are the values that `before` came back as, `x` those that `after` came from. Of the
    whole tensor `reached` counts the values that are at least the k-th largest, `above` and
    `at_edge` those that came back above and at the last of `after`; `absmax` is the largest
    magnitude, None where no width of one scale is asked for.
    """
    k, edge = after.values.size, after.values[-1]
    top, values, came_back = before.indices[:k], before.values[:k], x_hat[:k]
    worst, expected, best = _surviving_shares(came_back, edge, above, at_edge)
    gap = float(values[-1]) - float(before.values[k]) if before.values.size > k else math.inf
    before_top = set(top.tolist())
    others = np.array([index not in before_top for index in after.indices.tolist()])
    x, x_hat = (
        np.concatenate([values, x[others]]),
        np.concatenate([came_back, after.values[others]]),
    )
    merged = np.count_nonzero((values[1:] != values[:-1]) & (came_back[1:] == came_back[:-1]))
    swapped = _count_inversions(x, x_hat)
    return {
        "top_k": k,
        "top_same_set": not others.any(),
        "top_same_order": bool(np.array_equal(top, after.indices)),
        "top_order_kept": bool(
            not merged and not swapped and above + at_edge <= reached and came_back.min() >= edge
        ),
        "top_merged": int(merged),
        "top_swapped": swapped,
        "top_worst": worst,
        "top_expected": expected,
        "top_best": best,
        "top_bits_sufficient": None if absmax is None else bits_sufficient(absmax, gap),
    }


def list_places(before: Top, x_hat: FloatArray) -> dict[str, Any]:
    """Return the first places as plain JSON values, and the one after them.

    `before` and `x_hat` are those of `compare_tops`; indices count elements in C order.
    """
    places = slice(SHOWN + 1)
    return {
        "indices": before.indices[places].tolist(),
        "x": before.values[places].tolist(),
        "x_hat": x_hat[places].tolist(),
    }


def bits_sufficient(absmax: float, gap: float) -> int | None:
    """Return the least width at which symmetric quantization must keep two values apart.

    Values further apart than a step get different codes, so it takes ``absmax / qmax < gap``,
    that is ``1 + log2(1 + absmax / gap)`` bits. The gap is first cut by the float32 rounding of the
    two quotients, ``absmax / 2^23``; at a gap of just one step both may round to one even code.
    None when no width is enough, or when the step of one may underflow and be replaced by 1.
    """
    if gap == math.inf:
        return 2
    gap -= absmax * 2.0**-23
    if gap <= 0 or absmax / 2**15 < TINY:
        return None
    return max(2, math.ceil(1 + math.log2(1 + absmax / gap)))


def _surviving_shares(
    x_hat: FloatArray, edge: np.float32, above: int, at_edge: int
) -> tuple[float, ...]:
    """Return the shares of the top k that stay in it, at the worst, on average and at the best.

    `x_hat` are the values that the top k came back as. Of the whole tensor `above` came back above
    the k-th largest value, `edge`, and `at_edge` at it.
    """
    k = x_hat.size
    stay = int(np.count_nonzero(x_hat > edge))
    tied = int(np.count_nonzero(x_hat == edge))
    places, rivals = k - above, at_edge - tied
    worst = stay + max(0, places - rivals)
    expected = stay + places * tied / at_edge
    return worst / k, expected / k, (stay + min(places, tied)) / k


def _count_inversions(x: FloatArray, x_hat: FloatArray) -> int:
    """Count the pairs that `x` and `x_hat` order strictly the other way round."""
    ordered = x_hat[np.lexsort((x_hat, x))]
    if (ordered[1:] >= ordered[:-1]).all():
        return 0  # a monotone quantizer swaps nothing, which needs no comparison of every pair
    return int(np.count_nonzero((x[:, None] > x) & (x_hat[:, None] < x_hat)))


@dataclass(frozen=True)
class RankComparison:
    """The order of one tensor's values, before its round trip and after.

    A map with even steps keeps the order: then the `levels` that values come back as, and how many
    do, are enough. Else rows have `maxima` as they come back.
    """

    tensor: Tensor
    surveyed: Survey
    codec: TensorCodec
    maxima: FloatArray
    levels: tuple[FloatArray, NDArray[np.int64]] | None

    def compare(self, k: int, certified: bool) -> dict[str, Any]:
        """Compare the k largest values with those that came back largest.

        `certified`: a width that must keep them is one of this format.
        """
        before = select_top(*self._rows(leading_rows(self.surveyed.maxima, k + 1)), k + 1)
        x, indices = self._rows(leading_rows(self._reconstructed_maxima(k), k))
        both = np.concatenate([before.values, x]), np.concatenate([before.indices, indices])
        x_hat, n = self._reconstruct(*both), before.values.size
        before_hat, after = x_hat[:n], select_top(x_hat[n:], indices, k)
        above, at_edge = self._count_beside(after.values[-1])
        answers = compare_tops(
            before,
            after,
            x=x[np.searchsorted(indices, after.indices)],
            x_hat=before_hat,
            reached=self._count_reached(before, k),
            above=above,
            at_edge=at_edge,
            absmax=self.surveyed.absmax if certified else None,
        )
        return {"rank": answers, "top": list_places(before, before_hat)}

    def _reconstructed_maxima(self, k: int) -> FloatArray:
        """Return the maxima of the rows as they come back, of at most `k` rows any."""
        if self.maxima.size:
            return self.maxima
        maxima = self.surveyed.maxima
        x_hat = None if maxima.size <= k else self.codec.reconstruct(maxima)
        return maxima if x_hat is None else x_hat

    def _rows(self, rows: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return the elements of some rows, and their indices."""
        return self.tensor.rows(self.surveyed.width, rows)

    def _reconstruct(self, x: FloatArray, indices: NDArray[np.int64]) -> FloatArray:
        """Reconstruct elements of some indices."""
        x_hat = self.codec.reconstruct(x)
        if x_hat is not None:
            return x_hat
        width, size = self.surveyed.width, self.tensor.size
        rows, places = np.unique(indices // width, return_inverse=True)
        spans = [(row, min(row + width, size)) for row in (rows * width).tolist()]
        x_hat = np.concatenate([self.codec.read(*span) for span in spans])
        return x_hat[places * width + indices % width]  # all rows are full but the last

    def _count_beside(self, edge: np.float32) -> tuple[int, int]:
        """Count the values that come back above the k-th largest, and at it."""
        if self.levels:
            values, times = self.levels
            return int(times[values > edge].sum()), int(times[values == edge].sum())
        above, at_edge = 0, 0
        rows = np.flatnonzero(self.maxima >= edge)
        for start in range(0, rows.size, ROWS_AT_ONCE):
            x_hat = self._reconstruct(*self._rows(rows[start : start + ROWS_AT_ONCE]))
            above += int(np.count_nonzero(x_hat > edge))
            at_edge += int(np.count_nonzero(x_hat == edge))
        return above, at_edge

    def _count_reached(self, before: Top, k: int) -> int:
        """Count the values that are at least the k-th largest: k, or more where others equal it."""
        least = before.values[k - 1]
        if before.values[-1] < least:
            return k
        rows = np.flatnonzero(self.surveyed.maxima >= least)
        starts = range(0, rows.size, ROWS_AT_ONCE)
        parts = (self._rows(rows[start : start + ROWS_AT_ONCE])[0] for start in starts)
        return sum(int(np.count_nonzero(x >= least)) for x in parts)
