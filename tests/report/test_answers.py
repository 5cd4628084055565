import pytest

from quantlab.report.answers import (
    additivity_table,
    answer_sentences,
    answer_table,
    change_table,
    describe_front,
    kl_points,
    missed_answers_text,
    unjudged_criteria,
)
from quantlab.report.bar import Bar
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.samples import answer, first_change, outputs_of

T = Texts("en")
TWO = [answer("sym 8 bits", 8.0, 0.001, 0.99), answer("sym 4 bits", 4.0, 0.1, 0.9)]
VALUES = answer("sym 4 bits", 4.0, output="y", kind="values")


def test_the_fewest_bits_come_first_and_only_figures_that_exist():
    table = answer_table(outputs_of(TWO), T)
    assert table.heads == [
        "format", "bits per value", "KL, bits", "KL p99", "same first answer", "same k in order",
    ]  # fmt: skip
    assert table.rows == [
        ["sym 4 bits", "4", "0.1", "1", "90% (82.6–94.5%)", "25%"],
        ["sym 8 bits", "8", "0.001", "0.01", "99% (94.6–99.8%)", "25%"],
    ]


def test_outputs_of_values_have_sqnr_and_cosine():
    exact = VALUES | {"sqnr_db": None, "format": "log 16 bits", "bits_per_value": 16.0}
    table = answer_table(outputs_of([VALUES, exact]), T)
    assert table.heads == ["format", "bits per value", "SQNR, dB", "cosine"]
    assert table.rows == [
        ["sym 4 bits", "4", "30.00", "0.999000"],
        ["log 16 bits", "16", "exact", "0.999000"],
    ]
    table = answer_table(outputs_of([*TWO, VALUES]), T)
    assert table.heads[1] == "output"
    assert table.words == (1, 2)
    assert table.rows[2] == ["sym 4 bits", "y", "4", "–", "–", "–", "–", "30.00", "0.999000"]


def test_labels_add_the_accuracy():
    right = answer("sym 4 bits", 4.0, accuracy=0.5, accuracy_before=0.75)
    table = answer_table(outputs_of([right], accuracy_drop=0.25), T)
    assert dict(zip(table.heads, table.rows[0], strict=True))["accuracy"] == "75% → 50%"
    assert table.rows[0][-1].grade == "met"
    (sentence,) = answer_sentences(outputs_of([right]), T)
    assert sentence.endswith("KL 0.01 bits, accuracy 75% → 50%")


def test_the_bar_colours_what_it_judges():
    grades = [
        [getattr(cell, "grade", None) for cell in row]
        for row in answer_table(outputs_of(TWO, kl=0.01, top1_same=0.8), T).rows
    ]
    assert grades[0][2:5] == ["missed", None, "met"]
    assert grades[1][2:5] == ["met", None, "met"]
    assert answer_table(outputs_of([VALUES], kl=0.01), T).rows[0][2] == "30.00"


def test_without_a_bar_both_ends_are_quoted():
    assert answer_sentences(outputs_of(TWO), T) == [
        "probs, 100 answers, from the best format to the smallest: sym 8 bits (8 bits per value), "
        "which changes 1% of the first answers "
        "(95 %: 0.18% to 5.4%), KL 0.001 bits; sym 4 bits (4 bits per value), which changes 10% of "
        "the first answers (95 %: 5.5% to 17%), KL 0.1 bits"
    ]
    (sentence,) = answer_sentences(outputs_of([VALUES]), T)
    assert sentence == (
        "y, 100 answers: sym 4 bits (4 bits per value), with an SQNR of 30.00 dB and a cosine of "
        "0.999000"
    )


def test_the_bar_says_how_many_bits_keep_the_answers():
    three = [*TWO, answer("sym 6 bits", 6.0, 0.01, 0.98)]
    (sentence,) = answer_sentences(outputs_of(three, kl=0.01), T)
    assert "the fewest bits that meet the bar are those of sym 6 bits (6 bits per" in sentence
    (sentence,) = answer_sentences(outputs_of(three, kl=0.0001, top1_same=0.9), T)
    assert sentence == (
        "probs, 100 answers: no format tried meets the bar; in the nearest, sym 8 bits (8 bits per "
        "value), the KL of the answers is 0.001 bits (limit 0.0001 bits)"
    )


def test_each_criterion_that_is_missed_is_named_with_its_figure():
    row = answer("sym 4 bits", 4.0, 0.0101, 0.9, accuracy=0.5, accuracy_before=0.75)
    (choice,) = outputs_of([row], kl=0.0101 - 1e-9, top1_same=0.901, accuracy_drop=0.1)
    assert missed_answers_text(choice.best, T) == (
        "the KL of the answers is 0.0101 bits (limit 0.010099999 bits), 90% of the first answers "
        "stay the same (limit 90.1%), the accuracy falls by 25% (limit 10%)"
    )


