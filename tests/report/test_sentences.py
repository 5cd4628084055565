import re

import pytest

from quantlab.report.bar import Bar
from quantlab.report.sentences import (
    SENTENCE_TYPES,
    answers,
    bar_text,
    format_widths,
    rank_text,
    remark_sentences,
    sentences,
    storage_sentences,
    stored_sentences,
    unmeasured_text,
    vanished_sentences,
)
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.samples import (
    FILE_ROWS,
    FORMAT_LEVELS,
    SQNR,
    files_of,
    judged,
    row,
    some,
    storage_of,
    stored,
    stored_tensor,
    widths_of,
)

T = Texts("en")


def judge(*rows, levels=None, bar=None):
    return widths_of(rows, levels or LEVELS, bar)


LEVELS = ["dist", "mode", "n_bits"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row(4, rel_err=0.5), row(8)],
            "verb_probs, symmetric: 8 bits meet the bar, the fewest of the widths tried (4, 8); "
            "the top 10 keeps its order, the mean relative error is 0.1%, the SQNR is 50 dB",
        ),
        (
            [row(4), row(5, top_merged=1), row(6)],
            "verb_probs, symmetric: 4 bits meet the bar, the fewest of the widths tried (4 to 6); "
            "the top 10 keeps its order, the mean relative error is 0.1%, the SQNR is 50 dB; the "
            "wider 5 bits do not",
        ),
        (
            [row(8, sqnr_db=None, rel_err=None, max_err=0)],
            "verb_probs, symmetric: 8 bits meet the bar; the top 10 keeps its order, the mean "
            "relative error is undefined, the round trip is exact",
        ),
        (
            [row(8, top_merged=2, top_swapped=1, rel_err=0.341, sqnr_db=12.3, zeroed=0.25)],
            "verb_probs, symmetric: 8 bits do not meet the bar; the top 10 loses its order (1 "
            "swapped, 2 merged, the same set), the mean relative error is 34.1% (limit 1%), the "
            "SQNR is 12.3 dB (limit 30 dB), 25% of the non-zero values become 0",
        ),
        (
            [row(4, rel_err=2.0), row(8, top_worst=0.9)],
            "verb_probs, symmetric: none of the widths tried (4, 8 bits) meets the bar; at 8 bits, "
            "the top 10 loses its order (90–100% kept; its last place is tied)",
        ),
        (
            [row(8, top_swapped=3, top_worst=0.8, top_best=0.8)],
            "verb_probs, symmetric: 8 bits do not meet the bar; the top 10 loses its order (3 "
            "swapped, 80% kept)",
        ),
        (
            [row(8, top_worst=0.8, top_best=0.9)],
            "verb_probs, symmetric: 8 bits do not meet the bar; the top 10 loses its order (80–90% "
            "kept; its last place is tied)",
        ),
    ],
)
def test_the_sentence_says_how_many_bits_and_why(rows, said):
    assert list(sentences(judge(*rows), LEVELS, T)) == [said]


def test_of_many_tensors_a_run_says_how_many_meet_the_bar():
    levels = [*LEVELS, "tensor"]
    rows = [row(n, tensor=name) for n in (4, 8) for name in ("a", "b")]
    rows += [row(n, tensor="w", sqnr_db=5.0 * n, top_merged=1, zeroed=0.5) for n in (4, 8)]
    (said,) = sentences(judge(*rows, levels=levels), levels, T)
    assert said == (
        "verb_probs, symmetric: 2 of 3 tensors meet the bar within 8 bits (top k in order: 2, "
        "rel_err ≤ 1%: 3, SQNR ≥ 30 dB: 3); the one that needs most bits is w: at 8 bits, the top "
        "10 loses its order (1 merged, the same set), 50% of the non-zero values become 0"
    )


