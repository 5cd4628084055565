import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quantlab.plans.mixture import plan_for_bar, plan_within_budget
from quantlab.plans.problem import build_problem
from quantlab.plans.request import Request
from quantlab.report.bar import Bar
from quantlab.report.choices import find_choices
from quantlab.report.sentences import check_lines
from quantlab.report.texts import Texts
from tests.plans.samples import FORMATS, LEVELS, chosen, make, original, row, sweep, two

FIGURES = st.tuples(
    st.sampled_from([4.0, 4.5, 5.25, 8.25, 9.0]),
    st.one_of(st.sampled_from([20.0, 26.0, None]), st.floats(5, 60)),
)
FIGURES_OF = st.dictionaries(st.sampled_from(list(FORMATS)[:5]), FIGURES, min_size=1)
TABLES = st.lists(FIGURES_OF, min_size=1, max_size=6)


def table(drawn):
    """Rows of drawn figures; of those without an SQNR nothing is lost."""
    rows = [
        row(f"t{n}", form, bits, sqnr_db, max_err=float(sqnr_db is not None))
        for n, figures in enumerate(drawn)
        for form, (bits, sqnr_db) in figures.items()
    ]
    assume(len({each["mode"] + str(each["block_size"]) for each in rows}) > 1)
    return rows


@given(TABLES, st.floats(9, 33))
def test_no_plan_is_below_its_bound_or_above_its_budget(drawn, bits):
    rows = table(drawn)
    made = make(rows, int(bits * 1000 * len(drawn)))
    assert made.bits <= made.budget <= bits * 1000 * len(drawn)
    assert made.gap >= -1e-9
    assert made.noise_bound(made.budget) <= made.noise * (1 + 1e-9)
    best = made.best_uniform
    assert best is None or made.noise <= best.noise * (1 + 1e-9)


@settings(max_examples=50)
@given(TABLES, st.floats(9, 33), st.randoms())
def test_the_order_of_tensors_and_rows_changes_no_choice(drawn, bits, random):
    rows = table(drawn)
    shuffled = random.sample(rows, len(rows))
    budget = int(bits * 1000 * len(drawn))
    assert chosen(make(rows, budget)) == chosen(make(shuffled, budget))


def test_of_tensors_alike_the_first_by_name_takes_the_larger_in_any_order():
    rows = [
        row(name, form, bits, sqnr_db)
        for name in "cab"
        for form, bits, sqnr_db in (("sym 4 bits, group 32", 4.5, 19.0), ("sym 8 bits", 8.0, 36.0))
    ]
    found = dict.fromkeys("bc", "sym 4 bits, group 32") | {"a": "sym 8 bits"}
    assert chosen(make(rows, 17_500)) == chosen(make(rows[::-1], 17_500)) == found


@given(TABLES, st.floats(9, 33), st.floats(0, 8))
def test_a_larger_budget_is_never_worse(drawn, bits, more):
    rows = table(drawn)
    n_values = 1000 * len(drawn)
    small, large = (make(rows, int(each * n_values)) for each in (bits, bits + more))
    assert large.noise <= small.noise * (1 + 3e-9)


def test_what_does_not_count_is_made_small():
    made = make(two(), 13_000, weights={"b.weight": 0.0})
    assert chosen(made) == {"a.weight": "sym 8 bits, channel", "b.weight": "sym 4 bits, group 32"}


def test_formats_are_counted_those_of_most_bits_first():
    made = make([*two(), row("c", "nf4, group 64", 4.25, 50.0)], 44_600)
    counts = [(name, [each.tensor.name for each in group]) for name, group in made.counts]
    assert counts == [
        ("float32", ["b.weight"]),
        ("sym 8 bits, channel", ["a.weight"]),
        ("nf4, group 64", ["c"]),
    ]


def test_tensors_that_go_together_are_told_apart_in_the_plan():
    made = make(two(), 17_000, same=["*"])
    assert chosen(made) == dict.fromkeys(["a.weight", "b.weight"], "sym 8 bits, channel")
    noises = [each.noise for each in made.assignments]
    assert noises == [pytest.approx(10**-4.2), pytest.approx(10**-3.3)]
    assert made.noise == math.fsum(noises)


