"""What is left of a round trip: the sums of each chunk, and their exact total.

The error `x_hat - x` is taken in float32, as in the lab, and everything is summed in float64. Sums
of chunks are combined exactly rounded (`math.fsum`), so figures do not depend on how a tensor was
cut into blocks or who summed which.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray

CHUNK = 2**16
ROW = 2**13  # values of a full chunk that BLAS adds on its own; of more it may ask threads
ONES = np.ones(ROW)
Mask = NDArray[np.bool_]
Array64 = NDArray[np.float64]


class Moments(NamedTuple):
    """What a tensor is like before any round trip; powers are in its own unit."""

    n: int
    zeros: int  # x == 0
    x: float
    sq_x: float


class Sums(NamedTuple):
    """What a round trip leaves behind; powers and products are in the tensor's own unit."""

    n: int
    zeros: int  # x == 0
    x: float
    sq_x: float
    zeroed: int  # x != 0 and x_hat == 0
    rel_count: int
    clipped: int  # beyond the grid
    max_err: float
    err: float  # x_hat - x
    abs_err: float
    sq_err: float
    rel_err: float  # |x_hat - x| / |x| where |x| is above the threshold
    x_err: float  # x * (x_hat - x)
    dot: float  # x * x_hat
    sq_x_hat: float
    zero_sq_err: float  # of values that came back as 0
    clip_sq_err: float  # of values beyond the grid


class Partial(NamedTuple):
    """What some chunks add: counts, the largest error, and ``(9, chunks)`` sums, as in `Sums`."""

    zeroed: int
    rel_count: int
    clipped: int
    max_err: float
    sums: Array64


def chunks(size: int) -> list[slice]:
    """Return the chunks of flat values, of which the last may be short."""
    return [slice(start, start + CHUNK) for start in range(0, size, CHUNK)]


def moments(x: FloatArray, scratch: Array64) -> list[float]:
    """Return the zeros, the sum and the sum of squares of a chunk; `scratch` has a row for it."""
    exact = scratch[0, : x.size]
    np.copyto(exact, x)
    return [x.size - int(np.count_nonzero(x != 0)), _sum(exact), _dot(exact, exact)]


def partial_sums(
    x: FloatArray,
    x_hat: FloatArray,
    difference: FloatArray,
    rel_threshold: float,
    scratch: Array64,
    clipped: Mask | None = None,
) -> Partial:
    """Return what a chunk adds, of which `clipped` lay beyond the grid.

    `difference` is ``x_hat - x`` in float32; `scratch` has four rows for the chunk.
    """
    exact, exact_hat, err, other = scratch[:, : x.size]
    for target, values in ((exact, x), (exact_hat, x_hat), (err, difference)):
        np.copyto(target, values)
    x_err = _dot(exact, np.subtract(exact_hat, exact, out=other))
    dot, sq_err, sq_x_hat = _dot(exact, exact_hat), _dot(err, err), _dot(exact_hat, exact_hat)
    became_zero, clip_sq_err = x_hat == 0, 0.0
    zeroed = int(np.count_nonzero(became_zero & (x != 0)))
    if clipped is not None:
        clip_sq_err = _sum(np.square(err[clipped]))
        became_zero &= ~clipped
    zero_sq_err = _sum(np.square(err[became_zero])) if zeroed else 0.0
    below = np.abs(x) <= rounded_down(rel_threshold)
    excluded = int(np.count_nonzero(below))
    if excluded:
        np.putmask(exact, below, np.inf)
    ratio = np.abs(np.divide(err, exact, out=exact), out=exact)
    sum_err, abs_err = _sum(err), np.abs(err, out=err)
    sums = (
        sum_err,
        _sum(abs_err),
        sq_err,
        _sum(ratio),
        x_err,
        dot,
        sq_x_hat,
        zero_sq_err,
        clip_sq_err,
    )
    beyond = 0 if clipped is None else int(np.count_nonzero(clipped))
    columns = np.array(sums)[:, None]
    return Partial(zeroed, x.size - excluded, beyond, float(abs_err.max()), columns)


@lru_cache
def rounded_down(threshold: float) -> np.float32:
    """Return the largest float32 that is not above a threshold: a float32 is above both or none."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))


def _dot(a: Array64, b: Array64) -> float:
    """Return the sum of products: of a full chunk as BLAS adds, of a shorter one in pairs.

    Small tensors have been published with sums in pairs.
    """
    if a.size < CHUNK:
        return float((a * b).sum())
    return float(np.vecdot(a.reshape(-1, ROW), b.reshape(-1, ROW)).sum())


def _sum(a: Array64) -> float:
    return float(a.sum() if a.size < CHUNK else np.vecdot(a.reshape(-1, ROW), ONES).sum())


def total_moments(size: int, columns: Sequence[Array64]) -> Moments:
    """Return the moments of a tensor from those of its chunks."""
    zeros, x, sq_x = _exactly(columns)
    return Moments(size, int(zeros), x, sq_x)


def total(partials: Sequence[Partial], moments: Moments) -> Sums:
    """Return the sums of the whole from those of its blocks, of which there is at least one."""
    zeroed, rel_counts, clipped, max_errs, sums = zip(*partials, strict=True)
    counts = sum(zeroed), sum(rel_counts), sum(clipped)
    return Sums(*moments, *counts, max(max_errs), *_exactly(sums))


def _exactly(columns: Sequence[Array64]) -> list[float]:
    return [math.fsum(row) for row in np.concatenate(columns, axis=1).tolist()]
