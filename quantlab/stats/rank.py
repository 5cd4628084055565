"""Whether the order of the largest values survives a round trip (lab 03, block E).

Quantization makes ties, and sorting breaks ties by luck: the answer to "is the top 10 the same?"
is then an interval. With one scale a quantizer is monotone and can only merge neighbours; with more
it can swap them.
"""

import math
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.stats.sums import CHUNK

ROW = 2**10  # values whose maximum is kept, at the least
ROWS = 2**20  # maxima that are kept, or hardly more
TINY = float(np.finfo(np.float32).tiny)
SHOWN = 20  # places of a top k that are kept one by one


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
    """Some of the largest values of a tensor, largest first, equal ones by lower index."""

    values: FloatArray
    indices: NDArray[np.int64]


def top(values: FloatArray, indices: NDArray[np.int64], k: int) -> Top:
    """Return the `k` largest of some values, given with their indices in the tensor."""
    if values.size > k:  # a selection is linear, a sort is not
        kept = np.flatnonzero(values >= np.partition(values, -k)[-k])
        values, indices = values[kept], indices[kept]
    order = np.lexsort((indices, -values))[:k]
    return Top(values[order], indices[order])


def new_maxima(size: int) -> tuple[int, FloatArray]:
    """Return the width of rows, and their maxima before a look at any."""
    width = min(CHUNK, max(ROW, 2 ** (size // ROWS).bit_length()))
    return width, np.full(-(-size // width), -math.inf, np.float32)


def row_maxima(block: FloatArray, width: int, out: FloatArray) -> None:
    """Write the maximum of each `width` values of a flat block, of which the last may be fewer."""
    whole = block.size - block.size % width
    block[:whole].reshape(-1, width).max(axis=1, out=out[: whole // width])
    out[whole // width :] = block[whole:].max(initial=-math.inf)


def leading(maxima: FloatArray, k: int) -> NDArray[np.int64]:
    """Return the rows that hold the `k` largest values, given each row's maximum.

    At most 2 k - 1 rows: those whose maximum is above the k-th largest, and the first k at it.
    """
    if maxima.size <= k:
        return np.arange(maxima.size)
    edge = np.partition(maxima, -k)[-k]
    above, at = np.flatnonzero(maxima > edge), np.flatnonzero(maxima == edge)
    return np.sort(np.concatenate([above, at[:k]]))


def stability(
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
    worst, expected, best = _kept(came_back, edge, above, at_edge)
    gap = float(values[-1]) - float(before.values[k]) if before.values.size > k else math.inf
    known = set(top.tolist())
    others = np.array([each not in known for each in after.indices.tolist()])
    x, x_hat = (
        np.concatenate([values, x[others]]),
        np.concatenate([came_back, after.values[others]]),
    )
    merged = np.count_nonzero((values[1:] != values[:-1]) & (came_back[1:] == came_back[:-1]))
    swapped = _inversions(x, x_hat)
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


def table(before: Top, x_hat: FloatArray) -> dict[str, Any]:
    """Return the first places as plain JSON values, and the one after them.

    `before` and `x_hat` are those of `stability`; indices count elements in C order.
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


def _kept(x_hat: FloatArray, edge: np.float32, above: int, at_edge: int) -> tuple[float, ...]:
    """Return the shares kept of the top k, whose values came back as `x_hat`.

    Of the whole tensor `above` came back above the k-th largest value, `edge`, and `at_edge` at it.
    """
    k = x_hat.size
    kept = int(np.count_nonzero(x_hat > edge))
    ours = int(np.count_nonzero(x_hat == edge))
    places, rivals = k - above, at_edge - ours
    worst = kept + max(0, places - rivals)
    expected = kept + places * ours / at_edge
    return worst / k, expected / k, (kept + min(places, ours)) / k


def _inversions(x: FloatArray, x_hat: FloatArray) -> int:
    """Count the pairs that `x` and `x_hat` order strictly the other way round."""
    ordered = x_hat[np.lexsort((x_hat, x))]
    if (ordered[1:] >= ordered[:-1]).all():
        return 0  # the rule for a monotone quantizer, told without comparing every pair
    return int(np.count_nonzero((x[:, None] > x) & (x_hat[:, None] < x_hat)))
