"""The error statistics of a round trip: blocks -> partial sums -> figures.

The error `x_hat - x` is taken in float32, as in the lab. How it is summed depends on the size:
up to `CHUNK` elements everything is float64; in longer tensors each full chunk is summed in
float32 rows of `ROW` elements, whose sums are added up in float64: exact to 1e-7 where roundings
are free to cancel, to 1e-6 where a few values repeat. 1 - cos is made of the part of the error that
is not along x, and is exact to that share of |err|^2 / |x|^2. Signed errors cancel, so their sum is
float64 throughout. Sums of chunks are combined exactly rounded (`math.fsum`), so figures do not
depend on how a tensor was cut into blocks or who summed which.

To add a metric: write a function of `Evidence` and append it to `METRICS`; its name is its column.
A figure that does not exist raises `UndefinedError` with the reason, and becomes null.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.histogram import ErrorHistogram

FloatArray = NDArray[np.float32]

CHUNK = 2**16
ROW = 2**10
TINY = 2.0**-48  # below it the float32 squares of errors lose digits
PIECE = 2**13  # values whose float64 copies fit the cache
ONES = np.ones(ROW, np.float32)


class UndefinedError(ValueError):
    """A figure has no value for this tensor; the message says why."""


class Sums(NamedTuple):
    """What a round trip leaves behind; powers and products are in the tensor's own unit."""

    n: int
    zeros: int  # x == 0
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


class Partial(NamedTuple):
    """What one block leaves behind; `sums` has a column a chunk, a row for each sum of `Sums`."""

    n: int
    zeros: int
    rel_count: int
    max_err: float
    sums: NDArray[np.float64]


def exact_sums(x: FloatArray, x_hat: FloatArray, rel_threshold: float) -> Partial:
    """Return the float64 sums over at most a chunk of flat values."""
    pieces = (slice(start, start + PIECE) for start in range(0, x.size, PIECE))
    chunk = _joined(_exact_sums(x[piece], x_hat[piece], rel_threshold) for piece in pieces)
    return chunk._replace(sums=chunk.sums.sum(axis=1, keepdims=True))


def _exact_sums(x32: FloatArray, x_hat32: FloatArray, rel_threshold: float) -> Partial:
    err = (x_hat32 - x32).astype(np.float64)
    x, x_hat = x32.astype(np.float64), x_hat32.astype(np.float64)
    magnitude, abs_err = np.abs(x), np.abs(err)
    zeros, excluded = _leave_out(magnitude, rel_threshold)
    ratio = abs_err / magnitude
    terms = (err, abs_err, np.square(err), ratio, x, np.square(x), x * (x_hat - x), x * x_hat)
    sums = np.array([[term.sum()] for term in terms])
    return Partial(x.size, zeros, x.size - excluded, float(abs_err.max()), sums)


