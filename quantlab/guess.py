"""What was predicted beside what came, and how wrong it was."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from quantlab.bar import Row
from quantlab.texts import Texts
from quantlab.verdict import NULL, figure, row_name

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


class Guess(NamedTuple):
    """A figure as predicted and as measured, their ratio, and how wrong that is."""

    predicted: str
    measured: str
    ratio: str
    grade: str


def predictions(
    rows: Sequence[Row], levels: Sequence[str], t: Texts
) -> list[tuple[str, list[Guess]]]:
    """Return what was predicted and what came, a row a tensor and run, the most wrong first."""
    believed = [row for row in rows if row.get("predicted_scale") is not None]
    ranked = sorted(believed, key=lambda row: -max(_wrong(key, row) for key in OF_MANY))
    return [
        (
            t("in_bits", name=row_name(row, levels), bits=row["n_bits"]),
            [_guess(key, row, t) for key in PREDICTED],
        )
        for row in ranked
    ]


def _guess(key: str, row: Row, t: Texts) -> Guess:
    before, after, wrong = row[f"predicted_{key}"], row[key], _wrong(key, row)
    said = figure(before, PREDICTED[key], t), figure(after, PREDICTED[key], t)
    if after is None:
        return Guess(*said, NULL, "")
    ratio = f"{after - before:+.1f}" if key == "sqnr_db" else f"×{after / before:.2f}"
    return Guess(*said, ratio, next(grade for grade, most in GRADES.items() if wrong <= most))


def _wrong(key: str, row: Row) -> float:
    """Return how far a figure is from its prediction: |log| of their ratio, 0 where none came.

    Of an SQNR it is the ratio of the errors behind it.
    """
    before, after = row[f"predicted_{key}"], row[key]
    if after is None:
        return 0.0
    if key == "sqnr_db":
        return abs(after - before) / 20 * math.log(10)
    return abs(math.log(after / before)) if after else math.inf
