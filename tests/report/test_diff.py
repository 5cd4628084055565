import math

import pytest
from hypothesis import given

from quantlab.report.bar import Bar
from quantlab.report.diff import diff, diff_summary, require_tolerance
from quantlab.report.tables import MAX_ROWS
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.samples import FORMAT_LEVELS as LEVELS
from tests.report.samples import ROWS, SQNR, answer, judged, stored, sweep

REL_ERR = Bar(top_order=None, sqnr_db=None)
ORDER = Bar(sqnr_db=None, rel_err=None)


def widths(*n_bits, less=0.0, **change):
    """Rows of symmetric formats by 6 dB a bit."""
    return [stored("symmetric", n, float(n), 6.0 * n - less, **change) for n in n_bits]


def compare(before, after, bar=SQNR, levels=LEVELS, **change):
    then = sweep(judged(before, bar), levels, directory="then")
    return diff(then, sweep(judged(after, bar), levels, **change))


def worse_by(before, after, bar):
    """How much worse one row is than another by the one criterion of a bar."""
    (one,) = compare([before], [after], bar).changes
    return one.worse_by


@given(ROWS, ROWS)
def test_sides_swapped_give_opposite_signs(before, after):
    bar = Bar()
    try:
        there = compare(before, after, bar)
    except ValueError:
        with pytest.raises(ValueError, match=r"have no (format|tensor) in common"):
            compare(after, before, bar)
        return
    back = compare(after, before, bar)
    signs = {(each.name, each.formats): each.worse_by for each in there.changes}
    assert len(signs) == len(there.changes) == len(back.changes)
    for each in back.changes:
        opposite = signs[each.name, each.formats[::-1]]
        assert {key: -by for key, by in each.worse_by.items()} == opposite
    assert there.only == back.only[::-1]
    assert there.cheapest == {name: pair[::-1] for name, pair in back.cheapest.items()}


@given(ROWS)
def test_a_sweep_is_as_good_as_itself(rows):
    found = compare(rows, rows, Bar())
    assert len(found.changes) == len(rows)
    assert all(set(each.worse_by.values()) == {0.0} for each in found.changes)
    assert not found.is_worse(0.0)
    assert (found.cheapest, found.only, found.missing) == ({}, (0, 0), [])


@pytest.mark.parametrize(
    ("bar", "before", "after", "by"),
    [
        (SQNR, {"sqnr_db": 30.0}, {"sqnr_db": 29.5}, 0.5),
        (SQNR, {"sqnr_db": None, "max_err": 0.0}, {"sqnr_db": 99.0}, math.inf),
        (SQNR, {"sqnr_db": 9.0}, {"sqnr_db": None, "max_err": 0.1}, math.inf),
        (SQNR, {"sqnr_db": None, "max_err": 0.1}, {"sqnr_db": None, "max_err": 0.2}, 0.0),
        (REL_ERR, {"rel_err": 0.01}, {"rel_err": 0.1}, 20.0),
        (REL_ERR, {"rel_err": 0.0}, {"rel_err": 1e-9}, math.inf),
        (REL_ERR, {"rel_err": 0.1}, {"rel_err": None, "max_err": 0.1}, math.inf),
        (REL_ERR, {"rel_err": None, "max_err": 0.0}, {"rel_err": 0.0}, 0.0),
        (ORDER, {"top_order_kept": True}, {"top_order_kept": False}, math.inf),
        (ORDER, {"top_order_kept": False}, {"top_order_kept": False}, 0.0),
    ],
)
def test_each_figure_has_its_loss_in_db(bar, before, after, by):
    (base,) = widths(8)
    (key,) = bar.criteria
    assert worse_by(base | before, base | after, bar) == {key: pytest.approx(by)}
    assert worse_by(base | after, base | before, bar) == {key: pytest.approx(-by)}


def test_only_what_goes_beyond_the_tolerance_counts():
    (one,) = compare(widths(8), widths(8, less=0.5)).changes
    assert one.is_worse(0.4)
    assert not one.is_worse(0.5)
    assert not one.is_better(0.0)
    (one,) = compare(widths(8), widths(8, less=-0.5)).changes
    assert one.is_better(0.4)
    assert not one.is_better(0.5)
    assert not one.is_worse(0.0)


