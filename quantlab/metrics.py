"""The error statistics of a round trip: blocks -> partial sums -> figures.

The error `x_hat - x` is taken in float32, as in the lab; everything summed is float64. Sums of
blocks add up to the sums of the whole, and every figure is a function of `Evidence`.

To add a metric: write a function of `Evidence` and append it to `METRICS`; its name is its column.
A figure that does not exist raises `UndefinedError` with the reason, and becomes null.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class UndefinedError(ValueError):
    """A figure has no value for this tensor; the message says why."""


class Sums(NamedTuple):
    """What one block of a round trip leaves behind.

    Powers and products are of x and x_hat in the tensor's own unit; the others are counts.
    """

    n: int
    nonzero: int
    zeroed: int  # x != 0, x_hat == 0
    negative: int
    err: float  # x_hat - x
    abs_err: float
    sq_err: float
    max_err: float
    rel_err: float  # |x_hat - x| / |x| where |x| is above the threshold
    rel_count: int
    x: float
    x_hat: float
    sq_x: float
    sq_x_hat: float
    dot: float  # x * x_hat
    radial: float  # (x_hat - x) * (x_hat + x), what |x_hat|^2 exceeds |x|^2 by
    divergence: float  # x * log2(x / x_hat) where both are above 0


def block_sums(
    x: NDArray[np.float32], x_hat: NDArray[np.float32], rel_threshold: float = 1e-8
) -> Sums:
    """Return the sums over one block, `x` and `x_hat` being float32 and of one shape."""
    err = (x_hat - x).astype(np.float64)
    x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
    magnitude, abs_err = np.abs(x), np.abs(err)
    counted = magnitude > rel_threshold
    positive = (x > 0) & (x_hat > 0)
    return Sums(
        n=x.size,
        nonzero=int(np.count_nonzero(x)),
        zeroed=int(np.count_nonzero((x != 0) & (x_hat == 0))),
        negative=int(np.count_nonzero(x < 0)),
        err=float(err.sum()),
        abs_err=float(abs_err.sum()),
        sq_err=float(np.square(err).sum()),
        max_err=float(abs_err.max()),
        rel_err=float((abs_err[counted] / magnitude[counted]).sum()),
        rel_count=int(np.count_nonzero(counted)),
        x=float(x.sum()),
        x_hat=float(x_hat.sum()),
        sq_x=float(np.square(x).sum()),
        sq_x_hat=float(np.square(x_hat).sum()),
        dot=float((x * x_hat).sum()),
        radial=float((err * (x_hat + x)).sum()),
        divergence=float((x[positive] * np.log2(x[positive] / x_hat[positive])).sum()),
    )


def total(blocks: Iterable[Sums]) -> Sums:
    """Return the sums of the whole from those of its blocks, of which there is at least one."""
    return Sums(*map(_combine, Sums._fields, zip(*blocks, strict=True)))


def _combine(name: str, parts: tuple[Any, ...]) -> Any:
    if name == "max_err":
        return max(parts)
    return math.fsum(parts) if isinstance(parts[0], float) else sum(parts)


def require_threshold(rel_threshold: float) -> None:
    """Raise ValueError unless `rel_threshold` is a number of 0 or more."""
    if not isinstance(rel_threshold, int | float) or not rel_threshold >= 0:
        raise ValueError(
            f"metrics.rel_threshold must be a number of 0 or more, got {rel_threshold!r}"
        )


@dataclass(frozen=True)
class Evidence:
    """Everything the figures are made of.

    `abs_err` holds |x_hat - x| of every element; `code_counts` how often each used code occurs;
    `clipped` how many values lay beyond the code range before saturation.
    """

    sums: Sums
    abs_err: NDArray[np.float64]
    code_counts: NDArray[np.int64]
    clipped: int
    scale: float


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
    if not e.sums.sq_x:
        raise UndefinedError("x is all zeros")
    return 10 * math.log10(e.sums.sq_x / e.sums.sq_err)


def bias(e: Evidence) -> float:
    """Mean of x_hat - x."""
    return e.sums.err / e.sums.n


def err_p50(e: Evidence) -> float:
    """Median of |x_hat - x|, interpolated linearly."""
    return float(np.quantile(e.abs_err, 0.50))


def err_p95(e: Evidence) -> float:
    """95th percentile of |x_hat - x|, interpolated linearly."""
    return float(np.quantile(e.abs_err, 0.95))


def zeroed(e: Evidence) -> float:
    """Share of the non-zero values that come back as 0."""
    if not e.sums.nonzero:
        raise UndefinedError("x is all zeros")
    return e.sums.zeroed / e.sums.nonzero


def clipped(e: Evidence) -> float:
    """Share of the values beyond the code range before saturation."""
    return e.clipped / e.sums.n


def code_entropy(e: Evidence) -> float:
    """Shannon entropy of the codes, in bits."""
    shares = (count / e.sums.n for count in e.code_counts.tolist())
    return 0.0 - math.fsum(share * math.log2(share) for share in shares)


def rmse_over_scale(e: Evidence) -> float:
    """RMSE in steps; 1 / sqrt(12) = 0.2887 when the errors are uniform over a step."""
    return rmse(e) / e.scale


def bound_ratio(e: Evidence) -> float:
    """Largest error over half a step; above 1 only by float32 rounding, unless values clip."""
    return e.sums.max_err / (e.scale / 2)


def one_minus_cos(e: Evidence) -> float:
    """1 - cos_sim without its cancellation: (|err|^2 - (|x_hat| - |x|)^2) / (2 |x| |x_hat|)."""
    norms = _product_of_norms(e)
    longer = e.sums.radial / (math.sqrt(e.sums.sq_x) + math.sqrt(e.sums.sq_x_hat))
    return max(0.0, e.sums.sq_err - longer * longer) / (2 * norms)


def kl(e: Evidence) -> float:
    """Kullback-Leibler divergence of x_hat, renormalised, from x, in bits."""
    if e.sums.negative or abs(e.sums.x - 1) > 1e-5:
        raise UndefinedError("x is no probability vector")
    if e.sums.zeroed:
        raise UndefinedError(f"x_hat is 0 at {e.sums.zeroed} elements where x is not")
    return max(0.0, e.sums.divergence / e.sums.x + math.log2(e.sums.x_hat / e.sums.x))


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
    if not e.sums.sq_x or not e.sums.sq_x_hat:
        raise UndefinedError(f"{'x_hat' if e.sums.sq_x else 'x'} is all zeros")
    return math.sqrt(e.sums.sq_x) * math.sqrt(e.sums.sq_x_hat)
