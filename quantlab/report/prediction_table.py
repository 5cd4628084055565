"""What was predicted beside what came, and how wrong it was."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from quantlab.records.record import Row
from quantlab.report.numbers import format_figure
from quantlab.report.texts import Texts
from quantlab.report.verdict import row_name
from quantlab.text import NULL

PREDICTED = {
    "scale": ".3g",
    "max_err": ".3g",
    "mae": ".3g",
    "rmse": ".3g",
    "sqnr_db": ".1f",
    "landmark_rel_err": "%",
}
OF_MANY = [key for key in PREDICTED if key != "landmark_rel_err"]  # not the luck of one value
GRADES = {"close": math.log(1.1), "off": math.log(1.5), "wrong": math.inf}


class Prediction(NamedTuple):
    """A figure as predicted and as measured, their ratio, and how wrong that is."""

    predicted: str
    measured: str
    ratio: str
    grade: str


def prediction_table(
    rows: Sequence[Row], levels: Sequence[str], t: Texts
) -> list[tuple[str, list[Prediction]]]:
    """Return what was predicted and what came, a row a tensor and run, the most wrong first."""
    ranked = sorted(
        filter(is_predicted, rows), key=lambda row: -max(_log_ratio(key, row) for key in OF_MANY)
    )
    return [
        (
            t("in_bits", name=row_name(row, levels), bits=row["n_bits"]),
            [_prediction(key, row, t) for key in PREDICTED],
        )
        for row in ranked
    ]


def is_predicted(row: Row) -> bool:
    """Return whether anything was predicted of a row; of many scales none is."""
    return any(row.get(f"predicted_{key}") is not None for key in PREDICTED)


def _prediction(key: str, row: Row, t: Texts) -> Prediction:
    before, after, log_ratio = row.get(f"predicted_{key}"), row[key], _log_ratio(key, row)
    texts = format_figure(before, PREDICTED[key], t), format_figure(after, PREDICTED[key], t)
    if before is None or after is None:
        return Prediction(*texts, NULL, "")
    ratio = f"{after - before:+.1f}" if key == "sqnr_db" else f"×{after / before:.2f}"
    return Prediction(
        *texts, ratio, next(grade for grade, most in GRADES.items() if log_ratio <= most)
    )


def _log_ratio(key: str, row: Row) -> float:
    """Return how far a figure is from its prediction: |log| of their ratio, 0 where one is missing.

    Of an SQNR it is the ratio of the errors behind it.
    """
    before, after = row.get(f"predicted_{key}"), row[key]
    if before is None or after is None:
        return 0.0
    if key == "sqnr_db":
        return abs(after - before) / 20 * math.log(10)
    return abs(math.log(after / before)) if after else math.inf
