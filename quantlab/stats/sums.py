"""What the blocks of a round trip leave behind: partial sums, and their total.

The error `x_hat - x` is taken in float32, as in the lab. How it is summed depends on the size:
up to `CHUNK` elements everything is float64; in longer tensors each full chunk is summed in
float32 rows of `ROW` elements, whose sums are added up in float64: exact to 1e-7 where roundings
are free to cancel, to 1e-6 where a few values repeat. Signed errors cancel, so their sum is float64
throughout. Sums of chunks are combined exactly rounded (`math.fsum`), so figures do not depend on
how a tensor was cut into blocks or who summed which.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray

CHUNK = 2**16
ROW = 2**10
TINY = 2.0**-48  # below it the float32 squares of errors lose digits
HUGE = 2.0**48  # above it they may overflow
SHRUNK = 0.01  # of the squares of x, below which those of x_hat are summed themselves
PIECE = 2**13  # values whose float64 copies fit the cache
ONES = np.ones(ROW, np.float32)
Mask = NDArray[np.bool_]


class Sums(NamedTuple):
    """What a round trip leaves behind; powers and products are in the tensor's own unit."""

    n: int
    zeros: int  # x == 0
    zeroed: int  # x != 0 and x_hat == 0
    rel_count: int
    max_err: float
    err: float  # x_hat - x
    abs_err: float
    sq_err: float
    rel_err: float  # |x_hat - x| / |x| where |x| is above the threshold
    x: float
    sq_x: float
    x_err: float  # x * (x_hat - x)
    dot: float  # x * x_hat
    zero_sq_err: float  # of values that came back as 0
    clip_sq_err: float  # of values beyond the grid
    sq_x_hat: float


class Partial(NamedTuple):
    """What one block leaves behind; `sums` has a column a chunk, a row for each sum of `Sums`."""

    n: int
    zeros: int
    zeroed: int
    rel_count: int
    max_err: float
    sums: NDArray[np.float64]


def exact_sums(
    x: FloatArray, x_hat: FloatArray, rel_threshold: float, clipped: Mask | None = None
) -> Partial:
    """Return the float64 sums over at most a chunk of flat values."""
    pieces = [slice(start, start + PIECE) for start in range(0, x.size, PIECE)]
    chunk = _concatenate(
        _exact_sums(x[each], x_hat[each], rel_threshold, None if clipped is None else clipped[each])
        for each in pieces
    )
    return chunk._replace(sums=chunk.sums.sum(axis=1, keepdims=True))


def _exact_sums(
    x32: FloatArray, x_hat32: FloatArray, rel_threshold: float, clipped: Mask | None
) -> Partial:
    err = (x_hat32 - x32).astype(np.float64)
    x, x_hat = x32.astype(np.float64), x_hat32.astype(np.float64)
    magnitude, abs_err = np.abs(x), np.abs(err)
    zeros, excluded = _leave_out(magnitude, rel_threshold)
    ratio, sq_err = abs_err / magnitude, np.square(err)
    terms = (err, abs_err, sq_err, ratio, x, np.square(x), x * (x_hat - x), x * x_hat)
    came_back_as_zero = x_hat == 0
    zeroed = int(np.count_nonzero(came_back_as_zero & (x != 0)))
    lost = [0.0, 0.0]
    if clipped is not None:
        lost[1] = sq_err[clipped].sum()
        came_back_as_zero &= ~clipped
    if zeroed:
        lost[0] = sq_err[came_back_as_zero].sum()
    sums = np.array(
        [[each] for each in (*(term.sum() for term in terms), *lost, np.square(x_hat).sum())]
    )
    return Partial(x.size, zeros, zeroed, x.size - excluded, float(abs_err.max()), sums)


