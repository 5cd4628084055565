import math

import pytest

from quantlab.report import tables
from quantlab.report.bar import Bar
from quantlab.report.choices import find_widths
from quantlab.report.tables import storage_sentences, storage_table, storage_trend
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.samples import (
    FORMAT_LEVELS,
    LEVELS,
    SQNR,
    judged,
    row,
    some,
    storage_of,
    stored,
    widths_of,
)

T = Texts("en")


def test_each_row_has_its_own_figures():
    figures = {
        "mae": 0.0001234, "max_err": 2.5e-7, "cos_sim": 0.99999996, "n_codes": 39, "scale": 1 / 3,
        "zero_point": -5, "n_elements": 600,
    }  # fmt: skip
    one = row(8, rel_err=0.5, top_merged=1, **figures)
    other = row(4, sqnr_db=None, rel_err=None, **figures | {"mae": 0.0, "max_err": 0})
    table = tables.table([one, other], LEVELS, T)
    messages = [dict(zip(table.heads, cells, strict=True)) for cells in table.rows]
    assert messages[0] == {
        "dist": "verb_probs", "mode": "symmetric", "n_bits": "8", "bar": "top_order rel_err",
        "mae": "0.000123", "max_err": "2.5e-07", "rel_err": "50%", "cos_sim": "1.0000000",
        "n_codes": "39", "sqnr_db": "50.00", "zeroed": "0%", "top_k": "1 merged",
        "scale": "0.3333", "zero_point": "-5", "n_elements": "600",
    }  # fmt: skip
    assert messages[1] == messages[0] | {
        "n_bits": "4", "bar": "met", "mae": "0", "max_err": "0", "rel_err": "–", "sqnr_db": "exact",
        "top_k": "in order",
    }  # fmt: skip
    assert [table.heads[n - 1] for n in table.words] == ["dist", "mode", "bar", "top_k"]


def test_a_tensor_is_named_in_full_where_it_is_not_its_source():
    figures = dict.fromkeys(["mae", "cos_sim", "n_codes", "scale", "zero_point", "n_elements"], 1)
    names = [f"vision_model.encoder.layers.{n}.self_attn.out_proj.weight" for n in (0, 10)]
    rows = [row(8, tensor=name, **figures) for name in names]
    table = tables.table(rows, LEVELS, T)
    assert [cells[table.heads.index("tensor")] for cells in table.rows] == names
    levels = [*LEVELS, "tensor"]
    assert {one.name for one in tables.heat_table(widths_of(rows, levels), [8], T)} == {
        f"{name}, symmetric" for name in names
    }


def test_the_heat_of_a_width_is_its_sqnr():
    rows = [row(4, sqnr_db=-3.0), row(6, sqnr_db=29.9), row(8, sqnr_db=math.nextafter(60, 0))]
    (one,) = tables.heat_table(
        widths_of([*rows, row(16, sqnr_db=None, max_err=0)], LEVELS), [2, 4, 6, 8, 16], T
    )
    assert one.name == "verb_probs, symmetric"
    assert one.fewest == ["8", "4", "4", "8"]
    assert one.cells == [("", None), ("-3.0", 0), ("29.9", 5), ("60.0", 11), ("exact", 11)]


def test_a_star_says_that_a_wider_one_misses():
    rows = [row(4), row(6, top_merged=1), row(8)]
    (one,) = tables.heat_table(widths_of(rows, LEVELS), [4, 6, 8], T)
    assert one.fewest == ["4*", "4*", "4", "4"]


