import pytest

from quantlab.plans.mixture import plan_within_budget
from quantlab.plans.problem import build_problem
from quantlab.plans.request import Request
from quantlab.plans.runtimes import find_runtime
from quantlab.plans.sentences import (
    TERMINAL_FORMATS,
    count_rows,
    plan_answer,
    plan_sentences,
    plan_summary,
    tensor_rows,
)
from quantlab.records.older import UNSIZED
from quantlab.report.bar import Bar
from quantlab.report.texts import LANGUAGES, Texts
from tests.plans.samples import make, original, row, sweep, two

T = Texts("en")


def everything():
    """Plans that between them have every sentence."""
    rows = [*two(out_sqnr_db=30.0), row("c", "ggml/q4_k", 4.5, 20.0)]
    old = original("d", sha256=None, reason="why", **{**UNSIZED, "dtype": "unknown"})
    out = original("e", sha256=None, n_bytes=9, reason="why")
    tensors = [*map(original, ["a.weight", "b.weight", "c"]), old, out]
    found = sweep(rows, tensors, failures={"run": "no"})
    asked = Request(by="out_sqnr_db", runtime=find_runtime("torchao"))
    yield plan_within_budget(build_problem(found, asked), 60_000)
    yield plan_within_budget(
        build_problem(found, Request(weights=dict.fromkeys(["a.weight"], 0.0))), 10**6
    )
    for budget in (9_000, 13_000, 64_000):
        yield make(budget=budget)
    for bar in (Bar(sqnr_db=35.0), Bar(sqnr_db=20.0)):
        for keep in ((), [("b*", "sym 4 bits, group 32")]):
            yield make(keep=keep, bar=bar)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_has_the_words(lang):
    t, said = Texts(lang), set()
    for made in everything():
        text = plan_summary(made, t)
        assert "{" not in text
        assert plan_answer(made, t) in text
        said |= set(plan_sentences(made, t))
    assert len(said) > 12


def test_a_row_says_what_a_tensor_costs_and_adds():
    out = original("c", (5,), sha256=None, n_bytes=20, reason="int32 is no float", dtype="int32")
    made = make(tensors=[*map(original, ["a.weight", "b.weight"]), out], budget=13_000)
    assert tensor_rows(made, T) == [
        ("a.weight", "sym 4 bits, group 32", "4.5", "562 B", "19.00", "96.2%", "–"),
        ("b.weight", "sym 8 bits, channel", "8.25", "1.03 kB", "33.00", "3.83%", "–"),
        ("c", "int32", "32", "20 B", "exact", "0%", "int32 is no float"),
    ]
    assert count_rows(made, T)[2] == ("sym 4 bits, group 32", "1", "4.5", "562 B", "96.2%")


def test_names_play_no_tricks_on_a_terminal():
    rows = [each | {"tensor": each["tensor"] + "\x1b[31m\n"} for each in two()]
    text = plan_summary(make(rows), T)
    assert "\x1b" not in text
    assert r"a.weight\x1b[31m\n as sym 4 bits, group 32; " in text


def test_a_terminal_is_given_no_more_formats_than_it_bears():
    rows = [
        each | {"tensor": f"t{n}", "mode": f"mode{n}", "format": f"mode{n}"}
        for n in range(TERMINAL_FORMATS + 9)
        for each in two()
    ]
    made = make(rows, budget=4500 * (TERMINAL_FORMATS + 9) + 9000)
    lines = plan_summary(made, T).splitlines()
    assert sum(line.startswith("mode") for line in lines) == TERMINAL_FORMATS


def test_one_format_for_all_has_never_less_noise_than_the_plan():
    rows = [*two(), row("c", "sym 8 bits", 8, 30.0)]
    for kept in ("sym 4 bits, group 32", "sym 8 bits"):
        for budget in range(21_000, 70_000, 7_000):
            made = make(rows, budget=budget, keep=[("b*", kept)])
            best = made.best_uniform
            assert best is None or best.noise >= made.noise * (1 - 1e-9)


def test_the_gap_of_tensors_that_go_together_is_no_rounding():
    rows = [
        row(f"t{n}", form, bits, sqnr_db + n / 7)
        for n in range(9)
        for form, bits, sqnr_db in (("sym 4 bits, group 32", 4.5, 19.0), ("sym 8 bits", 8.0, 36.0))
    ]
    made = make(rows, 9 * 4500, same=["t*"])
    assert T("plan_least") in list(plan_sentences(made, T))
    assert not any("e-" in each for each in plan_sentences(made, T))