def fast_sums(
    x: FloatArray,
    x_hat: FloatArray,
    scratch: FloatArray,
    rel_threshold: float,
    positive: bool,
) -> Partial:
    """Return the sums over whole chunks of flat values, none of them beyond the grid.

    `scratch` has three rows: x_hat - x, its magnitude, and one to overwrite. Only where no value is
    negative the sum of x is of use, and taken; it is nan otherwise.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of errors beyond HUGE, summed again
        return _fast_sums(x, x_hat, scratch, rel_threshold, positive)


def _fast_sums(
    x: FloatArray, x_hat: FloatArray, scratch: FloatArray, rel_threshold: float, positive: bool
) -> Partial:
    err, abs_err, ratio = scratch
    magnitude = np.abs(x, out=ratio)
    zeros, excluded = _leave_out(magnitude, rel_threshold)
    np.divide(abs_err, magnitude, out=ratio)
    x_rows, err_rows = x.reshape(-1, ROW), err.reshape(-1, ROW)
    rows = np.empty((11, len(x_rows)))
    np.add.reduce(err_rows, axis=1, dtype=np.float64, out=rows[0])
    rows[1:4:2] = np.vecdot(scratch[1:].reshape(2, -1, ROW), ONES)
    rows[2] = np.vecdot(err_rows, err_rows)
    rows[4] = np.add.reduce(x_rows, axis=1, dtype=np.float64) if positive else np.nan
    rows[5] = np.vecdot(x_rows, x_rows)
    rows[6] = np.vecdot(x_rows, err_rows)
    rows[7] = rows[5] + rows[6]
    came_back_as_zero = x_hat == 0
    zeroed = int(np.count_nonzero(came_back_as_zero)) - _kept_zeros(x, came_back_as_zero, zeros)
    rows[8] = _masked_squares(err, came_back_as_zero, ratio) if zeroed else 0.0
    rows[9] = 0.0
    rows[10] = rows[5] + 2 * rows[6] + rows[2]  # its rounding is that of x^2, and cancels with it
    sums = np.add.reduce(rows.reshape(11, -1, CHUNK // ROW), axis=2)
    max_errs = np.maximum.reduce(abs_err.reshape(-1, CHUNK), axis=1)
    extreme = ((max_errs > 0) & (max_errs < TINY)) | (max_errs > HUGE)
    extreme |= sums[10] < SHRUNK * sums[5]  # the sums that are derived cancel
    for n in np.flatnonzero(extreme):
        chunk = slice(CHUNK * n, CHUNK * (n + 1))
        sums[:, n] = exact_sums(x[chunk], x_hat[chunk], rel_threshold).sums[:, 0]
    return Partial(x.size, zeros, zeroed, x.size - excluded, float(max_errs.max()), sums)


def _kept_zeros(x: FloatArray, came_back_as_zero: Mask, zeros: int) -> int:
    """Return how many of the `zeros` of x came back as 0."""
    return int(np.count_nonzero(came_back_as_zero & (x == 0))) if zeros else 0


def _masked_squares(err: FloatArray, mask: Mask, scratch: FloatArray) -> NDArray[np.float64]:
    """Return the sums of squares over rows, of the values that a mask holds."""
    masked = np.multiply(err, mask, out=scratch).reshape(-1, ROW)
    return np.vecdot(masked, masked)


def _leave_out(magnitude: NDArray[Any], rel_threshold: float) -> tuple[int, int]:
    """Set magnitudes without a relative error to inf; return how many are 0, and how many set."""
    if float(np.minimum.reduce(magnitude)) > rel_threshold:
        return 0, 0
    zeros = magnitude.size - int(np.count_nonzero(magnitude))
    below = magnitude <= magnitude.dtype.type(_round_down(rel_threshold))
    np.putmask(magnitude, below, np.inf)
    return zeros, int(np.count_nonzero(below))


def total(partials: Iterable[Partial]) -> Sums:
    """Return the sums of the whole from those of its blocks, of which there is at least one."""
    n, zeros, zeroed, rel_count, max_err, sums = _concatenate(partials)
    exact = map(math.fsum, sums.tolist())
    return Sums(n, zeros, zeroed, rel_count, max_err, *exact)


def _concatenate(partials: Iterable[Partial]) -> Partial:
    n, zeros, zeroed, rel_counts, max_errs, sums = zip(*partials, strict=True)
    columns = np.concatenate(sums, axis=1)
    return Partial(sum(n), sum(zeros), sum(zeroed), sum(rel_counts), max(max_errs), columns)


def _round_down(value: float) -> np.float32:
    """Return the largest float32 that is not above `value`."""
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))
