import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.conf import load_option
from quantlab.records.rows import Rows
from quantlab.report.bar import ANSWER_CRITERIA, CRITERIA, Bar, answer_figure, missed_column

GOOD = {"top_order_kept": True, "rel_err": 0.01, "sqnr_db": 30.0, "max_err": 0.5}


def test_the_default_is_that_of_the_lab():
    later = dict.fromkeys(("worst_row_sqnr_db", *ANSWER_CRITERIA))
    assert Bar().thresholds() | later == load_option("bar", "lab")


def test_the_worst_row_is_asked_where_a_bar_asks_for_it():
    bar = Bar(top_order=None, rel_err=None, worst_row_sqnr_db=10)
    assert bar.missed(GOOD | {"worst_row_sqnr_db": 0.0}) == ["worst_row_sqnr_db"]
    assert bar.missed(GOOD | {"worst_row_sqnr_db": 10.0}) == []
    assert bar.missed(GOOD | {"worst_row_sqnr_db": None}) == ["worst_row_sqnr_db"]
    assert Bar.from_row(bar.columns()) == bar


ANSWER = {"kl": 0.01, "top1_same": 0.99, "accuracy": 0.5, "accuracy_before": 0.75}


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"kl": math.nextafter(0.01, 1)}, ["kl"]),
        ({"top1_same": math.nextafter(0.99, 0)}, ["top1_same"]),
        ({"accuracy": 0.49}, ["accuracy_drop"]),
        ({"accuracy": 0.8}, []),
        ({"kl": None, "top1_same": None, "accuracy": None, "accuracy_before": None}, []),
    ],
)
def test_answers_are_judged_by_the_figures_that_they_have(change, missed):
    only = dict.fromkeys(("top_order", "rel_err", "sqnr_db"))
    bar = Bar(**only, kl=0.01, top1_same=0.99, accuracy_drop=0.25)
    assert bar.criteria == {}
    assert bar.missed_answers(ANSWER | change) == missed
    assert Bar().missed_answers(ANSWER | change) == []
    assert answer_figure(ANSWER, "accuracy_drop") == 0.25
    assert Bar.from_row(bar.columns()) == bar


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"top_order_kept": False}, ["top_order"]),
        ({"rel_err": math.nextafter(0.01, 1)}, ["rel_err"]),
        ({"sqnr_db": math.nextafter(30, 0)}, ["sqnr_db"]),
        ({"rel_err": None, "sqnr_db": None, "max_err": 0.0}, []),
        ({"rel_err": None}, ["rel_err"]),  # no value is large enough to have one, yet all were lost
        (
            {"top_order_kept": False, "rel_err": 1.0, "sqnr_db": 1.0},
            ["top_order", "rel_err", "sqnr_db"],
        ),
    ],
)
def test_a_threshold_itself_meets(change, missed):
    assert Bar().missed(GOOD | change) == missed


def test_what_is_null_or_false_is_not_asked():
    bar = Bar(top_order=False, rel_err=None, sqnr_db=40)
    assert bar.criteria == {"sqnr_db": 40}
    assert bar.missed(GOOD | {"top_order_kept": False, "rel_err": 9.0, "sqnr_db": 40.0}) == []


def test_what_is_not_named_is_not_asked():
    assert Bar.of({"sqnr_db": 40}).criteria == {"sqnr_db": 40}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"rel_err": 0}, "report.bar.rel_err must be a number above 0, up to 1 (0.05 is 5 %), or"),
        ({"rel_err": 5}, "report.bar.rel_err must be a number above 0, up to 1 (0.05 is 5 %), or"),
        ({"rel_err": "1%"}, "report.bar.rel_err must be a number above 0, up to 1"),
        ({"sqnr_db": True}, "report.bar.sqnr_db must be a number above 0 or null, got True"),
        ({"sqnr_db": math.nan}, "report.bar.sqnr_db must be a number above 0 or null, got nan"),
        ({"sqnr_db": math.inf}, "report.bar.sqnr_db must be a number above 0 or null, got inf"),
        ({"top_order": 1}, "report.bar.top_order must be true, false or null, got 1"),
        ({"top_order": None, "rel_err": None, "sqnr_db": None}, "report.bar asks nothing"),
        ({"ssim": 1}, f"report.bar takes {', '.join(CRITERIA)}, got {{'ssim': 1}}"),
        ({"top1_same": 99}, "report.bar.top1_same must be a number above 0, up to 1 (0.05 is 5 %)"),
        ({"kl": 0}, "report.bar.kl must be a number above 0 or null, got 0"),
        (3, f"report.bar takes {', '.join(CRITERIA)}, got 3"),
    ],
)
def test_a_bar_that_makes_no_sense_is_named(asked, why):
    with pytest.raises(ValueError, match=f"^{re.escape(why)}"):
        Bar.of(asked)


FIGURE = st.one_of(st.none(), st.sampled_from([0.0, 0.01, 20, 30.0, 30.5]))
LIMIT = st.one_of(st.none(), st.sampled_from([0.01, 0.5, 30, 30.0]))
JUDGED = st.fixed_dictionaries(
    {
        "top_order_kept": st.sampled_from([True, False, None]),
        "max_err": st.sampled_from([0, 0.0, 0.5]),
        "underflowed": st.sampled_from([None, 0, 3]),
        **dict.fromkeys(("rel_err", "sqnr_db", "worst_row_sqnr_db"), FIGURE),
        **dict.fromkeys(("x_min", "x_max"), st.sampled_from([0.0, 1.0])),
        "bar_top_order": st.sampled_from([True, False, None]),
        **dict.fromkeys(("bar_rel_err", "bar_sqnr_db", "bar_worst_row_sqnr_db"), LIMIT),
    }
).filter(lambda row: (row["bar_rel_err"] or 0) <= 1)


@given(st.lists(JUDGED))
def test_a_column_judges_as_each_row_is_judged(rows):
    rows = [row for row in rows if any(row[key] for key in row if key.startswith("bar_"))]
    one_by_one = [tuple(Bar.from_row(row).missed(row)) for row in rows]
    for table in (rows, Rows.of(rows)):
        column = missed_column(table)
        assert [column[n] for n in range(len(rows))] == one_by_one
