import math

import pytest

from quantlab.report import tables
from quantlab.report.bar import Bar
from quantlab.report.choices import Findings
from quantlab.report.tables import side_by_side, storage_table, storage_trend
from quantlab.report.texts import Texts
from tests.report.samples import (
    FILE_ROWS,
    FORMAT_LEVELS,
    LEVELS,
    SQNR,
    files_of,
    findings_of,
    judged,
    row,
    some,
    storage_of,
    stored,
    stored_tensor,
)

T = Texts("en")


def test_each_row_has_its_own_figures():
    figures = {
        "mae": 0.0001234, "max_err": 2.5e-7, "cos_sim": 0.99999996, "n_codes": 39, "scale": 1 / 3,
        "zero_point": -5, "n_elements": 600,
    }  # fmt: skip
    one = row(8, rel_err=0.5, top_merged=1, **figures)
    other = row(4, sqnr_db=None, rel_err=None, **figures | {"mae": 0.0, "max_err": 0})
    table = tables.metrics_table([one, other], LEVELS, T)
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
    table = tables.metrics_table(rows, LEVELS, T)
    assert [cells[table.heads.index("tensor")] for cells in table.rows] == names
    heat = tables.heat_table(findings_of(rows, [*LEVELS, "tensor"], Bar()), T)
    assert {cells[0] for cells in heat.rows} == {f"{name}, symmetric" for name in names}


def heat(rows, levels=(*LEVELS, "tensor"), bar=None):
    return tables.heat_table(findings_of(rows, levels, bar or Bar()), T).rows


def test_the_heat_of_a_width_is_its_sqnr():
    rows = [row(4, sqnr_db=-3.0), row(6, sqnr_db=29.9), row(8, sqnr_db=math.nextafter(60, 0))]
    (cells,) = heat([*rows, row(16, sqnr_db=None, max_err=0), row(2, tensor="w", sqnr_db=0)])[1:]
    assert cells[0] == "verb_probs, symmetric"
    assert cells[1:5] == ["8", "4", "4", "8"]
    assert cells[5:] == ["", "-3.0", "29.9", "60.0", "exact"]
    assert [cell.grade for cell in cells[6:]] == ["s0", "s5", "s11", "s11"]


def test_a_star_says_that_a_wider_one_misses():
    rows = [row(4), row(6, top_merged=1), row(8)]
    assert heat(rows)[0][1:5] == ["4*", "4*", "4", "4"]


def test_none_is_said_where_no_width_is_enough():
    assert heat([row(8, rel_err=0.5)])[0][1:5] == ["none", "8", "none", "8"]


MORE = {
    "mae": 0.1, "cos_sim": 0.9, "n_codes": 16, "scale": None, "zero_point": None,
    "n_elements": 600, "bits_above_bound": 1.2345, "clip_share": 0.25, "zero_share": 0.125,
    "round_share": 0.625,
}  # fmt: skip


def test_where_formats_were_tried_the_table_says_what_they_cost():
    levels = [*LEVELS, "block", "block_size"]
    plain = stored("symmetric", 8, 8.0533, 40.0, **MORE)
    other = stored("nf4", 4, 4.5, 20.0, block="group", block_size=64, **MORE)
    table = tables.metrics_table([plain, other], levels, T)
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
        zip(table.heads, tables.metrics_table([old, other], levels, T).rows[0], strict=True)
    )
    assert cells["bits_per_value"] == cells["clip_share"] == cells["block"] == "–"


def test_plain_integers_have_the_columns_that_they_always_had():
    rows = [stored("symmetric", n, n + 0.1, 6.0 * n, **MORE) for n in (4, 8)]
    assert tables.metrics_table(rows, LEVELS, T).heads == [*LEVELS, *tables.GLOSSARY]


def test_the_table_has_a_row_a_tensor():
    exact = [stored("log", 16, 16.1, None, tensor="exact", max_err=0), stored("nf4", 4, 4.5, 1.0)]
    rows = [*some(tensor="w"), *exact, *(each | {"tensor": "x"} for each in exact[1:] * 1)]
    found = storage_of(rows, [*FORMAT_LEVELS, "tensor"], SQNR)
    assert storage_table(found, T).rows == [
        ["verb_probs", "none of those tried", "–", "–"],
        ["x", "none of those tried", "–", "–"],
        ["exact", "log 16 bits", "16.1", "exact"],
        ["w", "sym 8 bits", "8.01", "34.00"],
    ]


