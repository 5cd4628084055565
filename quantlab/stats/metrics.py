"""The figures of a round trip: evidence -> figures, and its storage and output error.

1 - cos is made of the part of the error that is not along x, and is exact to that share of
|err|^2 / |x|^2.

To add a metric: write a function of `Evidence` and append it to `METRICS`; its name is its column.
Outside a clone a yaml in ``metric/`` names the function: see docs/extending.md.
A figure that does not exist raises `UndefinedError` with the reason, and becomes null.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Layout, Shape
from quantlab.formats.element import FloatArray
from quantlab.formats.gram import row_energies
from quantlab.formats.quantizer import ScaleStats
from quantlab.formats.scales import Array64
from quantlab.stats.reference import CHUNK, CodeCounts, ErrorHistogram, Sums, row_part

OF_SCALES = ("n_scales", "scale_min", "scale_max", "scales_saturated", "scales_vanished")
MIN_ROW = 16  # values whose SQNR says something: a row of a convolution's kernel has three
MIN_BLOCKS = 256  # values of the blocks of a vector, which would cost time one by one
BUDGET = ("clip_share", "zero_share", "round_share")
DB_A_BIT = 20 * math.log10(2)


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two powers in dB, inf without noise, -inf without signal.

    >>> decibels(100.0, 1.0)
    20.0
    """
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


class UndefinedError(ValueError):
    """A figure has no value for this tensor; the message says why."""


def require_threshold(rel_threshold: float) -> None:
    """Raise ValueError unless `rel_threshold` is a number of 0 or more."""
    if not isinstance(rel_threshold, int | float) or not rel_threshold >= 0:
        raise ValueError(
            f"metrics.rel_threshold must be a number of 0 or more, got {rel_threshold!r}"
        )


class OutputPower(NamedTuple):
    """The expected power of an output, and that of its noise, up to a factor."""

    signal: float
    noise: float


class Evidence(NamedTuple):
    """The sums, errors and codes that figures are computed from.

    `errors` holds |x_hat - x| of a sample, of every element where they are few; `counts` are those
    of the codes used; `sq_x_hat` is the sum of x_hat^2, `clipped` counts the values beyond the code
    range before saturation; both are None where codes are not ours. `step` is that of the grid,
    None where there is not one, for the reason `why_no_step`. `divergence` is the sum of
    x * log2(x / x_hat), computed for probability vectors alone; `powers` are of the output, where
    columns have importance.
    """

    sums: Sums
    errors: ErrorHistogram
    counts: CodeCounts | None
    sq_x_hat: float
    clipped: int | None
    step: float | None
    why_no_step: str
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
    """Count the distinct codes."""
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
    return decibels(e.sums.sq_x, e.sums.sq_err)


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
        raise UndefinedError(e.why_no_step)
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
    """Whether no value is negative and their sum is 1, to float32 precision."""
    return not negative and abs(sums.x - 1) <= 1e-5


def divergence(x: FloatArray, x_hat: FloatArray) -> float:
    """Return the sum of x * log2(x / x_hat) where both are above 0."""
    both = (x > 0) & (x_hat > 0)
    p, q = x[both].astype(np.float64), x_hat[both].astype(np.float64)
    return float((p * np.log2(p / q)).sum())


Metric = Callable[[Evidence], float]
METRICS: tuple[Metric, ...] = (
    mae, max_err, rel_err, cos_sim, n_codes, rmse, sqnr_db, bias, err_p50, err_p95, zeroed, clipped,
    code_entropy, rmse_over_scale, bound_ratio, one_minus_cos, kl,
)  # fmt: skip