def fast_sums(
    x: FloatArray, x_hat: FloatArray, scratch: FloatArray, rel_threshold: float, positive: bool
) -> Partial:
    """Return the sums over whole chunks of flat values.

    `scratch` has three rows: x_hat - x, its magnitude, and one to overwrite. Only where no value is
    negative the sum of x is of use, and taken; it is nan otherwise.
    """
    err, abs_err, ratio = scratch
    magnitude = np.abs(x, out=ratio)
    zeros, excluded = _leave_out(magnitude, rel_threshold)
    np.divide(abs_err, magnitude, out=ratio)
    x_rows, err_rows = x.reshape(-1, ROW), err.reshape(-1, ROW)
    rows = np.empty((8, len(x_rows)))
    np.add.reduce(err_rows, axis=1, dtype=np.float64, out=rows[0])
    rows[1:4:2] = np.vecdot(scratch[1:].reshape(2, -1, ROW), ONES)
    rows[2] = np.vecdot(err_rows, err_rows)
    rows[4] = np.add.reduce(x_rows, axis=1, dtype=np.float64) if positive else np.nan
    rows[5] = np.vecdot(x_rows, x_rows)
    rows[6] = np.vecdot(x_rows, err_rows)
    rows[7] = rows[5] + rows[6]
    sums = np.add.reduce(rows.reshape(8, -1, CHUNK // ROW), axis=2)
    max_errs = np.maximum.reduce(abs_err.reshape(-1, CHUNK), axis=1)
    for tiny in np.flatnonzero((max_errs > 0) & (max_errs < TINY)):
        chunk = slice(CHUNK * tiny, CHUNK * (tiny + 1))
        sums[:, tiny] = exact_sums(x[chunk], x_hat[chunk], rel_threshold).sums[:, 0]
    return Partial(x.size, zeros, x.size - excluded, float(max_errs.max()), sums)


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
    n, zeros, rel_count, max_err, sums = _joined(partials)
    return Sums(n, zeros, rel_count, max_err, *(math.fsum(row) for row in sums.tolist()))


def _joined(partials: Iterable[Partial]) -> Partial:
    n, zeros, rel_counts, max_errs, sums = zip(*partials, strict=True)
    columns = np.concatenate(sums, axis=1)
    return Partial(sum(n), sum(zeros), sum(rel_counts), max(max_errs), columns)


def require_threshold(rel_threshold: float) -> None:
    """Raise ValueError unless `rel_threshold` is a number of 0 or more."""
    if not isinstance(rel_threshold, int | float) or not rel_threshold >= 0:
        raise ValueError(
            f"metrics.rel_threshold must be a number of 0 or more, got {rel_threshold!r}"
        )


@dataclass(frozen=True)
class Evidence:
    """Everything the figures are made of.

    `errors` holds |x_hat - x| of a sample, of every element where they are few; `codes` are those
    used, `code_counts` says how often each occurs and `code_values` what it stands for; `clipped`
    counts the values beyond the code range before saturation, `zeroed` the non-zero values that
    came back as 0. `divergence` is the sum of x * log2(x / x_hat), wanted of probability vectors
    alone.
    """

    sums: Sums
    errors: ErrorHistogram
    codes: NDArray[np.int16]
    code_counts: NDArray[np.int64]
    code_values: FloatArray
    clipped: int
    zeroed: int
    scale: float
    negative: bool
    divergence: float = math.nan

    @cached_property
    def sq_x_hat(self) -> float:
        """The sum of x_hat^2, from the few values that it takes."""
        return float((self.code_counts * np.square(self.code_values, dtype=np.float64)).sum())


def mae(e: Evidence) -> float:
    """Mean of |x_hat - x|."""
    return e.sums.abs_err / e.sums.n


def max_err(e: Evidence) -> float:
    """Largest |x_hat - x|."""
    return e.sums.max_err


def rel_err(e: Evidence) -> float:
    """Mean of |x_hat - x| / |x| over |x| above the threshold (lab 03, block C and pitfalls)."""
    if not e.sums.rel_count:
        raise UndefinedError("no |x| is above the threshold")
    return e.sums.rel_err / e.sums.rel_count


def cos_sim(e: Evidence) -> float:
    """Cosine of the angle between x and x_hat, both flattened."""
    return min(1.0, e.sums.dot / _product_of_norms(e))


def n_codes(e: Evidence) -> int:
    """How many distinct codes occur."""
    return len(e.code_counts)


def rmse(e: Evidence) -> float:
    """Root of the mean squared error."""
    return math.sqrt(e.sums.sq_err / e.sums.n)


def sqnr_db(e: Evidence) -> float:
    """Signal to quantization noise ratio, 10 log10(sum x^2 / sum err^2), in dB."""
    if not e.sums.sq_err:
        raise UndefinedError("the round trip is perfect")
    if e.sums.zeros == e.sums.n:
        raise UndefinedError("x is all zeros")
    return 10 * math.log10(e.sums.sq_x / e.sums.sq_err)


def bias(e: Evidence) -> float:
    """Mean of x_hat - x."""
    return e.sums.err / e.sums.n


def err_p50(e: Evidence) -> float:
    """Median of |x_hat - x|, interpolated linearly."""
    return e.errors.quantile(0.50)


def err_p95(e: Evidence) -> float:
    """95th percentile of |x_hat - x|, interpolated linearly."""
    return e.errors.quantile(0.95)


def zeroed(e: Evidence) -> float:
    """Share of the non-zero values that come back as 0."""
    nonzero = e.sums.n - e.sums.zeros
    if not nonzero:
        raise UndefinedError("x is all zeros")
    return e.zeroed / nonzero


def clipped(e: Evidence) -> float:
    """Share of the values beyond the code range before saturation."""
    return e.clipped / e.sums.n


def code_entropy(e: Evidence) -> float:
    """Shannon entropy of the codes, in bits."""
    kinds = Counter(e.code_counts.tolist())  # many codes, few distinct counts
    shares = ((times, count / e.sums.n) for count, times in kinds.items())
    return 0.0 - math.fsum(times * share * math.log2(share) for times, share in shares)


def rmse_over_scale(e: Evidence) -> float:
    """RMSE in steps; 1 / sqrt(12) = 0.2887 when the errors are uniform over a step."""
    return rmse(e) / e.scale


def bound_ratio(e: Evidence) -> float:
    """Largest error over half a step; above 1 only by float32 rounding, unless values clip."""
    return e.sums.max_err / (e.scale / 2)


def one_minus_cos(e: Evidence) -> float:
    """1 - cos_sim without its cancellation: (|err|^2 - (|x_hat| - |x|)^2) / (2 |x| |x_hat|)."""
    norms = _product_of_norms(e)
    if e.sums.sq_err > 1e-3 * min(e.sums.sq_x, e.sq_x_hat):  # no cancellation to fear
        return max(0.0, 1 - e.sums.dot / norms)
    radial = 2 * e.sums.x_err + e.sums.sq_err  # |x_hat|^2 - |x|^2
    longer = radial / (math.sqrt(e.sums.sq_x) + math.sqrt(e.sq_x_hat))
    return max(0.0, e.sums.sq_err - longer * longer) / (2 * norms)


def kl(e: Evidence) -> float:
    """Kullback-Leibler divergence of x_hat, renormalised, from x, in bits."""
    if not is_probability(e.sums, e.negative):
        raise UndefinedError("x is no probability vector")
    if e.zeroed:
        raise UndefinedError(f"x_hat is 0 at {e.zeroed} elements where x is not")
    x_hat = e.sums.x + e.sums.err
    return max(0.0, e.divergence / e.sums.x + math.log2(x_hat / e.sums.x))


def is_probability(sums: Sums, negative: bool) -> bool:
    """Say whether the values of a tensor share out 1, as far as float32 can tell."""
    return not negative and abs(sums.x - 1) <= 1e-5


def divergence(x: FloatArray, x_hat: FloatArray) -> float:
    """Return the sum of x * log2(x / x_hat) where both are above 0."""
    both = (x > 0) & (x_hat > 0)
    p, q = x[both].astype(np.float64), x_hat[both].astype(np.float64)
    return float((p * np.log2(p / q)).sum())


METRICS = (
    mae,
    max_err,
    rel_err,
    cos_sim,
    n_codes,
    rmse,
    sqnr_db,
    bias,
    err_p50,
    err_p95,
    zeroed,
    clipped,
    code_entropy,
    rmse_over_scale,
    bound_ratio,
    one_minus_cos,
    kl,
)


def figures(evidence: Evidence) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return every metric under its name, and for each null the reason why."""
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for metric in METRICS:
        try:
            values[metric.__name__] = metric(evidence)
        except UndefinedError as reason:
            values[metric.__name__] = None
            reasons[metric.__name__] = str(reason)
    return values, reasons


def _product_of_norms(e: Evidence) -> float:
    if e.sums.zeros == e.sums.n or not e.sq_x_hat:
        raise UndefinedError(f"{'x_hat' if e.sums.zeros < e.sums.n else 'x'} is all zeros")
    return math.sqrt(e.sums.sq_x) * math.sqrt(e.sq_x_hat)


def _round_down(value: float) -> np.float32:
    """Return the largest float32 that is not above `value`."""
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))