def test_the_front_is_told_to_those_who_do_not_see_it():
    rows = [*some(), stored("log", 16, 16.1, None, max_err=0)]
    assert storage_trend(storage_of(rows, FORMAT_LEVELS, SQNR), T) == (
        "SQNR against bits per value; the front: sym 4 bits with 10.0 dB at 4.01 bits; nf4, group "
        "32 with 20.0 dB at 4.5 bits; sym 8 bits with 34.0 dB at 8.01 bits; sym 8 bits, group 32 "
        "with 44.0 dB at 9 bits."
    )


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


def test_one_criterion_has_one_column():
    table = tables.heat_table(findings_of([row(8), row(4, sqnr_db=9.0)], LEVELS, SQNR), T)
    assert table.heads == ["tensor, mode", "SQNR ≥ 30 dB", "4 bits", "8 bits"]
    assert table.rows == [["verb_probs, symmetric", "8", "9.0", "50.0"]]


def test_a_criterion_that_a_bar_does_not_have_is_a_dash():
    rows = [*judged([row(8, tensor="a")]), *judged([row(8, tensor="b")], SQNR)]
    found = Findings(rows, [*LEVELS, "tensor"], [], [], {}, {}, [], {})
    fewest = [cells[1:5] for cells in tables.heat_table(found, T).rows]
    assert fewest == [["8", "8", "8", "8"], ["8", "–", "–", "8"]]


def test_names_of_files_can_play_no_tricks():
    heads, rows, _ = side_by_side(files_of([stored_tensor("\x1b[2J", 1.0, file="m\n.gguf")]), T)
    assert all(cell.isprintable() for cell in [*heads, *rows[0]])


def test_of_one_file_those_come_first_that_lost_most():
    heads, rows, words = side_by_side(files_of(FILE_ROWS), T)
    assert heads[1:] == ["stored as", T("storage_bits"), T("storage_sqnr")]  # the page names it
    assert words == (1, 2)
    assert rows == [
        ["b", "Q4_K", "4.5", "12.25"],
        ["a", "Q4_K", "4.5", "20.50"],
        ["c", "Q6_K", "6.562", "31.00"],
        ["norm", "F32", "32", "exact"],
    ]


def test_of_two_files_those_come_first_that_differ_most():
    other = [
        stored_tensor("a", 21.0, "IQ4_XS", "other.gguf"),
        stored_tensor("b", 15.0, "IQ4_XS", "other.gguf"),
        stored_tensor("c", 11.0, "IQ4_XS", "other.gguf"),
        stored_tensor("mine", 10.0, "IQ4_XS", "other.gguf"),
    ]
    heads, rows, words = side_by_side(files_of([*FILE_ROWS, *other]), T)
    assert [each.partition(": ")[0] for each in heads[1:]] == ["m-Q4_K_M.gguf"] * 3 + [
        "other.gguf"
    ] * 3
    assert words == (1, 2, 5)
    assert [each[0] for each in rows] == ["c", "b", "a", "mine", "norm"]
    assert rows[0][1:] == ["Q6_K", "6.562", "31.00", "IQ4_XS", "4.5", "11.00"]
    assert rows[3][1:] == ["–", "–", "–", "IQ4_XS", "4.5", "10.00"]
    assert rows[4][4:] == ["–", "–", "–"]


def test_an_exact_tensor_differs_most_from_one_that_is_not():
    rows = [
        stored_tensor("a", 10.0),
        stored_tensor("b", None, max_err=0.0),
        stored_tensor("a", 60.0, file="o"),
    ]
    rows.append(stored_tensor("b", 60.0, file="o"))
    _, cells, _ = side_by_side(files_of(rows), T)
    assert [each[0] for each in cells] == ["b", "a"]


def test_the_error_of_the_output_stands_beside_where_it_is_known():
    rows = [
        stored_tensor("a", 20.0, out_sqnr_db=23.456),
        stored_tensor("b", 10.0, out_sqnr_db=None),
    ]
    rows.append(stored_tensor("c", 30.0, file="other.gguf"))
    heads, cells, _ = side_by_side(files_of(rows), T)
    assert [heads[4], heads[8]] == [
        f"m-Q4_K_M.gguf: {T('stored_out')}", f"other.gguf: {T('stored_out')}",
    ]  # fmt: skip
    assert [each[4] for each in cells] == ["–", "23.46", "–"]
    assert [len(each) for each in cells] == [9, 9, 9]
