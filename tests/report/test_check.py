import pytest

from quantlab.report.bar import Bar
from quantlab.report.check import Check
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.samples import FORMAT_LEVELS, SQNR, answer, choices_of, outputs_of, some, stored

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
