import pytest

from quantlab.report import prediction_table
from quantlab.report.texts import Texts
from tests.report.test_verdict import LEVELS, row

T = Texts("en")
FIGURES = {"scale": 0.5, "max_err": 0.25, "mae": 0.1, "rmse": 0.2, "landmark_rel_err": 0.1}


def believed(measured, n_bits=8, **predicted):
    """A row whose figures were predicted as they came, but for what is given."""
    came = row(n_bits, **FIGURES) | measured
    asked = {f"predicted_{key}": came[key] for key in prediction_table.PREDICTED}
    return came | asked | {f"predicted_{key}": value for key, value in predicted.items()}


@pytest.mark.parametrize(
    ("before", "after", "ratio", "grade"),
    [
        (0.5, 0.5, "×1.00", "close"),
        (0.5, 0.549, "×1.10", "close"),
        (0.5, 0.551, "×1.10", "off"),
        (0.5, 0.4, "×0.80", "off"),
        (0.5, 0.751, "×1.50", "wrong"),
        (0.5, 0.333, "×0.67", "wrong"),
        (0.5, 0.0, "×0.00", "wrong"),
    ],
)
def test_a_prediction_is_graded_by_its_ratio(before, after, ratio, grade):
    ((_, guesses),) = prediction_table.prediction_table(
        [believed({"scale": after}, scale=before)], LEVELS, T
    )
    assert (guesses[0].ratio, guesses[0].grade) == (ratio, grade)


@pytest.mark.parametrize(
    ("after", "ratio", "grade"),
    [(40.8, "+0.8", "close"), (39.1, "-0.9", "off"), (44.0, "+4.0", "wrong"), (None, "–", "")],
)
def test_an_sqnr_is_graded_by_the_errors_behind_it(after, ratio, grade):
    ((_, guesses),) = prediction_table.prediction_table(
        [believed({"sqnr_db": after}, sqnr_db=40.0)], LEVELS, T
    )
    sqnr = guesses[list(prediction_table.PREDICTED).index("sqnr_db")]
    assert (sqnr.predicted, sqnr.ratio, sqnr.grade) == ("40.0", ratio, grade)


def test_the_most_wrong_prediction_comes_first():
    rows = [believed({}), believed({"mae": 0.3}, 4, mae=0.1), believed({"mae": 0.11}, 6, mae=0.1)]
    names = [name for name, _ in prediction_table.prediction_table(rows, LEVELS, T)]
    assert names == [f"verb_probs, symmetric, {n} bits" for n in (4, 6, 8)]
    lucky = believed({"landmark_rel_err": 1e-9}, 16, landmark_rel_err=0.1)  # one value tells little
    names = [name for name, _ in prediction_table.prediction_table([*rows, lucky], LEVELS, T)]
    assert names[0] == "verb_probs, symmetric, 4 bits"
    unknown = row(8) | {"predicted_scale": None}
    assert prediction_table.prediction_table([unknown, row(8)], LEVELS, T) == []


def test_a_figure_that_was_not_predicted_is_a_dash_and_no_mistake():
    many = believed({"scale": None}, scale=None, landmark_rel_err=None) | {"predicted_mae": 0.2}
    ((_, guesses),) = prediction_table.prediction_table([many], LEVELS, T)
    shown = dict(zip(prediction_table.PREDICTED, guesses, strict=True))
    assert shown["scale"] == ("–", "–", "–", "")
    assert (shown["landmark_rel_err"].ratio, shown["landmark_rel_err"].grade) == ("–", "")
    assert shown["mae"].grade == "wrong"
    assert not prediction_table.is_predicted(row(8))
    assert prediction_table.prediction_table([row(8), many], LEVELS, T)[0][1] == guesses
