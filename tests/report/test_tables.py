import math

from quantlab.report import tables
from quantlab.report.bar import Bar
from quantlab.report.texts import Texts
from quantlab.report.verdict import verdicts
from tests.report.test_verdict import LEVELS, row

T = Texts("en")


def test_each_row_has_its_own_figures():
    figures = {
        "mae": 0.0001234, "max_err": 2.5e-7, "cos_sim": 0.99999996, "n_codes": 39, "scale": 1 / 3,
        "zero_point": -5, "n_elements": 600,
    }  # fmt: skip
    one = row(8, rel_err=0.5, top_merged=1, **figures)
    other = row(4, sqnr_db=None, rel_err=None, **figures | {"mae": 0.0, "max_err": 0})
    table = tables.table([one, other], LEVELS, Bar(), T)
    messages = [dict(zip(table.heads, cells, strict=True)) for cells in table.rows]
    assert messages[0] == {
        "dist": "verb_probs", "mode": "symmetric", "n_bits": "8", "bar": "top_order rel_err",
        "mae": "0.000123", "max_err": "2.5e-07", "rel_err": "50%", "cos_sim": "1.0000000",
        "n_codes": "39", "sqnr_db": "50.00", "zeroed": "0%", "top_k": "1 merged",
        "scale": "0.3333", "zero_point": "-5", "n_elements": "600",
    }  # fmt: skip
    assert messages[1] == messages[0] | {
        "n_bits": "4", "bar": "met", "mae": "0", "max_err": "0", "rel_err": "–", "sqnr_db": "–",
        "top_k": "in order",
    }  # fmt: skip
    assert [table.heads[n - 1] for n in table.words] == ["dist", "mode", "bar", "top_k"]


def test_a_tensor_is_named_in_full_where_it_is_not_its_source():
    figures = dict.fromkeys(["mae", "cos_sim", "n_codes", "scale", "zero_point", "n_elements"], 1)
    names = [f"vision_model.encoder.layers.{n}.self_attn.out_proj.weight" for n in (0, 10)]
    rows = [row(8, tensor=name, **figures) for name in names]
    table = tables.table(rows, LEVELS, Bar(), T)
    assert [cells[table.heads.index("tensor")] for cells in table.rows] == names
    levels = [*LEVELS, "tensor"]
    assert {one.name for one in tables.heat_table(verdicts(rows, levels, Bar()), [8], T)} == {
        f"{name}, symmetric" for name in names
    }


def test_the_heat_of_a_width_is_its_sqnr():
    rows = [row(4, sqnr_db=-3.0), row(6, sqnr_db=29.9), row(8, sqnr_db=math.nextafter(60, 0))]
    (one,) = tables.heat_table(
        verdicts([*rows, row(16, sqnr_db=None, max_err=0)], LEVELS, Bar()), [2, 4, 6, 8, 16], T
    )
    assert one.name == "verb_probs, symmetric"
    assert one.fewest == ["8", "4", "4", "8"]
    assert one.cells == [("", None), ("-3.0", 0), ("29.9", 5), ("60.0", 11), ("∞", 11)]


def test_a_star_says_that_a_wider_one_misses():
    rows = [row(4), row(6, top_merged=1), row(8)]
    (one,) = tables.heat_table(verdicts(rows, LEVELS, Bar()), [4, 6, 8], T)
    assert one.fewest == ["4*", "4*", "4", "4"]


def test_none_is_said_where_no_width_is_enough():
    (one,) = tables.heat_table(verdicts([row(8, rel_err=0.5)], LEVELS, Bar()), [8], T)
    assert one.fewest == ["none", "8", "none", "8"]
