"""The figures of an output of a model: its answers before and after -> what they lost.

An answer is a row, the last axis of an output; the first axis counts samples. KL divergences are
those of llama.cpp's perplexity tool, but in bits: each is of a row, and averaged over the rows of a
sample before anything is said of samples.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

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
Array64 = NDArray[np.float64]


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


class OutputComparison:
    """Compares the answers of one output with those of the original, batch by batch."""

    def __init__(self, name: str, kind: Kind, k: int) -> None:
        """Begin with no sample; the `k` largest answers of a row must keep their order."""
        self.name, self.kind, self._k = name, kind, k
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
        self, before: NDArray[Any], after: NDArray[Any], labels: NDArray[Any] | None = None
    ) -> None:
        """Compare a batch, arrays ``(samples, ..., answers)``; labels are places on the last axis.

        Raises ValueError, naming the output, where shapes differ or a value is not finite.
        """
        self._require_comparable(before, after)
        x, x_hat = as_rows(before), as_rows(after)
        error = x_hat - x
        pairs = (x, x), (error, error), (x_hat, x_hat), (x, x_hat)
        self._powers += [float((a * b).sum()) for a, b in pairs]
        if self.kind != "values":
            self._compare_ranked(x, x_hat, len(before))
            if labels is not None and labels.size == len(x):  # else they are of another output
                if labels.max() >= x.shape[1]:
                    raise ValueError(
                        f"label {labels.max()} is no place of output '{self.name}', which has "
                        f"{x.shape[1]} answers a row"
                    )
                self._count_right(x, x_hat, labels.reshape(-1))
        self._n_rows += len(x)
        self._n_samples += len(before)

    def _require_comparable(self, before: NDArray[Any], after: NDArray[Any]) -> None:
        if before.shape != after.shape:
            raise ValueError(
                f"output '{self.name}' has the shape {list(after.shape)} after, and "
                f"{list(before.shape)} before"
            )
        for when, answers in (("before", before), ("after", after)):
            if not np.isfinite(answers).all():
                place = np.argwhere(~np.isfinite(answers))[0].tolist()
                place[0] += self._n_samples
                raise ValueError(
                    f"output '{self.name}' is not finite {when} the weights were stored, at {place}"
                )

    def _compare_ranked(self, x: Array64, x_hat: Array64, n_samples: int) -> None:
        log_p, log_q = (_log2_probabilities(rows, self.kind) for rows in (x, x_hat))
        p, q = np.exp2(log_p), np.exp2(log_q)
        row_kl = np.maximum(0.0, (p * (log_p - log_q)).sum(axis=1))
        self._kl.append(row_kl.reshape(n_samples, -1).mean(axis=1))
        rows, first = np.arange(len(x)), x.argmax(axis=1)
        self._squared_dp += float(np.square(q[rows, first] - p[rows, first]).sum())
        self._shares += _compare_top(x, x_hat, min(self._k, x.shape[1])).sum(axis=0)
        new_first = x_hat.argmax(axis=1)
        self._first_answers.update(np.unique(first).tolist())
        per_sample = len(x) // n_samples
        for row in np.flatnonzero(first != new_first).tolist():
            a, b = int(first[row]), int(new_first[row])
            sample, within = divmod(row, per_sample)
            place = self._n_samples + sample, within
            self._changes.append(Change(*place, a, b, float(p[row, a]), float(q[row, b])))
        self._changes = sorted(self._changes, key=lambda change: -change.p_before)[:MAX_CHANGES]

    def _count_right(self, x: Array64, x_hat: Array64, labels: NDArray[Any]) -> None:
        self._n_right += [int((rows.argmax(axis=1) == labels).sum()) for rows in (x_hat, x)]
        self.n_labels += labels.size

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


def _compare_top(x: Array64, x_hat: Array64, k: int) -> Array64:
    """Compare the k largest of each row, equal ones by lower index: ``(rows, 5)``.

    Whether the first is the same, the k are the same set, and in the same order, and the share of
    them that stays among the k largest under the worst and the best breaking of ties.
    """
    order, order_hat = (_top(rows, k) for rows in (x, x_hat))
    same_order = order == order_hat
    same_set = np.sort(order, axis=1) == np.sort(order_hat, axis=1)
    top_hat = np.take_along_axis(x_hat, order, axis=1)
    least = np.take_along_axis(x_hat, order_hat[:, -1:], axis=1)
    above, tied = ((top_hat > least).sum(axis=1), (top_hat == least).sum(axis=1))
    places = k - (x_hat > least).sum(axis=1)  # that all that are tied with the least share
    others = (x_hat == least).sum(axis=1) - tied
    worst = (above + np.maximum(0, places - others)) / k
    best = (above + np.minimum(places, tied)) / k
    kept = same_order[:, 0], same_set.all(axis=1), same_order.all(axis=1)
    return np.stack([*kept, worst, best], axis=1).astype(np.float64)


def _top(rows: Array64, k: int) -> NDArray[np.intp]:
    """Return the places of the k largest of each row, the largest first, equal ones by place."""
    least = np.partition(rows, -k, axis=1)[:, -k, None]  # linear, where a sort is not
    above, tied = rows > least, rows == least
    places = k - above.sum(axis=1, keepdims=True)
    members = above | (tied & (tied.cumsum(axis=1) <= places))
    places = np.nonzero(members)[1].reshape(-1, k)
    order = np.argsort(-np.take_along_axis(rows, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


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