def test_what_is_worse_by_one_figure_is_not_better_by_another():
    (one,) = compare(widths(8), widths(8, less=-9.0, rel_err=0.5), Bar()).changes
    assert one.is_worse(0.1)
    assert not one.is_better(0.1)


def test_those_that_became_worse_stand_first():
    names = {"a": 1.0, "b": 5.0, "c": -2.0}
    before = [row for name in names for row in widths(8, tensor=name)]
    after = [row for name, less in names.items() for row in widths(8, less=less, tensor=name)]
    assert [each.name for each in compare(before, after).changes] == ["b", "a", "c"]


def test_one_format_is_compared_with_another_where_there_is_no_choice():
    (one,) = compare(widths(8), widths(6)).changes
    assert one.formats == ("sym 8 bits", "sym 6 bits")
    assert one.greatest == pytest.approx(12)
    file = {"mode": "file/gguf", "n_bits": None, "stored_dtype": "Q4_0"}
    (one,) = compare(widths(8), [widths(4)[0] | file | {"stored_file": "q4.gguf"}]).changes
    assert one.formats == ("sym 8 bits", "Q4_0")


def test_of_many_formats_those_in_common_are_compared_and_the_rest_counted():
    found = compare(widths(2, 4, 8), widths(4, 6, 8, 9))
    assert sorted(each.formats[0] for each in found.changes) == ["sym 4 bits", "sym 8 bits"]
    assert found.only == (1, 2)


def test_a_cheapest_format_that_changed_is_named_where_there_is_a_choice():
    found = compare(widths(4, 5, 8), widths(4, 5, 8, less=6.0))
    assert found.cheapest == {"verb_probs": ("sym 5 bits", "sym 8 bits")}
    assert compare(widths(4, 5), widths(4, 5, less=6.0)).cheapest == {
        "verb_probs": ("sym 5 bits", None)
    }
    assert compare(widths(8), widths(8, less=40.0)).cheapest == {}


def test_what_the_second_sweep_has_not_is_missing_and_fails():
    before = [row for name in "ab" for row in widths(8, tensor=name)]
    found = compare(before, before[:1])
    assert (found.missing, found.only) == (["b"], (1, 0))
    assert found.is_worse(99.0)
    assert not compare(before[:1], before).is_worse(99.0)
    assert compare(before, before, failures={"run": "no"}).is_worse(99.0)


def test_tensors_are_told_apart_by_source_where_there_are_two():
    rows = [row for dist in "xy" for row in widths(8, dist=dist, tensor="w")]
    assert [each.name for each in compare(rows, rows).changes] == ["x, w", "y, w"]
    seeds = [each | {"seed": n} for n in (1, 2) for each in widths(8)]
    found = compare(seeds, seeds, levels=[*LEVELS, "seed"])
    assert [each.name for each in found.changes] == ["verb_probs, seed=1", "verb_probs, seed=2"]


def test_sweeps_of_other_values_are_refused():
    one, other = sweep(widths(8), directory="one"), sweep(widths(8), sha256="1" * 64)
    with pytest.raises(ValueError, match="'verb_probs' has other values in sweep than in one: a d"):
        diff(one, other)


@pytest.mark.parametrize("change", [{"name": "other"}, {"sha256": None}])
def test_sweeps_without_a_tensor_in_common_are_refused(change):
    one, other = sweep(widths(8)), sweep(widths(8), directory="other", **change)
    with pytest.raises(ValueError, match="sweep and other have no tensor in common: a diff is of"):
        diff(one, other)


def test_sweeps_without_a_format_in_common_are_refused():
    with pytest.raises(ValueError, match="then and sweep have no format in common, and more than"):
        compare(widths(4, 5), widths(6, 8))


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_a_tolerance_is_a_number_from_0_up(tolerance):
    assert require_tolerance(0.0) == 0.0
    with pytest.raises(ValueError, match="--tolerance takes a number of dB from 0 up, got"):
        require_tolerance(tolerance)


