"""How much the noise of each tensor counts: its alpha, as given or as measured.

A sweep of ``mode=noise`` with answers of each tensor alone has measured it: the KL of the answers
is about ``alpha * 10^(-SQNR/10)`` where noise is small, so that SQNRs predict a KL in bits.
"""

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import relative_error
from quantlab.records.answers import ANSWER_KL, with_answer_kl
from quantlab.records.record import Row
from quantlab.records.table import read_aggregate
from quantlab.report.choices import group_by
from quantlab.report.sentences import SENTENCE_TENSORS
from quantlab.text import first_few, label, near_misses

NOISE = "noise"  # the mode of a sweep that alphas are measured in
LEVEL = "mode.sqnr_db"
MAX_RATIO = 2.0  # of the alphas of one tensor at two sizes of noise; beyond it they are doubtful
WEIGHTS_HEAD = ["tensor", "alpha"]


@dataclass(frozen=True)
class Sensitivity:
    """The alphas of tensors that noise was added to one at a time.

    `levels` are the least and the greatest size of the noise, in dB; the alphas of the `doubtful`
    tensors differ more than `MAX_RATIO` times between sizes.
    """

    alphas: Mapping[str, float]
    levels: tuple[float, float]
    doubtful: Sequence[str]


def read_sensitivity(directory: Path, names: Collection[str]) -> Sensitivity:
    """Compute the alphas of tensors from a sweep of noise, the geometric mean of all its sizes.

    Raises ValueError where a sweep has no noise or no answers, or lacks one of the tensors `names`.
    """
    sweep = read_aggregate(directory)
    if not any(row["mode"] == NOISE for row in sweep.rows):
        raise ValueError(
            f"{directory} is no sweep of noise: sweep with mode=noise mode.sqnr_db=30,40 model=... "
            "model.each=true"
        )
    rows = [row for row in with_answer_kl(sweep).rows if row["mode"] == NOISE]
    alphas = {
        name: [_compute_alpha(row) for row in tensor_rows]
        for name, tensor_rows in group_by(
            (row for row in rows if row[ANSWER_KL] is not None), lambda row: str(row["tensor"])
        ).items()
    }
    if missing := [label(name) for name in names if name not in alphas]:
        listed = ", ".join(first_few(missing, SENTENCE_TENSORS))
        raise ValueError(
            f"{directory} has no alpha of {len(missing)} of the {len(names)} tensors measured "
            f"({listed}): sweep noise over the same tensors"
        )
    levels = [float(FormatSpec.from_row(row).setting(LEVEL)) for row in rows]
    return Sensitivity(
        {name: _geometric_mean(alphas[name]) for name in names},
        (min(levels), max(levels)),
        [name for name in names if max(alphas[name]) > MAX_RATIO * min(alphas[name])],
    )


def _compute_alpha(row: Row) -> float:
    """Return KL over relative squared error; 0 for a tensor of zeros, which has no noise."""
    error = relative_error(row, "sqnr_db")
    return float(row[ANSWER_KL]) / error if error else 0.0


def _geometric_mean(alphas: Sequence[float]) -> float:
    """Return the geometric mean of those above 0; the KL of little noise may be lost in rounding.

    >>> _geometric_mean([1.0, 4.0, 0.0])
    2.0
    """
    logarithms = [math.log(alpha) for alpha in alphas if alpha > 0]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else 0.0


def parse_weights(
    weights: Mapping[str, float] | str | Path, names: Collection[str]
) -> Mapping[str, float]:
    """Return the alpha of each tensor, from a csv file whose first line is ``tensor,alpha`` too.

    Raises ValueError, with the line, if a tensor is none of `names` or is listed twice, or its
    alpha is no number from 0 up.
    """
    if isinstance(weights, Mapping):
        lines = [("weights", [name, str(alpha)]) for name, alpha in weights.items()]
    else:
        lines = _read_weight_lines(Path(weights))
    alphas: dict[str, float] = {}
    for where, line in lines:
        name, alpha = _parse_weight(line, where, names)
        if name in alphas:
            raise ValueError(f"{where}: '{label(name)}' stands there twice")
        alphas[name] = alpha
    return alphas


def _read_weight_lines(path: Path) -> list[tuple[str, list[str]]]:
    """Return the lines of a csv file, each with what to call it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        why = getattr(reason, "strerror", None) or reason
        raise ValueError(f"{path} cannot be read: {why}") from None
    if [cell.strip() for cell in head] != WEIGHTS_HEAD:
        raise ValueError(f"{path} must begin with the line {','.join(WEIGHTS_HEAD)}")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 2) if line]


def _parse_weight(line: list[str], where: str, names: Collection[str]) -> tuple[str, float]:
    if len(line) != 2:
        raise ValueError(f"{where}: a line is a tensor and its alpha, got {','.join(line)!r}")
    name, text = line
    if name not in names:
        near = near_misses(name, list(names))
        raise ValueError(f"{where}: the sweep has no tensor '{label(name)}': {near}")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha < math.inf:
        raise ValueError(f"{where}: the alpha of '{label(name)}' must be from 0 up, got {text!r}")
    return name, alpha
