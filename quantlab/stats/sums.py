"""What is left of a round trip: the sums of each chunk, and their exact total.

The error `x_hat - x` is taken in float32, as in the lab, and everything is summed in float64. Sums
of chunks are combined exactly rounded (`math.fsum`), so figures do not depend on how a tensor was
cut into blocks or who summed which.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray

CHUNK = 2**16
ROW = 2**9  # values added on their own: of more than 500 rows NumPy releases the lock of Python
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


class Scratch:
    """Memory for the sums of up to `size` flat values."""

    def __init__(self, size: int, rows: int = 3) -> None:
        """Allocate `rows` of float64, and two of masks."""
        self._floats = np.empty((rows, size))
        self._masks = np.empty((2, size), bool)

    def floats(self, size: int) -> Array64:
        """Return rows of float64 for some values."""
        return self._floats[:, :size]

    def masks(self, size: int) -> NDArray[np.bool_]:
        """Return rows of masks for some values."""
        return self._masks[:, :size]


def stretches(size: int) -> list[slice]:
    """Return flat values cut into all full chunks, and a short one."""
    full = size - size % CHUNK
    return [slice(*ends) for ends in ((0, full), (full, size)) if ends[0] < ends[1]]


def moments(x: FloatArray, scratch: Scratch) -> Array64:
    """Return the zeros, the sum and the sum of squares of each chunk, ``(3, chunks)``.

    `x` is full chunks, or a short one.
    """
    (exact, *_), (mask, _) = scratch.floats(x.size), scratch.masks(x.size)
    np.copyto(exact, x)
    zeros = _count(np.equal(x, 0, out=mask))
    return np.array([zeros, _sum(exact), _dot(exact, exact)])


def partial_sums(
    x: FloatArray,
    x_hat: FloatArray,
    errors: tuple[FloatArray, FloatArray],
    rel_threshold: float,
    scratch: Scratch,
    clipped: Mask | None = None,
) -> Partial:
    """Return what full chunks add, or a short one, of which `clipped` lay beyond the grid.

    `errors` are ``x_hat - x`` in float32, and their magnitudes, which are overwritten.
    """
    exact, exact_hat, err = scratch.floats(x.size)
    for target, values in ((exact, x), (exact_hat, x_hat), (err, errors[0])):
        np.copyto(target, values)
    dot, sq_err, sq_x_hat = _dot(exact, exact_hat), _dot(err, err), _dot(exact_hat, exact_hat)
    x_err = _dot(exact, np.subtract(exact_hat, exact, out=exact_hat))
    sum_err, max_err = _sum(err), float(errors[1].max())
    became_zero, mask = scratch.masks(x.size)
    np.logical_and(np.equal(x_hat, 0, out=became_zero), np.not_equal(x, 0, out=mask), out=mask)
    zeroed = np.count_nonzero(mask)
    clip_sq_err = zero_sq_err = np.zeros_like(sq_err)
    if clipped is not None:
        clip_sq_err = _squares(err, clipped)
        became_zero &= ~clipped
    if zeroed:
        zero_sq_err = _squares(err, became_zero)
    below = np.less_equal(np.abs(x, out=errors[1]), rounded_down(rel_threshold), out=mask)
    excluded = int(np.count_nonzero(below))
    if excluded:
        np.putmask(exact, below, np.inf)
    rel_err = _sum(np.abs(np.divide(err, exact, out=exact), out=exact))
    abs_err = _sum(np.abs(err, out=err))
    beyond = 0 if clipped is None else int(np.count_nonzero(clipped))
    sums = sum_err, abs_err, sq_err, rel_err, x_err, dot, sq_x_hat, zero_sq_err, clip_sq_err
    return Partial(int(zeroed), x.size - excluded, beyond, max_err, np.array(sums))


@lru_cache
def rounded_down(threshold: float) -> np.float32:
    """Return the largest float32 that is not above a threshold: a float32 is above both or none."""
    with np.errstate(over="ignore"):
        rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))


def _dot(a: Array64, b: Array64) -> Array64:
    """Return the sums of products of chunks: of full ones as BLAS adds, of a short one in pairs.

    Small tensors have been published with sums in pairs.
    """
    if a.size % CHUNK:
        return (a * b).sum(keepdims=True)
    return np.vecdot(a.reshape(-1, CHUNK // ROW, ROW), b.reshape(-1, CHUNK // ROW, ROW)).sum(axis=1)


def _sum(a: Array64) -> Array64:
    """Return the sums of chunks."""
    if a.size % CHUNK:
        return a.sum(keepdims=True)
    return np.vecdot(a.reshape(-1, CHUNK // ROW, ROW), ONES).sum(axis=1)


def _squares(err: Array64, mask: Mask) -> Array64:
    """Return the sums of squares in chunks of what a mask holds."""
    pairs = zip(_chunks(err), _chunks(mask), strict=True)
    return np.array([np.square(chunk[which]).sum() for chunk, which in pairs])


def _count(mask: Mask) -> Array64:
    """Return how much a mask holds in each chunk."""
    return np.array([np.count_nonzero(chunk) for chunk in _chunks(mask)], np.float64)


def _chunks(values: NDArray[Any]) -> NDArray[Any]:
    """Return full chunks a row each, or a short one."""
    return values.reshape(1, -1) if values.size % CHUNK else values.reshape(-1, CHUNK)


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