def test_none_is_said_where_no_width_is_enough():
    (one,) = tables.heat_table(widths_of([row(8, rel_err=0.5)], LEVELS), [8], T)
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
    table = tables.table([plain, other], levels, T)
    one, two = (dict(zip(table.heads, cells, strict=True)) for cells in table.rows)
    assert (one["bits_per_value"], two["bits_per_value"]) == ("8.053", "4.5")
    assert (one["block_size"], two["block_size"]) == ("–", "64")
    shares = [two[key] for key in ("bits_above_bound", "clip_share", "zero_share", "round_share")]
    assert shares == ["1.23", "25%", "12.5%", "62.5%"]
    assert two["scale"] == two["zero_point"] == "–"
    assert [table.heads[n - 1] for n in table.words] == ["dist", "mode", "block", "bar", "top_k"]
    old = row(6, **{key: MORE[key] for key in ("mae", "cos_sim", "n_codes", "n_elements")})
    old |= {"block": None, "block_size": None, "scale": 1.0, "zero_point": 0}
    cells = dict(zip(table.heads, tables.table([old, other], levels, T).rows[0], strict=True))
    assert cells["bits_per_value"] == cells["clip_share"] == cells["block"] == "–"


def test_plain_integers_have_the_columns_that_they_always_had():
    rows = [stored("symmetric", n, n + 0.1, 6.0 * n, **MORE) for n in (4, 8)]
    assert tables.table(rows, LEVELS, T).heads == [*LEVELS, *tables.GLOSSARY]


def said(rows, levels=FORMAT_LEVELS, bar=SQNR):
    return list(storage_sentences(storage_of(rows, levels, bar), levels, T))


def test_a_tensor_s_cheapest_format_is_quoted_with_what_it_costs():
    rows = [stored("symmetric", 8, 8.0533, 20.0), stored("log", 10, 10.1067, 52.0)]
    assert said(rows) == [
        "verb_probs: cheapest format that meets the bar: log 10 bits (10.11 bits per value)"
    ]
    assert said(some(), bar=Bar(sqnr_db=60.0)) == [
        "verb_probs: none of the formats tried meets the bar"
    ]


def test_of_many_tensors_a_source_says_how_often_each_is_the_cheapest():
    levels = [*FORMAT_LEVELS, "tensor"]
    rows = [each for name in "abc" for each in some(dist="file/npz", tensor=name)]
    rows += [each | {"sqnr_db": 31.0} for each in some(dist="file/npz", tensor="d")]
    rows += [each | {"sqnr_db": 1.0} for each in some(dist="file/npz", tensor="e")]
    assert said(rows, levels) == [
        "file/npz: 4 of 5 tensors have a format that meets the bar; the cheapest is sym 8 bits for "
        "3; sym 4 bits for 1"
    ]
    none = [each | {"sqnr_db": 1.0} for each in rows]
    assert said(none, levels) == ["file/npz: none of the 5 tensors has a format that meets the bar"]


def test_formats_that_few_tensors_need_are_counted_together():
    levels = [*FORMAT_LEVELS, "tensor"]
    rows = [
        stored(mode, n, float(n), 40.0 if n == chosen else 1.0, tensor=str(chosen))
        for chosen in range(2, 10)
        for n, mode in ((chosen, "symmetric"), (11, "nf4"))
    ]
    (sentence,) = said(rows, levels)
    assert sentence.endswith("sym 6 bits for 1; others for 3")


def test_the_table_has_a_row_a_tensor():
    exact = [stored("log", 16, 16.1, None, tensor="exact", max_err=0), stored("nf4", 4, 4.5, 1.0)]
    rows = [*some(tensor="w"), *exact, *(each | {"tensor": "x"} for each in exact[1:] * 1)]
    found = storage_of(rows, [*FORMAT_LEVELS, "tensor"], SQNR)
    assert storage_table(found, T) == [
        ("verb_probs", "none of those tried", "–", "–"),
        ("x", "none of those tried", "–", "–"),
        ("exact", "log 16 bits", "16.1", "exact"),
        ("w", "sym 8 bits", "8.01", "34.00"),
    ]


