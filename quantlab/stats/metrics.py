"""The error statistics of a round trip: evidence -> figures.

1 - cos is made of the part of the error that is not along x, and is exact to that share of
|err|^2 / |x|^2.

To add a metric: write a function of `Evidence` and append it to `METRICS`; its name is its column.
A figure that does not exist raises `UndefinedError` with the reason, and becomes null.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.stats.counts import Counts
from quantlab.stats.histogram import ErrorHistogram
from quantlab.stats.output_error import OutputPower
from quantlab.stats.sums import Sums


class UndefinedError(ValueError):
    """A figure has no value for this tensor; the message says why."""


def require_threshold(rel_threshold: float) -> None:
    """Raise ValueError unless `rel_threshold` is a number of 0 or more."""
    if not isinstance(rel_threshold, int | float) or not rel_threshold >= 0:
        raise ValueError(
            f"metrics.rel_threshold must be a number of 0 or more, got {rel_threshold!r}"
        )


class Evidence(NamedTuple):
    """Everything the figures are made of.

    `errors` holds |x_hat - x| of a sample, of every element where they are few; `counts` are those
    of the codes used; `sq_x_hat` is the sum of x_hat^2, `clipped` counts the values beyond the code
    range before saturation; both are None where codes are not ours. `step` is that of the grid,
    None where there is not one, and `no_step` says why. `divergence` is the sum of
    x * log2(x / x_hat), wanted of probability vectors alone; `powers` are of the output, where
    columns have importance.
    """

    sums: Sums
    errors: ErrorHistogram
    counts: Counts | None
    sq_x_hat: float
    clipped: int | None
    step: float | None
    no_step: str
    negative: bool
    divergence: float = math.nan
    powers: Sequence[OutputPower] = ()


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
    return len(_counts(e).counts)


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
    return e.sums.zeroed / nonzero


def clipped(e: Evidence) -> float:
    """Share of the values beyond the code range before saturation."""
    if e.clipped is None:
        raise UndefinedError(e.no_step)
    return e.clipped / e.sums.n


def code_entropy(e: Evidence) -> float:
    """Shannon entropy of the codes, in bits."""
    kinds = Counter(_counts(e).counts.tolist())  # many codes, few distinct counts
    shares = ((times, count / e.sums.n) for count, times in kinds.items())
    return 0.0 - math.fsum(times * share * math.log2(share) for times, share in shares)


def rmse_over_scale(e: Evidence) -> float:
    """RMSE in steps; 1 / sqrt(12) = 0.2887 when the errors are uniform over a step."""
    return rmse(e) / _step(e)


def bound_ratio(e: Evidence) -> float:
    """Largest error over half a step; above 1 only by float32 rounding, unless values clip."""
    return e.sums.max_err / (_step(e) / 2)


def one_minus_cos(e: Evidence) -> float:
    """1 - cos_sim without its cancellation: (|err|^2 - (|x_hat| - |x|)^2) / (2 |x| |x_hat|)."""
    norms = _product_of_norms(e)
    # Of larger errors three digits cancel at most, and so they have been published.
    if e.sums.sq_err > 1e-3 * min(e.sums.sq_x, e.sq_x_hat):
        return max(0.0, 1 - e.sums.dot / norms)
    radial = 2 * e.sums.x_err + e.sums.sq_err  # |x_hat|^2 - |x|^2
    longer = radial / (math.sqrt(e.sums.sq_x) + math.sqrt(e.sq_x_hat))
    return max(0.0, e.sums.sq_err - longer * longer) / (2 * norms)


def kl(e: Evidence) -> float:
    """Kullback-Leibler divergence of x_hat, renormalised, from x, in bits."""
    if not is_probability(e.sums, e.negative):
        raise UndefinedError("x is no probability vector")
    if e.sums.zeroed:
        raise UndefinedError(f"x_hat is 0 at {e.sums.zeroed} elements where x is not")
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


def _step(e: Evidence) -> float:
    if e.step is None:
        raise UndefinedError(e.no_step)
    return e.step


def _counts(e: Evidence) -> Counts:
    if e.counts is None:
        raise UndefinedError(e.no_step)
    return e.counts


def _product_of_norms(e: Evidence) -> float:
    if e.sums.zeros == e.sums.n or not e.sq_x_hat:
        raise UndefinedError(f"{'x_hat' if e.sums.zeros < e.sums.n else 'x'} is all zeros")
    return math.sqrt(e.sums.sq_x) * math.sqrt(e.sq_x_hat)