def test_the_lab_s_question_is_answered_at_eight_bits_alone():
    assert not list(answers(judge(row(4), row(16)), T))
    assert not list(answers(judge(row(8, dist="hidden")), T))
    (no,) = answers(judge(row(8, rel_err=0.3), row(8, mode="asymmetric", rel_err=0.2)), T)
    assert no[0] == "Can INT8 alone be trusted for verb-form prediction?"
    assert no[1] == (
        "No. verb_probs, symmetric: the mean relative error is 30% (limit 1%); verb_probs, "
        "asymmetric: the mean relative error is 20% (limit 1%)."
    )
    (yes,) = answers(judge(row(8, rel_err=0.3), row(8, mode="asymmetric")), T)
    assert yes[1].startswith("Yes. verb_probs, asymmetric: the top 10 keeps its order, ")


def test_the_lab_s_question_is_about_plain_integers():
    levels = [*LEVELS, "block"]
    remedies = [row(8, mode="log", block="tensor"), row(8, mode="fp8_e4m3", block="tensor")]
    remedies.append(row(8, block="group"))
    assert not list(answers(judge(*remedies, levels=levels), T))
    (no,) = answers(judge(*remedies, row(8, block="tensor", rel_err=0.3), levels=levels), T)
    assert no[1] == "No. verb_probs, symmetric: the mean relative error is 30% (limit 1%)."


def test_the_answer_is_yes_only_where_a_mode_meets_the_bar_under_every_seed():
    levels = [*LEVELS, "seed"]
    rows = [row(8, seed=seed, rel_err=0.3 if seed > 3 else 0.001) for seed in range(10)]
    (no,) = answers(judge(*rows, levels=levels), T)
    assert no[1].startswith("No. verb_probs, symmetric, seed=")
    assert no[1].count("(limit 1%)") == 4
    assert no[1].endswith("; and 2 more.")
    always = [row(8, mode="asymmetric", seed=seed) for seed in range(10)]
    (yes,) = answers(judge(*rows, *always, levels=levels), T)
    assert yes[1].startswith("Yes. verb_probs, asymmetric, seed=")
    assert "symmetric, seed=4:" not in yes[1].replace("asymmetric", "")


def test_runs_that_differ_in_the_middle_of_a_long_name_are_not_mixed():
    levels = [*LEVELS, "tensor", "dist.path"]
    rows = [
        row(8, tensor=tensor, rel_err=0.5 if number == 2 else 0.001)
        | {"dist.path": f"/models/llama-7b-step-{number}000/checkpoint-final/weights.npz"}
        for number in (1, 2)
        for tensor in ("a", "b")
    ]
    messages = list(sentences(judge(*rows, levels=levels), levels, T))
    assert [re.search(r"step-(\d).* (\d) of 2 tensors", each).groups() for each in messages] == [
        ("2", "0"),
        ("1", "2"),
    ]


@pytest.mark.parametrize(
    ("rel_err", "asked", "said"),
    [
        (0.34069, 0.3405, "34.07% (limit 34.05%)"),
        (0.0700001, 0.07, "7.00001% (limit 7%)"),
        (0.5, 0.01, "50% (limit 1%)"),
    ],
)
def test_a_figure_that_misses_looks_as_if_it_does(rel_err, asked, said):
    bar = Bar(rel_err=asked, sqnr_db=29.5)
    (messages,) = sentences(judge(row(8, rel_err=rel_err, sqnr_db=29.49999), bar=bar), LEVELS, T)
    assert f"the mean relative error is {said}, the SQNR is 29.49999 dB (limit 29.5 dB)" in messages


def test_what_is_kept_is_an_interval():
    half = row(8, top_worst=0.5, top_best=0.9, top_merged=2)
    assert rank_text(half, T) == "2 merged, 50–90% kept"


def test_what_has_no_verdict_is_named():
    assert unmeasured_text([], T) == ""
    assert unmeasured_text(["a", "b\n"], T) == "No verdict for a, b\\n: not measured"
    assert (
        unmeasured_text(list("abcdef"), T) == "No verdict for a, b, c, d, and 2 more: not measured"
    )


LEVELS = ["dist", "mode", "n_bits"]