def test_the_front_is_told_to_those_who_do_not_see_it():
    rows = [*some(), stored("log", 16, 16.1, None, max_err=0)]
    assert storage_trend(storage_of(rows, FORMAT_LEVELS, SQNR), T) == (
        "SQNR against bits per value; the front: sym 4 bits with 10.0 dB at 4.01 bits; nf4, group "
        "32 with 20.0 dB at 4.5 bits; sym 8 bits with 34.0 dB at 8.01 bits; sym 8 bits, group 32 "
        "with 44.0 dB at 9 bits."
    )


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_language_can_say_it(lang):
    for bar in (SQNR, Bar(sqnr_db=60.0)):
        found = storage_of(some(), FORMAT_LEVELS, bar)
        for levels in (FORMAT_LEVELS, [*FORMAT_LEVELS, "tensor"]):
            assert list(storage_sentences(found, levels, Texts(lang)))


FIGURES = {"scale": 0.5, "max_err": 0.25, "mae": 0.1, "rmse": 0.2, "landmark_rel_err": 0.1}


def believed(measured, n_bits=8, **predicted):
    """A row whose figures were predicted as they came, but for what is given."""
    came = row(n_bits, **FIGURES) | measured
    asked = {f"predicted_{key}": came[key] for key in tables.PREDICTED}
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
    ((_, guesses),) = tables.prediction_table([believed({"scale": after}, scale=before)], LEVELS, T)
    assert (guesses[0].ratio, guesses[0].grade) == (ratio, grade)


@pytest.mark.parametrize(
    ("after", "ratio", "grade"),
    [(40.8, "+0.8", "close"), (39.1, "-0.9", "off"), (44.0, "+4.0", "wrong"), (None, "–", "")],
)
def test_an_sqnr_is_graded_by_the_errors_behind_it(after, ratio, grade):
    ((_, guesses),) = tables.prediction_table(
        [believed({"sqnr_db": after}, sqnr_db=40.0)], LEVELS, T
    )
    sqnr = guesses[list(tables.PREDICTED).index("sqnr_db")]
    assert (sqnr.predicted, sqnr.ratio, sqnr.grade) == ("40.0", ratio, grade)


def test_the_most_wrong_prediction_comes_first():
    rows = [believed({}), believed({"mae": 0.3}, 4, mae=0.1), believed({"mae": 0.11}, 6, mae=0.1)]
    names = [name for name, _ in tables.prediction_table(rows, LEVELS, T)]
    assert names == [f"verb_probs, symmetric, {n} bits" for n in (4, 6, 8)]
    lucky = believed({"landmark_rel_err": 1e-9}, 16, landmark_rel_err=0.1)  # one value tells little
    names = [name for name, _ in tables.prediction_table([*rows, lucky], LEVELS, T)]
    assert names[0] == "verb_probs, symmetric, 4 bits"
    unknown = row(8) | {"predicted_scale": None}
    assert tables.prediction_table([unknown, row(8)], LEVELS, T) == []


def test_a_figure_that_was_not_predicted_is_a_dash_and_no_mistake():
    many = believed({"scale": None}, scale=None, landmark_rel_err=None) | {"predicted_mae": 0.2}
    ((_, guesses),) = tables.prediction_table([many], LEVELS, T)
    shown = dict(zip(tables.PREDICTED, guesses, strict=True))
    assert shown["scale"] == ("–", "–", "–", "")
    assert (shown["landmark_rel_err"].ratio, shown["landmark_rel_err"].grade) == ("–", "")
    assert shown["mae"].grade == "wrong"
    assert not tables.is_predicted(row(8))
    assert tables.prediction_table([row(8), many], LEVELS, T)[0][1] == guesses


def test_a_criterion_that_a_bar_does_not_have_is_a_dash():
    rows = [*judged([row(8, tensor="a")]), *judged([row(8, tensor="b")], SQNR)]
    heat = tables.heat_table(find_widths(rows, [*LEVELS, "tensor"]), [8], T)
    assert [line.fewest for line in heat] == [["8", "8", "8", "8"], ["8", "–", "–", "8"]]