def test_a_diff_of_many_rows_is_quick():
    rows = [row for n in range(1000) for row in widths(2, 4, 6, 8, tensor=f"{n}")]
    assert len(compare(rows, rows).changes) == 4000


def test_a_second_source_in_one_sweep_hides_no_tensor_of_the_first():
    one = widths(8, dist="x", tensor="w")
    found = compare(one, [*one, *widths(8, dist="y", tensor="v")])
    assert [each.greatest for each in found.changes] == [0.0]


def test_settings_with_equal_values_do_not_hide_each_other():
    levels = [*LEVELS, "seed", "k", "eps"]
    rows = [
        each | {"seed": 1, "k": k, "eps": eps}
        for k, eps in ((1, 2), (2, 1), (2, 2))
        for each in widths(8)
    ]
    assert len(compare(rows, rows, levels=levels).changes) == 3


T = Texts("en")


def said(before, after, bar=SQNR, tolerance=0.1, t=T, **change):
    return diff_summary(compare(before, after, bar, **change), tolerance, t)


def many(n, **change):
    return [row for k in range(n) for row in widths(8, tensor=f"t{k}", **change)]


def test_without_a_change_there_is_only_the_count():
    expected = "diff: 0 of 1 compared became worse by more than 0.1 dB, 0 better"
    assert said(widths(8), widths(8, less=0.09)) == expected


def test_a_change_is_a_row_with_both_figures():
    text = said(widths(8), widths(8, less=2.0))
    assert "48.00 → 46.00" in text
    assert text.endswith("diff: 1 of 1 compared became worse by more than 0.1 dB, 0 better")
    text = said(widths(8), widths(6))
    assert "sym 8 bits → sym 6 bits" in text


def test_a_figure_that_stayed_stands_once():
    (line,) = [
        line
        for line in said(widths(8), widths(8, less=2.0), Bar()).splitlines()
        if line.startswith("verb_probs")
    ]
    assert line.split("  ")[0] == "verb_probs sym 8 bits in order"
    assert line.count("0.1%") == 1


def test_worse_tensors_stand_before_better_ones():
    before, after = many(3), many(3)
    for row, less in zip(after, (-1.0, 5.0, -3.0), strict=True):
        row["sqnr_db"] -= less
    lines = said(before, after).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["t1", "t2", "t0"]
    assert lines[-1] == "diff: 1 of 3 compared became worse by more than 0.1 dB, 2 better"


def test_an_exact_round_trip_is_called_so_and_a_total_loss_is_not():
    exact = [stored("symmetric", 8, 8.0, None, max_err=0.0)]
    lost = [stored("symmetric", 8, 8.0, None, max_err=0.1)]
    assert "48.00 → exact" in said(widths(8), exact)
    assert "exact" not in said(widths(8), lost)


def test_a_terminal_is_given_no_more_rows_than_it_bears():
    text = said(many(MAX_ROWS + 2), many(MAX_ROWS + 2, less=1.0))
    assert text.count("→") == MAX_ROWS
    assert "... and 2 more" in text
    cheapest = [
        [row for n in range(MAX_ROWS + 1) for row in widths(5, 8, tensor=f"t{n}", less=less)]
        for less in (0.0, 5.0)
    ]
    lines = said(*cheapest, tolerance=9.0).splitlines()
    assert sum("the cheapest format that meets the bar was" in line for line in lines) == MAX_ROWS
    assert "... and one more" in lines


def test_what_is_not_compared_is_said():
    text = said(widths(2, 4), widths(4, 6, 8))
    assert "not compared: 1 rows of the first sweep and 2 of the second" in text
    assert "not compared: 0 rows of the first sweep and 1" in said(widths(4), widths(4, 6))
    assert "not compared" not in said(widths(4), widths(4))
    text = said(widths(4, 5), widths(4, 5, less=6.0))
    assert "the cheapest format that meets the bar was sym 5 bits and is none" in text