def test_widths_in_a_row_are_given_by_their_ends():
    messages = [format_widths(each, T) for each in ([8], [4, 5], [4, 8, 16], [2, 3, 4], [2, 4, 6])]
    assert messages == ["8", "4, 5", "4, 8, 16", "2 to 4", "2, 4, 6"]


def test_several_bars_are_named_with_whose_they_are():
    rows = [*judged(some(dist="a")), *judged(some(dist="b"), SQNR)]
    assert bar_text(rows, T) == (
        "The bar of a: top k in order; rel_err ≤ 1%; SQNR ≥ 30 dB.\nThe bar of b: SQNR ≥ 30 dB."
    )
    rows = [*judged(some()[:1]), *judged(some()[1:2], SQNR)]
    assert bar_text(rows, T).splitlines()[1] == (
        "The bar of verb_probs in sym 8 bits: SQNR ≥ 30 dB."
    )


def test_a_single_criterion_is_not_counted_apart():
    levels = [*LEVELS, "tensor"]
    (text,) = sentences(judge(row(8, tensor="a"), levels=levels, bar=SQNR), levels, T)
    assert text == (
        "verb_probs, symmetric: 1 of 1 tensors meet the bar within 8 bits; the one that needs most "
        "bits is a: at 8 bits, the SQNR is 50 dB"
    )


def cheapest_of(rows, levels=FORMAT_LEVELS, bar=SQNR):
    return list(storage_sentences(storage_of(rows, levels, bar), levels, T))


def test_a_tensor_s_cheapest_format_is_quoted_with_what_it_costs():
    rows = [stored("symmetric", 8, 8.0533, 20.0), stored("log", 10, 10.1067, 52.0)]
    assert cheapest_of(rows) == [
        "verb_probs: cheapest format that meets the bar: log 10 bits (10.11 bits per value)"
    ]
    assert cheapest_of(some(), bar=Bar(sqnr_db=60.0)) == [
        "verb_probs: none of the formats tried meets the bar"
    ]


def test_of_many_tensors_a_source_says_how_often_each_is_the_cheapest():
    levels = [*FORMAT_LEVELS, "tensor"]
    rows = [each for name in "abc" for each in some(dist="file/npz", tensor=name)]
    rows += [each | {"sqnr_db": 31.0} for each in some(dist="file/npz", tensor="d")]
    rows += [each | {"sqnr_db": 1.0} for each in some(dist="file/npz", tensor="e")]
    assert cheapest_of(rows, levels) == [
        "file/npz: 4 of 5 tensors have a format that meets the bar; the cheapest is sym 8 bits for "
        "3; sym 4 bits for 1"
    ]
    none = [each | {"sqnr_db": 1.0} for each in rows]
    assert cheapest_of(none, levels) == [
        "file/npz: none of the 5 tensors has a format that meets the bar"
    ]


def test_formats_that_few_tensors_need_are_counted_together():
    levels = [*FORMAT_LEVELS, "tensor"]
    rows = [
        stored(mode, n, float(n), 40.0 if n == chosen else 1.0, tensor=str(chosen))
        for chosen in range(2, 10)
        for n, mode in ((chosen, "symmetric"), (11, "nf4"))
    ]
    (sentence,) = cheapest_of(rows, levels)
    assert sentence.endswith("sym 6 bits for 1; others for 3")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_language_can_name_the_cheapest(lang):
    for bar in (SQNR, Bar(sqnr_db=60.0)):
        found = storage_of(some(), FORMAT_LEVELS, bar)
        for levels in (FORMAT_LEVELS, [*FORMAT_LEVELS, "tensor"]):
            assert list(storage_sentences(found, levels, Texts(lang)))


def of_files(rows):
    return list(stored_sentences(files_of(rows), T))


def test_a_sentence_says_what_a_file_costs_and_what_it_lost():
    assert of_files(FILE_ROWS) == [
        "m-Q4_K_M.gguf: 2 of 4 tensors compared meet the bar; 5.259 bits per value, 1.98 kB in all "
        "(Q4_K: 2, Q6_K: 1, F32: 1); the median SQNR of those that lost anything is 20.50 dB, the "
        "worst is b (Q4_K): 12.25 dB"
    ]


