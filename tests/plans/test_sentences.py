import pytest

from quantlab.plans.choose import meeting, within_budget
from quantlab.plans.runtimes.registry import runtime
from quantlab.plans.sentences import (
    answer,
    count_rows,
    sentences,
    tensor_rows,
)
from quantlab.plans.slots import Request, find_slots
from quantlab.plans.summary import LONGEST, plan_summary
from quantlab.records.manifest import UNSIZED
from quantlab.report.bar import Bar
from quantlab.report.texts import LANGUAGES, Texts
from tests.plans.samples import original, row, sweep, two

T = Texts("en")


def plan(rows=None, budget=13_000, tensors=None, **asked):
    return within_budget(find_slots(sweep(rows or two(), tensors), Request(**asked)), budget)


def everything():
    """Plans that between them have every sentence."""
    rows = [*two(out_sqnr_db=30.0), row("c", "ggml/q4_k", 4.5, 20.0)]
    old = original("d", sha256=None, reason="why", **{**UNSIZED, "dtype": "unknown"})
    out = original("e", sha256=None, n_bytes=9, reason="why")
    tensors = [*map(original, ["a.weight", "b.weight", "c"]), old, out]
    found = sweep(rows, tensors, failures={"run": "no"})
    asked = Request(by="out_sqnr_db", runtime=runtime("torchao"))
    yield within_budget(find_slots(found, asked), 60_000)
    yield within_budget(find_slots(found, Request(weights=dict.fromkeys(["a.weight"], 0.0))), 10**6)
    for budget in (9_000, 13_000, 64_000):
        yield plan(budget=budget)
    for bar in (Bar(sqnr_db=35.0), Bar(sqnr_db=20.0)):
        for keep in ((), [("b*", "sym 4 bits, group 32")]):
            yield meeting(find_slots(sweep(two()), Request(keep=keep)), bar)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_has_the_words(lang):
    t, said = Texts(lang), set()
    for made in everything():
        text = plan_summary(made, [], None, t)
        assert "{" not in text
        assert answer(made, t) in text
        said |= set(sentences(made, t))
    assert len(said) > 12


def test_a_row_says_what_a_tensor_costs_and_adds():
    out = original("c", (5,), sha256=None, n_bytes=20, reason="int32 is no float", dtype="int32")
    made = plan(tensors=[*map(original, ["a.weight", "b.weight"]), out], budget=13_000)
    assert tensor_rows(made, T) == [
        ("a.weight", "sym 4 bits, group 32", "4.5", "562 B", "19.00", "96.2%", "–"),
        ("b.weight", "sym 8 bits, channel", "8.25", "1.03 kB", "33.00", "3.83%", "–"),
        ("c", "int32", "32", "20 B", "∞", "0%", "int32 is no float"),
    ]
    assert count_rows(made, T)[2] == ("sym 4 bits, group 32", "1", "4.5", "562 B", "96.2%")


def test_names_play_no_tricks_on_a_terminal():
    rows = [each | {"tensor": each["tensor"] + "\x1b[31m\n"} for each in two()]
    text = plan_summary(plan(rows), [], None, T)
    assert "\x1b" not in text
    assert r"a.weight\x1b[31m\n as sym 4 bits, group 32; " in text


def test_a_terminal_is_given_no_more_formats_than_it_bears():
    rows = [
        each | {"tensor": f"t{n}", "mode": f"mode{n}"} for n in range(LONGEST + 9) for each in two()
    ]
    made = plan(rows, budget=4500 * (LONGEST + 9) + 9000)
    lines = plan_summary(made, [], "usage", T).splitlines()
    assert sum(line.startswith("mode") for line in lines) == LONGEST
    assert lines[-1] == "usage"


def test_one_format_for_all_has_never_less_noise_than_the_plan():
    rows = [*two(), row("c", "sym 8 bits", 8, 30.0)]
    for kept in ("sym 4 bits, group 32", "sym 8 bits"):
        for budget in range(21_000, 70_000, 7_000):
            made = plan(rows, budget=budget, keep=[("b*", kept)])
            best = made.best_uniform
            assert best is None or best.noise >= made.noise * (1 - 1e-9)


def test_the_gap_of_tensors_that_go_together_is_no_rounding():
    rows = [
        row(f"t{n}", form, bits, sqnr_db + n / 7)
        for n in range(9)
        for form, bits, sqnr_db in (("sym 4 bits, group 32", 4.5, 19.0), ("sym 8 bits", 8.0, 36.0))
    ]
    made = plan(rows, 9 * 4500, same=["t*"])
    assert T("plan_least") in list(sentences(made, T))
    assert not any("e-" in each for each in sentences(made, T))