def test_a_criterion_without_a_figure_judges_nothing_and_is_named():
    outputs = outputs_of([*TWO, VALUES], kl=0.01, accuracy_drop=0.1)
    bar = outputs[0].best.bar
    assert [choice.meets for choice in outputs] == [True, True]
    assert list(unjudged_criteria(outputs, [bar])) == ["accuracy_drop"]
    assert list(unjudged_criteria([], [bar])) == ["kl", "accuracy_drop"]
    assert list(unjudged_criteria(outputs, [Bar()])) == []


def test_the_surest_changes_of_each_format_are_listed():
    changes = [first_change(n, 0.9 - n / 10) for n in range(5)]
    rows = [answer("sym 4 bits", 4.0, changes=changes), answer("sym 8 bits", 8.0)]
    table = change_table(outputs_of(rows), T)
    assert table.heads == ["format", "input", "first answer", "its probability"]
    assert table.rows == [
        ["sym 4 bits", "0", "1 → 2", "0.90 → 0.50"],
        ["sym 4 bits", "1", "1 → 2", "0.80 → 0.50"],
        ["sym 4 bits", "2", "1 → 2", "0.70 → 0.50"],
    ]
    inside = answer("sym 4 bits", 4.0, changes=[first_change(3, row=7)], samples=10)
    table = change_table(outputs_of([inside, VALUES]), T)
    assert table.heads[1:4] == ["output", "input", "row"]
    assert table.rows == [["sym 4 bits", "probs", "3", "7", "1 → 2", "0.90 → 0.50"]]


def test_what_each_tensor_alone_loses_is_added_up_beside_the_whole():
    rows = [
        *(answer("nf4", 4.5, kl, tensor=name) for name, kl in (("a", 0.01), ("b", 0.03))),
        answer("nf4", 4.5, 0.05),
        answer("nf4", 4.5, 0.05, output="other"),
        answer("sym 4 bits", 4.0, 0.1, tensor="a"),
        answer("sym 4 bits", 4.0, 0.1001),
        answer("log 16 bits", 16.0, 0.0, tensor="a"),
        answer("log 16 bits", 16.0, 0.0),
        answer("plan.json", 5.0, 0.02, predicted_kl=0.01),
    ]
    table = additivity_table(outputs_of(rows), T)
    assert table.heads == ["format", "predicted, bits", "measured, bits", "ratio"]
    assert table.rows == [
        ["sym 4 bits, probs", "0.1", "0.1", "×1.00"],
        ["nf4, probs", "0.04", "0.05", "×1.25"],
        ["plan.json, probs", "0.01", "0.02", "×2.00"],
        ["log 16 bits, probs", "0", "0", "–"],
    ]
    assert [row[-1].grade for row in table.rows[:3]] == ["close", "off", "wrong"]
    assert additivity_table(outputs_of(TWO), T).rows == []


def test_a_format_that_loses_nothing_is_no_point():
    (output,) = outputs_of([*TWO, answer("nf4", 4.5, 0.2), answer("log 16 bits", 16.0, 0.0)])
    assert kl_points(output) == [
        (4.0, 0.1, "sym 4 bits"), (4.5, 0.2, "nf4"), (8.0, 0.001, "sym 8 bits"),
    ]  # fmt: skip
    assert describe_front(output, T) == (
        "KL of the answers of probs against bits per value; the front: sym 4 bits with 0.1 bits at "
        "4 bits per value; sym 8 bits with 0.001 bits at 8 bits per value."
    )


def test_a_remark_is_a_sentence():
    why = "the first answer is 3 for all inputs: more are needed"
    lines = answer_sentences(outputs_of([row | {"remark": why} for row in TWO]), T)
    assert lines[1:] == [f"probs: {why}"]


def test_what_else_was_swept_tells_outputs_apart():
    rows = [{"seed": n, "mode.block": n} | row for n in (1, 2) for row in TWO]
    outputs = outputs_of(rows)
    assert [choice.name for choice in outputs] == ["probs, seed=1", "probs, seed=2"]
    models = [row | {"dist": name} for name in ("a", "b") for row in TWO]
    assert [choice.name for choice in outputs_of(models)] == ["probs, dist=a", "probs, dist=b"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_language_has_the_words(lang):
    texts = Texts(lang)
    rows = [*TWO, VALUES, answer("nf4", 4.5, accuracy=0.5, accuracy_before=0.75)]
    for bar in ({}, {"kl": 0.05}, {"kl": 1e-9, "top1_same": 1.0, "accuracy_drop": 0.1}):
        outputs = outputs_of(rows, **bar)
        assert len(answer_table(outputs, texts).rows) == 4
        assert len(answer_sentences(outputs, texts)) == 2
