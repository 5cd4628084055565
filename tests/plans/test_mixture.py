import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quantlab.plans.choose import within_budget
from quantlab.plans.slots import Request, find_slots
from tests.plans.samples import FORMATS, original, row, sweep, two

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


def plan(rows, budget, **asked):
    return within_budget(find_slots(sweep(rows), Request(**asked)), budget)


def chosen(made):
    return {each.tensor.name: each.part.format for each in made.tensors}


@given(TABLES, st.floats(9, 33))
def test_no_plan_is_below_its_bound_or_above_its_budget(drawn, bits):
    rows = table(drawn)
    made = plan(rows, int(bits * 1000 * len(drawn)))
    assert made.bits <= made.budget <= bits * 1000 * len(drawn)
    assert made.gap >= -1e-9
    assert made.bound(made.budget) <= made.noise * (1 + 1e-9)
    best = made.best_uniform
    assert best is None or made.noise <= best.noise * (1 + 1e-9)


@settings(max_examples=50)
@given(TABLES, st.floats(9, 33), st.randoms())
def test_the_order_of_tensors_and_rows_changes_no_choice(drawn, bits, random):
    rows = table(drawn)
    shuffled = random.sample(rows, len(rows))
    budget = int(bits * 1000 * len(drawn))
    assert chosen(plan(rows, budget)) == chosen(plan(shuffled, budget))


def test_of_tensors_alike_the_first_by_name_takes_the_larger_in_any_order():
    rows = [
        row(name, form, bits, sqnr_db)
        for name in "cab"
        for form, bits, sqnr_db in (("sym 4 bits, group 32", 4.5, 19.0), ("sym 8 bits", 8.0, 36.0))
    ]
    found = dict.fromkeys("bc", "sym 4 bits, group 32") | {"a": "sym 8 bits"}
    assert chosen(plan(rows, 17_500)) == chosen(plan(rows[::-1], 17_500)) == found


@given(TABLES, st.floats(9, 33), st.floats(0, 8))
def test_a_larger_budget_is_never_worse(drawn, bits, more):
    rows = table(drawn)
    n_values = 1000 * len(drawn)
    small, large = (plan(rows, int(each * n_values)) for each in (bits, bits + more))
    assert large.noise <= small.noise * (1 + 3e-9)


def test_what_does_not_count_is_made_small():
    made = plan(two(), 13_000, weights={"b.weight": 0.0})
    assert chosen(made) == {"a.weight": "sym 8 bits, channel", "b.weight": "sym 4 bits, group 32"}


def test_formats_are_counted_those_of_most_bits_first():
    made = plan([*two(), row("c", "nf4, group 64", 4.25, 50.0)], 44_600)
    counts = [(name, [each.tensor.name for each in group]) for name, group in made.counts]
    assert counts == [
        ("float32", ["b.weight"]),
        ("sym 8 bits, channel", ["a.weight"]),
        ("nf4, group 64", ["c"]),
    ]


def test_tensors_that_go_together_are_told_apart_in_the_plan():
    made = plan(two(), 17_000, same=["*"])
    assert chosen(made) == dict.fromkeys(["a.weight", "b.weight"], "sym 8 bits, channel")
    noises = [each.part.noise for each in made.tensors]
    assert noises == [pytest.approx(10**-4.2), pytest.approx(10**-3.3)]
    assert made.noise == math.fsum(noises)


def test_an_empty_tensor_costs_nothing():
    tensors = [original("a.weight"), original("b.weight"), original("c", (0,), reason="empty")]
    made = within_budget(find_slots(sweep(two(), tensors), Request()), 13_000)
    assert made.tensors[2].bits_per_value == 0.0
    assert made.n_values == 2000