def test_what_is_gone_is_named():
    text = said(many(9), many(2), failures={"one": "no disk", "two": "no disk"})
    assert "one and one more run failed: no disk" in text
    (line,) = [line for line in text.splitlines() if "t2, t3, t4, t5, t6" in line]
    assert "2 more" in line
    assert "t7" not in line


def test_a_name_plays_no_tricks_on_a_terminal():
    evil = "w\x1b[31m\n"
    text = said(widths(5, 8, tensor=evil), widths(5, 8, tensor=evil, less=9.0))
    assert "\x1b" not in text
    assert r"w\x1b[31m\n" in text


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_has_the_words(lang):
    t = Texts(lang)
    before = [*many(1), *widths(2, 5, 8, top_merged=1, tensor="a")]
    text = said(before, widths(5, 8, 9, less=6.0, tensor="a"), Bar(), t=t, failures={"a": "no"})
    assert "{" not in text
    text = said(many(MAX_ROWS + 1), many(MAX_ROWS + 1, less=1.0), t=t)
    assert "{" not in text


def test_one_format_with_another_setting_is_another_format():
    before, after = (
        stored("symmetric", 8, 8.0, 40.0, range="percentile", settings={"range.p": p})
        for p in (99, 60)
    )
    (change,) = compare([before], [after]).changes
    assert change.formats == (
        "sym 8 bits, percentile, range.p=99", "sym 8 bits, percentile, range.p=60",
    )  # fmt: skip
    with pytest.raises(ValueError, match="have no format in common"):
        compare([before, *widths(4)], [after, *widths(6)])


def compare_answers(before, after, **limits):
    bar = Bar(top_order=None, rel_err=None, **limits)
    rows = judged(widths(4), bar)
    return diff(sweep(rows), sweep(rows), judged(before, bar), judged(after, bar))


def test_answers_are_compared_by_what_the_bar_asks_of_them():
    before = [answer("sym 4 bits", 4.0, 0.01, 0.99), answer("sym 8 bits", 8.0, 0.001, 1.0)]
    after = [answer("sym 4 bits", 4.0, 0.1, 0.98), answer("sym 8 bits", 8.0, 0.001, 1.0)]
    assert len(compare_answers(before, after).changes) == 1
    result = compare_answers(before, after, kl=0.05, top1_same=0.9)
    worst = result.changes[0]
    assert (worst.name, worst.formats[0]) == ("probs", "sym 4 bits")
    assert worst.worse_by == {"kl": pytest.approx(10), "top1_same": pytest.approx(3.0103)}
    assert [set(change.worse_by.values()) for change in result.changes[1:]] == [{0.0}, {0.0}]
    assert result.is_worse(0.1)
    lines = diff_summary(result, 0.1, Texts("en")).splitlines()
    assert lines[0].split() == ["tensor", "format", "kl", "top1_same"]
    assert lines[1].split("  ")[0] == "probs"
    assert "0.01 → 0.1" in lines[1]
    assert "99% → 98%" in lines[1]
    assert lines[-1] == "diff: 1 of 3 compared became worse by more than 0.1 dB, 0 better"
    back = compare_answers(after, before, kl=0.05, top1_same=0.9)
    assert back.changes[-1].worse_by["kl"] == pytest.approx(-10)
    assert not back.is_worse(0.1)


def test_an_accuracy_that_falls_further_is_worse():
    before, after = (
        [answer("sym 4 bits", 4.0, accuracy=now, accuracy_before=0.9)] for now in (0.9, 0.8)
    )
    assert compare_answers(before, after, accuracy_drop=0.5).is_worse(0.1)
    assert not compare_answers(after, before, accuracy_drop=0.5).is_worse(0.1)
    assert not compare_answers(before, before, accuracy_drop=0.5).is_worse(0.0)


@pytest.mark.parametrize(
    "after", [[], [answer("nf4", 4.5)], [answer("sym 4 bits", 4, kind="values")]]
)
def test_a_bar_of_answers_without_answers_to_compare_is_named(after):
    before = [answer("sym 4 bits", 4.0)]
    with pytest.raises(
        ValueError, match=r"report\.bar\.kl compares the answers .* report\.bar\.kl=nu"
    ):
        compare_answers(before, after, kl=0.1)
