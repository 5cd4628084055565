import math

from quantlab.report import tables
from quantlab.report.bar import Bar
from quantlab.report.texts import Texts
from quantlab.report.verdict import verdicts
from tests.report.test_storage import stored
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


MORE = {
    "mae": 0.1, "cos_sim": 0.9, "n_codes": 16, "scale": None, "zero_point": None,
    "n_elements": 600, "bits_above_bound": 1.2345, "clip_share": 0.25, "zero_share": 0.125,
    "round_share": 0.625,
}  # fmt: skip


def test_where_formats_were_tried_the_table_says_what_they_cost():
    levels = [*LEVELS, "block", "block_size"]
    plain = stored("symmetric", 8, 8.0533, 40.0, **MORE)
    other = stored("nf4", 4, 4.5, 20.0, block="group", block_size=64, **MORE)
    table = tables.table([plain, other], levels, Bar(), T)
    one, two = (dict(zip(table.heads, cells, strict=True)) for cells in table.rows)
    assert (one["bits_per_value"], two["bits_per_value"]) == ("8.053", "4.5")
    assert (one["block_size"], two["block_size"]) == ("–", "64")
    shares = [two[key] for key in ("bits_above_bound", "clip_share", "zero_share", "round_share")]
    assert shares == ["1.23", "25%", "12.5%", "62.5%"]
    assert two["scale"] == two["zero_point"] == "–"
    assert [table.heads[n - 1] for n in table.words] == ["dist", "mode", "block", "bar", "top_k"]
    old = row(6, **{key: MORE[key] for key in ("mae", "cos_sim", "n_codes", "n_elements")})
    old |= {"block": None, "block_size": None, "scale": 1.0, "zero_point": 0}
    cells = dict(
        zip(table.heads, tables.table([old, other], levels, Bar(), T).rows[0], strict=True)
    )
    assert cells["bits_per_value"] == cells["clip_share"] == cells["block"] == "–"


def test_plain_integers_have_the_columns_that_they_always_had():
    rows = [stored("symmetric", n, n + 0.1, 6.0 * n, **MORE) for n in (4, 8)]
    assert tables.table(rows, LEVELS, Bar(), T).heads == [*LEVELS, *tables.GLOSSARY]
