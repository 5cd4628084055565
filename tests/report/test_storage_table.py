import pytest

from quantlab.report.bar import Bar
from quantlab.report.storage import tensor_formats
from quantlab.report.storage_table import storage_sentences, storage_table, storage_trend
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.test_storage import LEVELS, SQNR, some, stored

T = Texts("en")


def said(rows, levels=LEVELS, bar=SQNR):
    return list(storage_sentences(tensor_formats(rows, levels, bar), levels, T))


def test_a_tensor_s_cheapest_format_is_quoted_with_what_it_costs():
    rows = [stored("symmetric", 8, 8.0533, 20.0), stored("log", 10, 10.1067, 52.0)]
    assert said(rows) == [
        "verb_probs: cheapest format that meets the bar: log 10 bits (10.11 bits per value)"
    ]
    assert said(some(), bar=Bar(sqnr_db=60.0)) == [
        "verb_probs: none of the formats tried meets the bar"
    ]


def test_of_many_tensors_a_source_says_how_often_each_is_the_cheapest():
    levels = [*LEVELS, "tensor"]
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
    levels = [*LEVELS, "tensor"]
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
    found = tensor_formats(rows, [*LEVELS, "tensor"], SQNR)
    assert storage_table(found, T) == [
        ("verb_probs", "none of those tried", "–", "–"),
        ("x", "none of those tried", "–", "–"),
        ("exact", "log 16 bits", "16.1", "∞"),
        ("w", "sym 8 bits", "8.01", "34.00"),
    ]


def test_the_front_is_told_to_those_who_do_not_see_it():
    rows = [*some(), stored("log", 16, 16.1, None, max_err=0)]
    assert storage_trend(tensor_formats(rows, LEVELS, SQNR), T) == (
        "SQNR against bits per value; the front: sym 4 bits with 10.0 dB at 4.01 bits; nf4, group "
        "32 with 20.0 dB at 4.5 bits; sym 8 bits with 34.0 dB at 8.01 bits; sym 8 bits, group 32 "
        "with 44.0 dB at 9 bits."
    )


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_language_can_say_it(lang):
    for bar in (SQNR, Bar(sqnr_db=60.0)):
        found = tensor_formats(some(), LEVELS, bar)
        for levels in (LEVELS, [*LEVELS, "tensor"]):
            assert list(storage_sentences(found, levels, Texts(lang)))
