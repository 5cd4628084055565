"""Whether the order of the largest values survives a round trip (lab 03, block E).

Quantization makes ties, and sorting breaks ties by luck: the answer to "is the top 10 the same?"
is then an interval. A monotone quantizer can only merge neighbours, never swap them.
"""

import math
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Stability(TypedDict):
    """The rank answers; shares are of the original top k.

    `top_worst`, `top_expected` and `top_best` are the shares kept in the top k when every tie at
    its edge is broken against them, at random, and for them.
    """

    top_k: int
    top_same_set: bool
    top_same_order: bool
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


def stability(x: NDArray[np.float32], x_hat: NDArray[np.float32], k: int = 10) -> Stability:
    """Compare the top `k` of two arrays of one shape, both read flat.

    A tensor of fewer than `k` elements is compared whole. Equal values rank by lower index.
    """
    require_k(k)
    x, x_hat = x.ravel(), x_hat.ravel()
    k = min(k, x.size)
    order, order_hat = descending(x), descending(x_hat)
    top, top_hat = order[:k], order_hat[:k]
    worst, expected, best = _kept(x_hat, top, x_hat[top_hat[-1]])
    gap = math.inf if k == x.size else float(x[order[k - 1]]) - float(x[order[k]])
    return {
        "top_k": k,
        "top_same_set": set(top.tolist()) == set(top_hat.tolist()),
        "top_same_order": bool(np.array_equal(top, top_hat)),
        "top_merged": int(np.count_nonzero((np.diff(x[top]) != 0) & (np.diff(x_hat[top]) == 0))),
        "top_swapped": _inversions(x, x_hat, np.union1d(top, top_hat)),
        "top_worst": worst,
        "top_expected": expected,
        "top_best": best,
        "top_bits_sufficient": bits_sufficient(float(np.abs(x).max()), gap),
    }


def descending(x: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the indices that sort `x` from the largest down, ties by lower index."""
    return np.argsort(-x, kind="stable")


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
    if gap <= 0 or absmax / 2**15 < np.finfo(np.float32).tiny:
        return None
    return max(2, math.ceil(1 + math.log2(1 + absmax / gap)))


def _kept(
    x_hat: NDArray[np.float32], top: NDArray[np.intp], edge: np.float32
) -> tuple[float, float, float]:
    """Return the shares of `top` kept, `edge` being the k-th largest of `x_hat`."""
    k = len(top)
    kept = int(np.count_nonzero(x_hat[top] > edge))
    at_edge = int(np.count_nonzero(x_hat[top] == edge))
    rivals = int(np.count_nonzero(x_hat == edge)) - at_edge
    places = k - int(np.count_nonzero(x_hat > edge))
    worst = kept + max(0, places - rivals)
    expected = kept + places * at_edge / (at_edge + rivals)
    return worst / k, expected / k, (kept + min(places, at_edge)) / k


def _inversions(x: NDArray[np.float32], x_hat: NDArray[np.float32], among: NDArray[np.intp]) -> int:
    """Count the pairs that `x` and `x_hat` order strictly the other way round."""
    before = x[among, None] > x[among]
    after = x_hat[among, None] < x_hat[among]
    return int(np.count_nonzero(before & after))
