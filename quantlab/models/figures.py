"""The figures of an output of a model: its answers before and after -> what they lost.

An answer is a row, the last axis of an output; the first axis counts samples. KL divergences are
those of llama.cpp's perplexity tool, but in bits: each is of a row, and averaged over the rows of a
sample before anything is said of samples.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.scales import Array64
from quantlab.stats.metrics import decibels

Kind = Literal["probabilities", "logits", "values"]
KINDS: tuple[str, ...] = get_args(Kind)
SUM_TOLERANCE = 1e-3  # of the sum of a row of probabilities, which may have been float16
LEAST = 2.0**-149  # the least float32: a probability of 0 counts as that
MAX_CHANGES = 10  # first answers that changed, in one record: those that were surest
NORMAL_95 = 1.959963984540054  # 97.5th percentile of the normal distribution
FIGURES = (
    "kl", "kl_median", "kl_p99", "kl_max", "top1_same", "top1_low", "top1_high", "top_same_set",
    "top_same_order", "top_worst", "top_best", "dp_rms", "sqnr_db", "cos_sim", "accuracy",
    "accuracy_before",
)  # fmt: skip


def find_kind(name: str, answers: NDArray[Any]) -> Kind:
    """Find out what the rows of an output are.

    Rows that are not negative and sum to 1 are probabilities; an output whose name says so has
    logits; all others are values, of which only noise and cosine are known.
    """
    rows = as_rows(answers)
    is_ranked = rows.shape[1] > 1
    sums = rows.sum(axis=1)
    if is_ranked and (rows >= 0).all() and (np.abs(sums - 1) <= SUM_TOLERANCE).all():
        return "probabilities"
    return "logits" if is_ranked and "logit" in name.lower() else "values"


def as_rows(answers: NDArray[Any]) -> Array64:
    """Return answers as float64 rows; of an output without a last axis each is a row of one."""
    width = answers.shape[-1] if answers.ndim > 1 else 1
    return answers.astype(np.float64).reshape(-1, width)


class Change(NamedTuple):
    """A first answer that changed: of which sample and row of it, and the probabilities of both."""

    sample: int
    row: int
    before: int
    after: int
    p_before: float
    p_after: float


class Ranking(NamedTuple):
    """The k largest of each row, the largest first, equal ones by place.

    `order` are their places, ``(rows, k)``, `least` the least of them, ``(rows, 1)``; `n_above` and
    `n_tied` count the values of the row above the least and equal to it.
    """

    order: NDArray[np.intp]
    least: Array64
    n_above: NDArray[np.intp]
    n_tied: NDArray[np.intp]


def rank_largest(rows: Array64, k: int) -> Ranking:
    """Rank the `k` largest of each row."""
    least = np.partition(rows, -k, axis=1)[:, -k, None]  # linear, where a sort is not
    is_above, is_tied = rows > least, rows == least
    n_above, n_tied = is_above.sum(axis=1), is_tied.sum(axis=1)
    crowded = np.flatnonzero(n_above + n_tied > k)  # of those that are tied the first are taken
    is_member = is_above | is_tied
    nth_tied = is_tied[crowded].cumsum(axis=1)
    is_member[crowded] = is_above[crowded] | (
        is_tied[crowded] & (nth_tied <= k - n_above[crowded, None])
    )
    places = np.nonzero(is_member)[1].reshape(-1, k)
    order = np.argsort(-np.take_along_axis(rows, places, axis=1), axis=1, kind="stable")
    return Ranking(np.take_along_axis(places, order, axis=1), least, n_above, n_tied)


def _require_finite(name: str, answers: NDArray[Any], when: str, first_sample: int) -> None:
    """Raise ValueError, naming the place, unless answers are finite."""
    if not np.isfinite(answers).all():
        place = np.argwhere(~np.isfinite(answers))[0].tolist()
        place[0] += first_sample
        raise ValueError(
            f"output '{name}' is not finite {when} the weights were stored, at {place}"
        )


class OriginalAnswers:
    """The answers of an original for some samples, with what every comparison with them needs."""

    def __init__(
        self, name: str, answers: NDArray[Any], kind: Kind, k: int, first_sample: int = 0
    ) -> None:
        """Rank the answers ``(samples, ..., answers)`` of an output.

        Raises ValueError, naming the output, where a value is not finite.
        """
        _require_finite(name, answers, "before", first_sample)
        self.answers, self.kind, self.first_sample = answers, kind, first_sample
        if kind != "values":
            x = as_rows(answers)
            self.log_p = _log2_probabilities(x, kind)
            self.p = np.exp2(self.log_p)
            self.top = rank_largest(x, min(k, x.shape[1]))

    @property
    def n_bytes(self) -> int:
        """Number of bytes in memory."""
        arrays = [self.answers]
        if self.kind != "values":
            arrays += [self.log_p, self.p, self.top.order]
        return sum(array.nbytes for array in arrays)


class OutputComparison:
    """Compares the answers of one output with those of the original, chunk by chunk."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.name, self.kind = name, kind
        self._n_rows = self._n_samples = 0
        self._powers = np.zeros(4)  # of x, of the error, of x_hat, and the product of x and x_hat
        self._kl: list[Array64] = []
        self._shares = np.zeros(5)  # sums over rows of what `_compare_top` returns
        self._squared_dp = 0.0
        self._n_right = np.zeros(2, np.int64)  # after, before
        self.n_labels = 0
        self._changes: list[Change] = []
        self._first_answers: set[int] = set()  # of the original

    def add(
        self, original: OriginalAnswers, after: NDArray[Any], labels: NDArray[Any] | None = None
    ) -> None:
        """Compare the answers for some samples; labels are places on the last axis.

        Raises ValueError, naming the output, where shapes differ or a value is not finite.
        """
        before = original.answers
        if before.shape != after.shape:
            raise ValueError(
                f"output '{self.name}' has the shape {list(after.shape)} after, and "
                f"{list(before.shape)} before"
            )
        _require_finite(self.name, after, "after", original.first_sample)
        x, x_hat = as_rows(before), as_rows(after)
        error = x_hat - x
        pairs = (x, x), (error, error), (x_hat, x_hat), (x, x_hat)
        self._powers += [float((a * b).sum()) for a, b in pairs]
        if self.kind != "values":
            top = rank_largest(x_hat, original.top.order.shape[1])
            self._compare_ranked(original, x_hat, top)
            if labels is not None and labels.size == len(x):  # else they are of another output
                if labels.max() >= x.shape[1]:
                    raise ValueError(
                        f"label {labels.max()} is no place of output '{self.name}', which has "
                        f"{x.shape[1]} answers a row"
                    )
                firsts = top.order[:, 0], original.top.order[:, 0]
                self._n_right += [int((first == labels.reshape(-1)).sum()) for first in firsts]
                self.n_labels += labels.size
        self._n_rows += len(x)
        self._n_samples += len(before)

    def _compare_ranked(self, original: OriginalAnswers, x_hat: Array64, top: Ranking) -> None:
        log_q = _log2_probabilities(x_hat, self.kind)
        row_kl = np.maximum(0.0, (original.p * (original.log_p - log_q)).sum(axis=1))
        n_samples = len(original.answers)
        self._kl.append(row_kl.reshape(n_samples, -1).mean(axis=1))
        rows, first, new_first = np.arange(len(x_hat)), original.top.order[:, 0], top.order[:, 0]
        p = original.p[rows, first]
        self._squared_dp += float(np.square(np.exp2(log_q[rows, first]) - p).sum())
        self._shares += _compare_top(original.top.order, x_hat, top).sum(axis=0)
        self._first_answers.update(np.unique(first).tolist())
        changed = np.flatnonzero(first != new_first)
        surest = changed[np.argsort(-p[changed], kind="stable")[:MAX_CHANGES]]
        for row in surest.tolist():
            a, b = int(first[row]), int(new_first[row])
            sample, within = divmod(row, len(x_hat) // n_samples)
            place = original.first_sample + sample, within
            self._changes.append(Change(*place, a, b, float(p[row]), float(np.exp2(log_q[row, b]))))
        self._changes = sorted(self._changes, key=lambda change: -change.p_before)[:MAX_CHANGES]

    def figures(self) -> dict[str, float | None]:
        """Return every one of `FIGURES`, null where it does not exist."""
        figures: dict[str, float | None] = dict.fromkeys(FIGURES)
        signal, noise, power_after, product = self._powers.tolist()
        figures["sqnr_db"] = decibels(signal, noise) if signal and noise else None
        if signal and power_after:
            norms = math.sqrt(signal) * math.sqrt(power_after)
            figures["cos_sim"] = min(1.0, product / norms)
        if self.kind != "values":
            figures |= self._ranked_figures()
        if self.n_labels:
            after, before = self._n_right.tolist()
            figures |= {
                "accuracy": after / self.n_labels,
                "accuracy_before": before / self.n_labels,
            }
        return figures

    def _remark(self) -> str | None:
        """Describe what makes the figures doubtful, if anything does."""
        if self._n_rows > 1 and len(self._first_answers) == 1:
            return f"the first answer is {min(self._first_answers)} for all inputs: more are needed"
        return None

    def _ranked_figures(self) -> dict[str, float | None]:
        kl = np.concatenate(self._kl)
        same, *shares = (self._shares / self._n_rows).tolist()
        low, high = wilson(round(same * self._n_rows), self._n_rows)
        names = "top_same_set", "top_same_order", "top_worst", "top_best"
        return {
            "kl": math.fsum(kl.tolist()) / kl.size,
            "kl_median": float(np.median(kl)),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "top1_same": same,
            "top1_low": low,
            "top1_high": high,
            **dict(zip(names, shares, strict=True)),
            "dp_rms": math.sqrt(self._squared_dp / self._n_rows),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the output, what its rows are, how many there are, its figures and changes."""
        return {
            "output": self.name,
            "kind": self.kind,
            "rows": self._n_rows,
            "samples": self._n_samples,
            "figures": self.figures(),
            "changes": [change._asdict() for change in self._changes],
            "remark": self._remark(),
        }


def _log2_probabilities(rows: Array64, kind: Kind) -> Array64:
    """Return the logarithms of probabilities, normalised."""
    if kind == "logits":
        shifted = rows - rows.max(axis=1, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))) / math.log(2)
    positive = np.maximum(rows, 0)
    shares = positive / np.maximum(positive.sum(axis=1, keepdims=True), LEAST)
    return np.log2(np.maximum(shares, LEAST))


def _compare_top(order: NDArray[np.intp], x_hat: Array64, top: Ranking) -> Array64:
    """Compare the `order` of the k largest of each row with those after, `top`: ``(rows, 5)``.

    Whether the first is the same, the k are the same set, and in the same order, and the share of
    them that stays among the k largest under the worst and the best breaking of ties.
    """
    k = order.shape[1]
    same_order = order == top.order
    same_set = np.sort(order, axis=1) == np.sort(top.order, axis=1)
    top_hat = np.take_along_axis(x_hat, order, axis=1)
    above, tied = ((top_hat > top.least).sum(axis=1), (top_hat == top.least).sum(axis=1))
    places = k - top.n_above  # that all that are tied with the least share
    worst = (above + np.maximum(0, places - (top.n_tied - tied))) / k
    best = (above + np.minimum(places, tied)) / k
    is_same = same_order[:, 0], same_set.all(axis=1), same_order.all(axis=1)
    return np.stack([*is_same, worst, best], axis=1).astype(np.float64)


def wilson(n_same: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, after Wilson (1927).

    >>> [round(end, 3) for end in wilson(95, 100)]
    [0.888, 0.978]
    """
    share, z = n_same / n, NORMAL_95
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
