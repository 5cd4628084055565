import pytest

from quantlab.report.bar import Bar
from quantlab.report.diff_summary import LONGEST, diff_summary
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.test_diff import compare, widths
from tests.report.test_storage import SQNR, stored

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
    assert "48.00 → ∞" in said(widths(8), exact)
    assert "exact" not in said(widths(8), lost)


def test_a_terminal_is_given_no_more_rows_than_it_bears():
    text = said(many(LONGEST + 2), many(LONGEST + 2, less=1.0))
    assert text.count("→") == LONGEST
    assert "... and 2 more" in text
    cheapest = [
        [row for n in range(LONGEST + 1) for row in widths(5, 8, tensor=f"t{n}", less=less)]
        for less in (0.0, 5.0)
    ]
    lines = said(*cheapest, tolerance=9.0).splitlines()
    assert sum("the cheapest format that meets the bar was" in line for line in lines) == LONGEST
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
    text = said(many(LONGEST + 1), many(LONGEST + 1, less=1.0), t=t)
    assert "{" not in text