def figures(
    evidence: Evidence, extra: Mapping[str, Metric] | None = None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Compute every metric, and `extra` ones, by name; give the reason for each null.

    Raises ValueError if an extra metric has the name of another, or is no number.
    """
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    builtin = [(metric.__name__, metric) for metric in METRICS]
    for name, metric in [*builtin, *(extra or {}).items()]:
        if name in values:
            raise ValueError(f"metric={name} has the name of a built-in metric: rename it")
        try:
            values[name] = _require_number(name, metric(evidence))
        except UndefinedError as reason:
            values[name] = None
            reasons[name] = str(reason)
    return values, reasons


def _require_number(name: str, value: Any) -> float:
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ValueError(
            f"metric={name} gave {value!r}: return a finite number, or raise UndefinedError"
        )
    return value.item() if isinstance(value, np.number) else value


def _step(e: Evidence) -> float:
    if e.step is None:
        raise UndefinedError(e.why_no_step)
    return e.step


def _counts(e: Evidence) -> CodeCounts:
    if e.counts is None:
        raise UndefinedError(e.why_no_step)
    return e.counts


def _product_of_norms(e: Evidence) -> float:
    if e.sums.zeros == e.sums.n or not e.sq_x_hat:
        raise UndefinedError(f"{'x_hat' if e.sums.zeros < e.sums.n else 'x'} is all zeros")
    return math.sqrt(e.sums.sq_x) * math.sqrt(e.sq_x_hat)


def storage_figures(
    bits_per_value: float, sqnr_db: float | None, scales: ScaleStats | None
) -> dict[str, float | None]:
    """Return the storage cost, how far it is above the bound, and the scales.

    A Gaussian source of the same power needs ``sqnr_db / 6.02`` bits a value (Shannon, 1959), and
    no source of that power more; `bits_above_bound` is the excess. Figures of scales are null where
    they are not known.
    """
    above = None if sqnr_db is None else bits_per_value - sqnr_db / DB_A_BIT
    return {
        "bits_per_value": bits_per_value,
        "bits_above_bound": above,
        **dict(zip(OF_SCALES, scales or [None] * len(OF_SCALES), strict=True)),
    }


def error_budget(sums: Sums, clipped: int | None) -> dict[str, float | None]:
    """Return the shares of the squared error: of clipped values, of those that became 0, the rest.

    They add up to 1; there are none where the round trip is perfect, and only that of values that
    became 0 where it is not known which were clipped.
    """
    if not sums.sq_err:
        return dict.fromkeys(BUDGET)
    clip, zero = sums.clip_sq_err / sums.sq_err, sums.zero_sq_err / sums.sq_err
    if clipped is None:
        return dict(zip(BUDGET, (None, zero, None), strict=True))
    return {"clip_share": clip, "zero_share": zero, "round_share": max(0.0, 1 - clip - zero)}


class ColumnImportance:
    """E[x_j^2] of each column j, an array ``(matrices, columns)``, for a tensor of `size`.

    A layer computes sum_j w_ij x_j. Where inputs are independent, its output has the expected power
    sum_j E[x_j^2] w_ij^2, and an error e of the weights makes the noise sum_j E[x_j^2] e_ij^2.
    """

    def __init__(self, importance: FloatArray, size: int) -> None:
        self._importance = importance.astype(np.float64)
        self._matrix = size // len(importance)

    def powers(self, start: int, x: FloatArray, x_hat: FloatArray) -> list[OutputPower]:
        """Return the powers of each chunk of a flat block that begins at `start`."""
        chunks = [slice(first, first + CHUNK) for first in range(0, x.size, CHUNK)]
        return [self._power(start + chunk.start, x[chunk], x_hat[chunk]) for chunk in chunks]

    def _power(self, start: int, x: FloatArray, x_hat: FloatArray) -> OutputPower:
        places = np.arange(start, start + x.size)
        weights = self._importance[places // self._matrix, places % self._importance.shape[1]]
        w, err = x.astype(np.float64), (x_hat - x).astype(np.float64)
        return OutputPower(float((weights * w * w).sum()), float((weights * err * err).sum()))


def captured_power(x: FloatArray, x_hat: FloatArray, gram: Array64) -> OutputPower:
    """Return the power of the outputs of rows of weights ``(rows, in)``, for captured inputs X.

    It is exact: the sum of |X w|^2 over rows w, which the Gram matrix X^T X has.
    """
    w, err = x.astype(np.float64), (x_hat - x).astype(np.float64)
    return OutputPower(*(math.fsum(row_energies(rows, gram)) for rows in (w, err)))


def out_sqnr_db(powers: Sequence[OutputPower]) -> float | None:
    """Return signal over noise of an output in dB; None where there is no noise, or no signal.

    >>> out_sqnr_db([OutputPower(60.0, 0.5), OutputPower(40.0, 0.5)])
    20.0
    """
    signal, noise = (math.fsum(terms) for terms in zip(*powers, strict=True))
    return decibels(signal, noise) if signal and noise else None


class RowPowers:
    """The powers of signal and noise of each row of a tensor, summed up chunk by chunk.

    A row is the last axis, or as many of the last axes as make `MIN_ROW` values. A tensor of one
    row has those of its format: as many blocks, in a `layout` of consecutive values, as make
    `MIN_BLOCKS` values.
    """

    def __init__(self, shape: Shape, layout: Layout | None) -> None:
        """Begin with powers of 0; there are none of a tensor that is one row in one block."""
        self._shape, self._size = shape, math.prod(shape)
        self.width = _row_width(shape)
        if self.width == self._size and layout and not layout.shared:
            self.width = layout.width * -(-MIN_BLOCKS // layout.width)
        parts = row_part(self._size - 1, self.width) + 1 if self.width < self._size else 0
        self.squares = np.zeros((2, parts))

    def figures(self, sqnr_db: float | None) -> dict[str, float | None]:
        """Return the least SQNR of the rows, and of the matrices of a stack, such as experts.

        Rows without signal or without noise have none. `sqnr_db` is that of the only row.
        """
        if not self.squares.size:
            return {"worst_row_sqnr_db": sqnr_db}
        rows = row_part(np.arange(0, self._size, self.width), self.width)
        powers = np.add.reduceat(self.squares, rows, axis=1)
        worst = {"worst_row_sqnr_db": _least_decibels(powers)[1]}
        is_stack = len(self._shape) == 3 and self._shape[0] > 1
        if is_stack and self._size // self._shape[0] % self.width == 0:
            matrix, least = _least_decibels(powers.reshape(2, self._shape[0], -1).sum(axis=2))
            worst |= {"worst_matrix": matrix, "worst_matrix_sqnr_db": least}
        return worst


def _row_width(shape: Shape) -> int:
    width = 1
    for n in reversed(shape):
        width *= n
        if width >= MIN_ROW:
            break
    return width


def _least_decibels(powers: NDArray[np.float64]) -> tuple[int | None, float | None]:
    """Return the place and the least of the SQNRs of signals and noises, in dB."""
    signal, noise = powers
    both = np.flatnonzero((signal > 0) & (noise > 0))
    if not both.size:
        return None, None
    place = int(both[np.argmin(signal[both] / noise[both])])
    return place, decibels(float(signal[place]), float(noise[place]))
