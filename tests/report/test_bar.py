import math
import re

import pytest

from quantlab.conf import load_option
from quantlab.report.bar import CRITERIA, Bar

GOOD = {"top_order_kept": True, "rel_err": 0.01, "sqnr_db": 30.0, "max_err": 0.5}


def test_the_default_is_that_of_the_lab():
    assert Bar().thresholds() | {"worst_row_sqnr_db": None} == load_option("bar", "lab")


def test_the_worst_row_is_asked_where_a_bar_asks_for_it():
    bar = Bar(top_order=None, rel_err=None, worst_row_sqnr_db=10)
    assert bar.missed(GOOD | {"worst_row_sqnr_db": 0.0}) == ["worst_row_sqnr_db"]
    assert bar.missed(GOOD | {"worst_row_sqnr_db": 10.0}) == []
    assert bar.missed(GOOD | {"worst_row_sqnr_db": None}) == ["worst_row_sqnr_db"]
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
        ({"kl": 1}, f"report.bar takes {', '.join(CRITERIA)}, got {{'kl': 1}}"),
        (3, f"report.bar takes {', '.join(CRITERIA)}, got 3"),
    ],
)
def test_a_bar_that_makes_no_sense_is_named(asked, why):
    with pytest.raises(ValueError, match=f"^{re.escape(why)}"):
        Bar.of(asked)
