import math

from quantlab import page
from quantlab.bar import Bar
from quantlab.texts import Texts
from quantlab.verdict import verdicts
from tests.test_verdict import LEVELS, row

T = Texts("en")


def test_a_row_has_every_figure_that_decides():
    figures = {
        "mae": 0.0001234, "max_err": 2.5e-7, "cos_sim": 0.99999996, "n_codes": 39, "scale": 1 / 3,
        "zero_point": -5, "n_elements": 600,
    }  # fmt: skip
    rows = [row(8, sqnr_db=None, rel_err=0.5, top_merged=1, **figures)]
    table = page.table(rows, LEVELS, Bar(), T)
    told = dict(zip(table.heads, table.rows[0], strict=True))
    assert told == {
        "dist": "verb_probs", "mode": "symmetric", "n_bits": "8", "mae": "0.000123",
        "max_err": "2.5e-07", "rel_err": "50%", "cos_sim": "1.0000000", "n_codes": "39",
        "sqnr_db": "–", "zeroed": "0%", "top_k": "1 merged", "scale": "0.3333", "zero_point": "-5",
        "n_elements": "600", "bar": "top_order rel_err",
    }  # fmt: skip
    assert [table.heads[n - 1] for n in table.words] == ["dist", "mode", "bar", "top_k"]


def test_the_heat_of_a_width_is_its_sqnr():
    rows = [row(4, sqnr_db=-3.0), row(6, sqnr_db=29.9), row(8, sqnr_db=math.nextafter(60, 0))]
    (one,) = page.heat(verdicts([*rows, row(16, sqnr_db=None)], LEVELS, Bar()), [2, 4, 6, 8, 16], T)
    assert one.name == "verb_probs, symmetric"
    assert one.fewest == ["8", "4", "4", "8"]
    assert one.cells == [("", None), ("-3.0", 0), ("29.9", 5), ("60.0", 11), ("∞", 11)]


def test_a_star_says_that_a_wider_one_misses():
    rows = [row(4), row(6, top_merged=1), row(8)]
    (one,) = page.heat(verdicts(rows, LEVELS, Bar()), [4, 6, 8], T)
    assert one.fewest == ["4*", "4*", "4", "4"]


def test_none_is_said_where_no_width_is_enough():
    (one,) = page.heat(verdicts([row(8, rel_err=0.5)], LEVELS, Bar()), [8], T)
    assert one.fewest == ["none", "8", "none", "8"]
