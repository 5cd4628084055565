import json

import pandas as pd
import pytest

from quantlab.report.bar import Bar
from quantlab.report.choices import find_choices
from quantlab.report.texts import LANGUAGES, Texts
from quantlab.report.verdict import NAME, TYPES, Check, read_verdict, verdict, verdict_json
from tests.report.samples import (
    FORMAT_LEVELS,
    GROUP,
    LEVELS,
    SQNR,
    answer,
    choices_of,
    judged,
    outputs_of,
    row,
    some,
    stored,
)


def test_the_file_says_all_of_it():
    rows = [*some(tensor="a"), stored("nf4", 4, 4.5, 20.0, tensor="b", **GROUP)]
    content = json.loads(verdict_json(Check(choices_of(rows), [SQNR], {})))
    assert content["bar"] == {"top_order": None, "rel_err": None, "sqnr_db": 30.0}
    assert (content["meets"], content["failures"]) == (False, {})
    assert content["tensors"] == [
        {
            "dist": "verb_probs", "tensor": "a", "meets": True, "missed": [],
            "format": "sym 8 bits", "mode": "symmetric", "n_bits": 8, "bits_per_value": 8.01,
            "sqnr_db": 34.0, "rel_err": 0.001,
        },
        {
            "dist": "verb_probs", "tensor": "b", "meets": False, "missed": ["sqnr_db"],
            "format": "nf4, group 32", "mode": "nf4", "n_bits": 4, "bits_per_value": 4.5,
            "sqnr_db": 20.0, "rel_err": 0.001,
        },
    ]  # fmt: skip


def test_a_run_that_failed_fails_the_whole():
    good = choices_of([row(8)], LEVELS)
    assert json.loads(verdict_json(Check(good, [SQNR], {})))["meets"] is True
    assert json.loads(verdict_json(Check(good, [SQNR], {"run": "no"})))["meets"] is False


def test_the_answers_of_a_model_have_a_verdict_of_their_own():
    rows = [answer("sym 8 bits", 8.0, 0.001), answer("sym 4 bits", 4.0, 0.1, 0.5)]
    good = choices_of([row(8)], LEVELS)
    content = json.loads(verdict_json(Check(good, [SQNR], {}, outputs=outputs_of(rows, kl=0.01))))
    assert content["meets"] is True
    assert content["answers"] == [
        {
            "dist": "file/onnx", "output": "probs", "meets": True, "missed": [],
            "format": "sym 8 bits", "bits_per_value": 8.0, "kl": 0.001, "top1_same": 0.99,
            "accuracy": None, "accuracy_before": None, "sqnr_db": 30.0, "cos_sim": 0.999,
        },
    ]  # fmt: skip
    outputs = outputs_of(rows, kl=0.0001, top1_same=0.999)
    content = json.loads(verdict_json(Check(good, [SQNR], {}, outputs=outputs)))
    assert content["meets"] is False
    assert content["answers"][0]["missed"] == ["kl", "top1_same"]
    asking = Bar(sqnr_db=30.0, kl=0.01)
    assert json.loads(verdict_json(Check(good, [asking], {})))["meets"] is False


def test_30_and_30_0_are_one_bar():
    assert verdict_json(Check([], [Bar(sqnr_db=30)], {})) == verdict_json(
        Check([], [Bar(sqnr_db=30.0)], {})
    )


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"meets": 1, "tensors": []}', '{"meets": true, "tensors": {}}'],
)
def test_what_is_no_verdict_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=r"verdict\.json does not exist: quantlab aggregate "):
        read_verdict(tmp_path)
    with pytest.raises(ValueError, match=r"none does not exist: give the directory of a sweep$"):
        read_verdict(tmp_path / "none")
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ValueError, match=r"verdict\.json is no verdict: quantlab aggregate .* aga"):
        read_verdict(tmp_path)


def test_where_runs_have_several_bars_each_tensor_has_its_own():
    fifty = Bar(sqnr_db=50.0)
    rows = [*judged(some(tensor="a"), SQNR), *judged(some(tensor="b"), fifty)]
    content = json.loads(verdict_json(Check(find_choices(rows, FORMAT_LEVELS), [SQNR, fifty], {})))
    assert content["bar"] is None
    assert [tensor["bar"]["sqnr_db"] for tensor in content["tensors"]] == [30.0, 50.0]


def written(directory, rows, levels=FORMAT_LEVELS):
    choices = choices_of(rows, levels)
    (directory / NAME).write_bytes(verdict_json(Check(choices, [SQNR], {})))
    return verdict(directory)


def kinds(table):
    return {key: str(dtype) for key, dtype in table.dtypes.items()}


def test_a_tensor_is_a_row(tmp_path):
    exact = stored("log", 16, 16.0, None, tensor="exact", max_err=0.0)
    poor = stored("ggml/q4_0", None, 4.5, 20.0, tensor="poor")
    table = written(tmp_path, [*some(tensor="a"), exact, poor])
    assert kinds(table) == TYPES
    assert table["tensor"].tolist() == ["a", "exact", "poor"]
    assert table["meets"].tolist() == [True, True, False]
    assert table["format"].tolist() == ["sym 8 bits", "log 16 bits", "ggml/q4_0"]
    assert table["missed"].isna().tolist() == [True, True, False]
    assert table["missed"][2] == "sqnr_db"
    assert table["sqnr_db"].isna().tolist() == [False, True, False]
    assert pd.isna(table["n_bits"][2])


