import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.plans.choose import meeting, within_budget
from quantlab.plans.slots import Request, find_slots
from quantlab.report.bar import Bar
from quantlab.report.check import check
from quantlab.report.tensor_verdict import tensor_verdicts
from quantlab.report.texts import Texts
from tests.plans.samples import FORMATS, LEVELS, original, row, sweep, two

BAR = Bar(top_order=None, rel_err=None, sqnr_db=30.0)


def plan(rows=None, tensors=None, budget=16_500, **asked):
    return within_budget(find_slots(sweep(rows or two(), tensors), Request(**asked)), budget)


def chosen(made):
    return {each.tensor.name: each.part.format for each in made.tensors}


def test_the_least_noise_within_the_budget_is_chosen():
    made = plan(budget=12_750)
    assert chosen(made) == {"a.weight": "sym 4 bits, group 32", "b.weight": "sym 8 bits, channel"}
    assert (made.bits, made.n_values) == (12_750, 2000)
    assert made.noise == pytest.approx(10**-1.9 + 10**-3.3)
    assert made.best_uniform.name == "sym 4 bits, group 32"
    assert made.best_uniform.noise == pytest.approx(10**-1.9 + 10**-1.0)


def test_tensors_that_were_left_out_take_their_part_of_the_budget():
    out = original("c", (5, 100), sha256=None, n_bytes=2000, reason="why")
    tensors = [original("a.weight"), original("b.weight"), out]
    made = plan(tensors=tensors, budget=12_750 + 16_000)
    assert chosen(made) == {**chosen(plan(budget=12_750)), "c": "float32"}
    assert made.bits == 28_750
    with pytest.raises(ValueError, match=r"from 10 bits per value \(3.12 kB\) to 32 bits"):
        plan(tensors=tensors, budget=12_750)


def test_a_format_for_all_leaves_others_as_they_are_or_must_be():
    rows = [*two(), row("c.weight", "sym 8 bits", 8, 30.0)]
    made = plan(rows, budget=64_000)
    by_name = {each.name: each for each in made.uniform}
    assert by_name["sym 4 bits, group 32"].bits == 9000 + 32_000
    assert by_name["sym 8 bits"].bits == 24_000
    made = plan(rows, budget=64_000, keep=[("c*", "sym 8 bits")])
    assert {each.name: each.bits for each in made.uniform}["sym 4 bits, group 32"] == 17_000


def test_no_more_is_spent_than_helps():
    made = plan(budget=10**30)
    assert set(chosen(made).values()) == {"float32"}
    assert (made.bits, made.noise, made.gap) == (64_000, 0, 0)


def test_a_tensor_stays_where_no_format_meets_the_bar():
    made = meeting(find_slots(sweep(two()), Request()), Bar(sqnr_db=35.0))
    assert chosen(made) == {"a.weight": "sym 8 bits", "b.weight": "float32"}
    assert made.unmet == ["b.weight"]
    assert made.cheapest_uniform is None
    made = meeting(find_slots(sweep(two()), Request()), Bar(sqnr_db=33.0))
    assert made.cheapest_uniform.name == "sym 8 bits, channel"
    kept = Request(keep=[("b*", "sym 4 bits, group 32")])
    made = meeting(find_slots(sweep(two()), kept), Bar(sqnr_db=35.0))
    assert (chosen(made)["b.weight"], made.unmet) == ("sym 4 bits, group 32", [])


FIGURES = st.tuples(st.floats(2, 12), st.floats(10, 50))


@given(st.lists(st.lists(FIGURES, min_size=2, max_size=4), min_size=1, max_size=4))
def test_verdict_check_and_plan_say_the_same_of_each_tensor(tensors):
    rows = [
        row(f"t{n}", form, round(bits, 1), round(sqnr_db, 1))
        for n, figures in enumerate(tensors)
        for form, (bits, sqnr_db) in zip(itertools.islice(FORMATS, 4), figures, strict=False)
    ]
    found = sweep(rows)
    judged = {each.tensor: each for each in tensor_verdicts(rows, LEVELS, BAR)}
    made = meeting(find_slots(found, Request()), BAR)
    for name, form in chosen(made).items():
        assert (form == "float32") == (not judged[name].meets)
        assert form in ("float32", judged[name].format)
    passed, lines = check(found, BAR, Texts("en"))
    assert passed == (not made.unmet)
    assert len(lines) == len(made.unmet) + 1