def test_a_file_that_loses_nothing_says_so():
    exact = [stored_tensor(name, None, "F16", max_err=0.0) for name in "ab"]
    (sentence,) = of_files(exact)
    assert sentence.startswith("m-Q4_K_M.gguf: 2 of 2 tensors compared meet the bar; ")
    assert sentence.endswith(
        "the median SQNR of those that lost anything is exact, the worst is a (F16): exact"
    )


def test_of_many_types_the_most_frequent_are_named():
    rows = [
        stored_tensor(f"t{n}.{m}", 9.0, f"Q{n}")
        for n in range(1, SENTENCE_TYPES + 3)
        for m in range(n)
    ]
    (sentence,) = of_files(rows)
    assert "(Q8: 8, Q7: 7, Q6: 6, Q5: 5, Q4: 4, Q3: 3, others: 3)" in sentence
    assert "Q2" not in sentence


def test_each_file_and_each_original_has_a_sentence():
    rows = [
        *FILE_ROWS,
        stored_tensor("a", 9.0, file="m-Q2_K.gguf"),
        stored_tensor("a", 8.0, dist="file/npy"),
    ]
    found = files_of(rows)
    assert [(each.name, len(each.rows)) for each in found] == [
        ("m-Q4_K_M.gguf, dist=file/gguf", 4), ("m-Q2_K.gguf, dist=file/gguf", 1),
        ("m-Q4_K_M.gguf, dist=file/npy", 1),
    ]  # fmt: skip
    assert len(of_files(rows)) == 3


def test_a_remark_is_made_once_of_all_its_tensors():
    wrong, other = "read v2 it fits the original far better", "read transposed it fits"
    rows = [
        stored_tensor("a", 1.0, remark=wrong), stored_tensor("b", 2.0, remark=wrong),
        stored_tensor("c", 3.0),
        stored_tensor("d", 4.0, remark=other), stored_tensor("e", 5.0, remark=wrong),
    ]  # fmt: skip
    expected = [
        f"m-Q4_K_M.gguf: a and 2 more tensors: {wrong}",
        f"m-Q4_K_M.gguf: d: {other}",
    ]
    assert list(remark_sentences(files_of(rows), T)) == expected
    assert of_files(rows)[1:] == expected
    assert list(remark_sentences(files_of(rows[:2]), T)) == [
        f"m-Q4_K_M.gguf: a and one more tensor: {wrong}"
    ]


@pytest.mark.parametrize("language", ["en", "es"])
def test_every_sentence_of_a_file_is_in_every_language(language):
    found = files_of([*FILE_ROWS, stored_tensor("x", 1.0, remark="wrong")])
    sentences = list(stored_sentences(found, Texts(language)))
    assert len(sentences) == 2
    assert "{" not in "".join(sentences)


def test_names_can_play_no_tricks():
    sentences = of_files([stored_tensor("\x1b[2J", 1.0, file="m\n.gguf", remark="wrong")])
    assert len(sentences) == 2
    assert all(each.isprintable() for each in sentences)


def test_a_tensor_that_meets_the_bar_though_most_of_it_became_0_is_named():
    rows = some(zeroed=0.996, tensor="w") + some(zeroed=0.5, tensor="v")
    said = list(vanished_sentences(judged(rows, SQNR), T))
    assert said[0] == (
        "sym 8 bits: w meets the bar, but 99.6% of its non-zero values become 0: its SQNR is that "
        "of its largest values"
    )
    assert len(said) == 3  # the others miss the bar
    both = list(vanished_sentences(judged(rows[:2] + some(zeroed=1.0, tensor="u")[:2], SQNR), T))
    assert both == [
        "sym 8 bits: 2 tensors meet the bar, but up to 100% of their non-zero values become 0, and "
        "their SQNR is that of their largest values: w, u"
    ]