def test_what_else_was_swept_stands_beside_the_names(tmp_path):
    rows = [each | {"seed": n} for n in (1, 2) for each in some()]
    table = written(tmp_path, rows, [*FORMAT_LEVELS, "seed"])
    assert list(table)[:4] == ["dist", "tensor", "seed", "meets"]
    assert table["seed"].tolist() == [1, 2]
    assert kinds(table) | TYPES == kinds(table)


def test_a_sweep_without_figures_has_the_columns(tmp_path):
    table = written(tmp_path, [])
    assert (len(table), kinds(table)) == (0, TYPES)


def test_a_directory_without_a_verdict_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{NAME} does not exist: quantlab aggregate {tmp_path} "):
        verdict(str(tmp_path))


T = Texts("en")
TWO = [answer("sym 8 bits", 8.0, 0.001, 0.99), answer("sym 4 bits", 4.0, 0.1, 0.9)]


def check(rows, bar=SQNR, t=T, failures=()):
    return Check(choices_of(rows, FORMAT_LEVELS, bar), [bar], dict(failures)).lines(t)


def test_a_sweep_that_meets_the_bar_is_one_line():
    assert check(some()) == ["check passed: the tensor meets the bar (SQNR ≥ 30 dB)"]


def missing(rows=()):
    return [*rows, stored("nf4", 4, 4.5, 12.0, tensor="poor")]


def test_each_tensor_that_misses_is_a_line_and_the_last_sums_up():
    assert check(missing(some()), Bar(top_order=None)) == [
        "poor: no format tried meets the bar; in the nearest, nf4, the SQNR is 12 dB (limit 30 dB)",
        "check failed: 1 of 2 tensors miss the bar (rel_err ≤ 1%; SQNR ≥ 30 dB)",
    ]


def test_a_tensor_that_float32_turned_to_zeros_is_said_to_be_lost():
    zeros = {"x_min": 0.0, "x_max": 0.0, "max_err": 0.0, "underflowed": 9}
    lines = check([stored("nf4", 4, 4.5, None, **zeros)])
    assert lines[0].endswith("all its values are too small for float32 and were measured as 0")


def test_a_run_that_failed_fails_the_check():
    failures = {"a": "no disk", "b": "no disk", "c": "no tensor"}
    lines = check(some(), failures=failures)
    assert lines[:2] == ["a and one more run failed: no disk", "c failed: no tensor"]
    failed = "3 runs failed or left no record that can be read"
    met = "the tensor measured does not miss the bar (SQNR ≥ 30 dB)"
    assert lines[-1] == f"check failed: {failed}; {met}"
    failed = "one run failed or left no record that can be read"
    assert check([], failures={"a": "no"})[-1] == f"check failed: {failed}"


def test_tensors_that_were_not_measured_fail_the_check_before_those_that_meet_the_bar():
    rows = [*some(), stored("nf4", 4, 4.5, 32.0, tensor="rich")]
    check = Check(choices_of(rows, FORMAT_LEVELS, SQNR), [SQNR], unmeasured=["a", "b"])
    assert check.lines(T)[-1] == (
        "check failed: 2 tensors could not be measured; "
        "none of the 2 tensors measured misses the bar (SQNR ≥ 30 dB)"
    )


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_has_the_words_of_a_check(lang):
    t = Texts(lang)
    lines = [*check(some(), t=t), *check(missing(), Bar(), t, {"a": "no"})]
    assert len(lines) == 4
    assert not any("{" in line for line in lines)


def check_answers(rows, **limits):
    bar = Bar(top_order=None, rel_err=None, **limits)
    choices = choices_of(some(), FORMAT_LEVELS, bar)
    return Check(choices, [bar], outputs=outputs_of(rows, **limits))


def test_answers_that_survive_are_said():
    check = check_answers(TWO, kl=0.01)
    assert check.has_passed
    assert check.lines(T) == [
        "probs, 100 answers: the fewest bits that meet the bar are those of sym 8 bits (8 bits per "
        "value), which changes 1% of the first answers (95 %: 0.18% to 5.4%), KL 0.001 bits",
        "check passed: the tensor meets the bar (SQNR ≥ 30 dB; KL of the answers ≤ 0.01 bits)",
    ]
    assert check_answers(TWO).lines(T) == ["check passed: the tensor meets the bar (SQNR ≥ 30 dB)"]


def test_answers_that_no_format_keeps_fail_the_check():
    check = check_answers(TWO, kl=0.0001, top1_same=0.95)
    assert not check.has_passed
    assert check.lines(T) == [
        "probs: no format tried meets the bar; in the nearest, sym 8 bits, the KL of the answers "
        "is 0.001 bits (limit 0.0001 bits)",
        "check failed: of one output no format tried keeps the answers; the tensor measured does "
        "not miss the bar (SQNR ≥ 30 dB; KL of the answers ≤ 0.0001 bits; first answers the same "
        "≥ 95%)",
    ]


@pytest.mark.parametrize("rows", [[], TWO])
def test_a_criterion_without_a_figure_never_passes(rows):
    check = check_answers(rows, accuracy_drop=0.1)
    assert not check.has_passed
    first, last = check.lines(T)
    assert first.startswith("report.bar.accuracy_drop judges the answers of a model, of which none")
    assert last.startswith("check failed: one criterion has nothing to judge; ")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_has_the_words_of_answers(lang):
    for bar in ({"kl": 0.01}, {"kl": 1e-9}, {"accuracy_drop": 0.1}):
        lines = check_answers(TWO, **bar).lines(Texts(lang))
        assert len(lines) == 2
        assert not any("{" in line for line in lines)