def test_an_empty_tensor_costs_nothing():
    tensors = [original("a.weight"), original("b.weight"), original("c", (0,), reason="empty")]
    made = plan_within_budget(build_problem(sweep(two(), tensors), Request()), 13_000)
    assert made.assignments[2].bits_per_value == 0.0
    assert made.n_values == 2000


BAR, LOW = (Bar(top_order=None, rel_err=None, sqnr_db=limit) for limit in (30.0, 20.0))


def test_the_least_noise_within_the_budget_is_chosen():
    made = make(budget=12_750)
    assert chosen(made) == {"a.weight": "sym 4 bits, group 32", "b.weight": "sym 8 bits, channel"}
    assert (made.bits, made.n_values) == (12_750, 2000)
    assert made.noise == pytest.approx(10**-1.9 + 10**-3.3)
    assert made.best_uniform.format == "sym 4 bits, group 32"
    assert made.best_uniform.noise == pytest.approx(10**-1.9 + 10**-1.0)


def test_tensors_that_were_left_out_take_their_part_of_the_budget():
    out = original("c", (5, 100), sha256=None, n_bytes=2000, reason="why")
    tensors = [original("a.weight"), original("b.weight"), out]
    made = make(tensors=tensors, budget=12_750 + 16_000)
    assert chosen(made) == {**chosen(make(budget=12_750)), "c": "float32"}
    assert made.bits == 28_750
    with pytest.raises(ValueError, match=r"from 10 bits per value \(3.12 kB\) to 32 bits"):
        make(tensors=tensors, budget=12_750)


def test_a_format_for_all_leaves_others_as_they_are_or_must_be():
    rows = [*two(), row("c.weight", "sym 8 bits", 8, 30.0)]
    made = make(rows, budget=64_000)
    by_name = {each.format: each for each in made.uniform}
    assert by_name["sym 4 bits, group 32"].bits == 9000 + 32_000
    assert by_name["sym 8 bits"].bits == 24_000
    made = make(rows, budget=64_000, keep=[("c*", "sym 8 bits")])
    assert {each.format: each.bits for each in made.uniform}["sym 4 bits, group 32"] == 17_000


def test_no_more_is_spent_than_helps():
    made = make(budget=10**30)
    assert set(chosen(made).values()) == {"float32"}
    assert (made.bits, made.noise, made.gap) == (64_000, 0, 0)


def test_a_tensor_stays_where_no_format_meets_the_bar():
    made = make(bar=Bar(sqnr_db=35.0))
    assert chosen(made) == {"a.weight": "sym 8 bits", "b.weight": "float32"}
    assert made.unmet == ["b.weight"]
    assert made.cheapest_uniform is None
    made = make(bar=Bar(sqnr_db=33.0))
    assert made.cheapest_uniform.format == "sym 8 bits, channel"
    made = make(bar=Bar(sqnr_db=35.0), keep=[("b*", "sym 4 bits, group 32")])
    assert (chosen(made)["b.weight"], made.unmet) == ("sym 4 bits, group 32", [])


FIGURES = st.tuples(st.floats(2, 12), st.floats(10, 50))


@given(st.lists(st.lists(FIGURES, min_size=2, max_size=4), min_size=1, max_size=4))
def test_verdict_check_and_plan_say_the_same_of_each_tensor(tensors):
    rows = [
        row(f"t{n}", form, round(bits, 1), round(sqnr_db, 1), **(LOW if n == 1 else BAR).columns())
        for n, figures in enumerate(tensors)
        for form, (bits, sqnr_db) in zip(itertools.islice(FORMATS, 4), figures, strict=False)
    ]
    choices = find_choices(rows, LEVELS)
    judged = {choice.tensor: choice for choice in choices}
    made = plan_for_bar(build_problem(sweep(rows), Request()))
    for name, form in chosen(made).items():
        assert (form == "float32") == (not judged[name].meets)
        assert form in ("float32", judged[name].best.name)
    lines = check_lines(choices, [BAR], {}, Texts("en"))
    assert lines[-1].startswith("check failed" if made.unmet else "check passed")
    assert len(lines) == len(made.unmet) + 1
