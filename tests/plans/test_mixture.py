import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quantlab.plans.mixture import (
    least_noise,
    plan_for_bar,
    plan_within_budget,
    relaxed_front,
    relaxed_noise,
    undominated,
)
from quantlab.plans.options import Option, total_bits
from quantlab.plans.problem import Request, build_problem
from quantlab.report.bar import Bar
from quantlab.report.choices import find_choices
from quantlab.report.texts import Texts
from quantlab.report.verdict import Check
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
    assert made.total.bits <= made.budget <= bits * 1000 * len(drawn)
    assert made.gap >= -1e-9
    assert made.noise_bound(made.budget) <= made.total.noise * (1 + 1e-9)
    best = made.best_uniform
    assert best is None or made.total.noise <= best.noise * (1 + 1e-9)


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
    assert large.total.noise <= small.total.noise * (1 + 3e-9)


def test_what_does_not_count_is_made_small():
    made = make(two(), 13_000, weights={"b.weight": 0.0})
    assert chosen(made) == {"a.weight": "sym 8 bits, channel", "b.weight": "sym 4 bits, group 32"}


def test_formats_are_counted_those_of_most_bits_first():
    made = make([*two(), row("c", "nf4, group 64", 4.25, 50.0)], 44_600)
    counts = [
        (option.format, [each.tensor.name for each in option.assignments])
        for option in made.formats
    ]
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
    assert made.total.noise == math.fsum(noises)


def test_an_empty_tensor_costs_nothing():
    tensors = [original("a.weight"), original("b.weight"), original("c", (0,), reason="empty")]
    made = plan_within_budget(build_problem(sweep(two(), tensors), Request()), 13_000)
    assert made.assignments[2].bits_per_value == 0.0
    assert made.problem.n_values == 2000


BAR, LOW = (Bar(top_order=None, rel_err=None, sqnr_db=limit) for limit in (30.0, 20.0))


def test_the_least_noise_within_the_budget_is_chosen():
    made = make(budget=12_750)
    assert chosen(made) == {"a.weight": "sym 4 bits, group 32", "b.weight": "sym 8 bits, channel"}
    assert (made.total.bits, made.problem.n_values) == (12_750, 2000)
    assert made.total.noise == pytest.approx(10**-1.9 + 10**-3.3)
    assert made.best_uniform.format == "sym 4 bits, group 32"
    assert made.best_uniform.noise == pytest.approx(10**-1.9 + 10**-1.0)


def test_tensors_that_were_left_out_take_their_part_of_the_budget():
    out = original("c", (5, 100), sha256=None, n_bytes=2000, reason="why")
    tensors = [original("a.weight"), original("b.weight"), out]
    made = make(tensors=tensors, budget=12_750 + 16_000)
    assert chosen(made) == {**chosen(make(budget=12_750)), "c": "float32"}
    assert made.total.bits == 28_750
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
    assert (made.total.bits, made.total.noise, made.gap) == (64_000, 0, 0)


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
    lines = Check(choices, [BAR]).lines(Texts("en"))
    assert lines[-1].startswith("check failed" if made.unmet else "check passed")
    assert len(lines) == len(made.unmet) + 1


NOISES = st.one_of(
    st.just(0.0), st.floats(1e-6, 1), st.sampled_from([4.0**-b for b in range(2, 9)])
)
SIZES = st.one_of(st.integers(1, 40), st.integers(1, 40).map(lambda n: n * 1_000_003))
OPTIONS = st.lists(st.tuples(SIZES, NOISES), min_size=1, max_size=8)
INSTANCES = st.lists(OPTIONS, min_size=1, max_size=5)


def total_noise(options):
    return math.fsum(each.noise for each in options)


def offered(instance):
    return [
        [Option(bits, noise, f"f{n}") for n, (bits, noise) in enumerate(options)]
        for options in instance
    ]


def ends(slots):
    return [sum(end(each.bits for each in options) for options in slots) for end in (min, max)]


def realistic(rng, tensors, formats):
    """Tensors of 10^4 to 10^8 values whose SQNR falls up to 6 dB short of 6.02 dB a bit."""
    widths = rng.uniform(2, 9, formats)
    return [
        [
            Option(int(width * size), 10 ** (-(6.02 * width - less) / 10), f"f{n}")
            for n, (width, less) in enumerate(zip(widths, rng.uniform(0, 6, formats), strict=True))
        ]
        for size in 10 ** rng.uniform(4, 8, tensors)
    ]


def milp_noise(slots, budget):
    """The least noise by HiGHS."""
    from scipy.optimize import LinearConstraint, milp

    flat = [option for options in slots for option in options]
    one_each = np.repeat(np.eye(len(slots)), [len(options) for options in slots], axis=1)
    bits, noise = (np.array([getattr(each, key) for each in flat]) for key in ("bits", "noise"))
    solved = milp(
        noise * (1e6 / noise.max()),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(bits / budget, ub=1)],
        integrality=np.ones(len(flat), int),
        options={"mip_rel_gap": 0, "presolve": False},
    )
    return math.fsum(noise[solved.x > 0.5])


@given(INSTANCES, st.floats(0, 1))
def test_the_choice_is_that_of_trying_all(instance, share):
    slots = offered(instance)
    least, most = ends(slots)
    budget = least + int(share * (most - least))
    chosen = least_noise(slots, budget)
    assert all(
        any(each is option for option in options)
        for each, options in zip(chosen, slots, strict=True)
    )
    fitting = [each for each in itertools.product(*slots) if total_bits(each) <= budget]
    noise = min(map(total_noise, fitting))
    assert total_bits(chosen) <= budget
    assert total_noise(chosen) <= noise * (1 + 2e-9)
    equal = [each for each in fitting if total_noise(each) <= noise * (1 + 1e-12)]
    assert total_bits(chosen) <= min(map(total_bits, equal))


def test_a_choice_may_fill_its_budget_to_the_bit():
    rng = random.Random(3)
    for _ in range(2500):
        slots = [
            [
                Option(
                    rng.randint(1, 20), rng.choice([0.0, *[10 ** rng.uniform(-3, 0)] * 9]), f"f{n}"
                )
                for n in range(rng.randint(2, 3))
            ]
            for _ in range(rng.randint(2, 5))
        ]
        choices = list(itertools.product(*slots))
        budget = total_bits(rng.choice(choices))
        least = min(
            (total_noise(each), total_bits(each)) for each in choices if total_bits(each) <= budget
        )
        found = least_noise(slots, budget)
        assert total_noise(found) == pytest.approx(least[0], rel=2e-9, abs=0)
        assert total_bits(found) <= least[1]


def test_one_slot_may_give_up_bits_for_two_others():
    figures = [
        [(17, 708), (6, 225), (20, 286)],
        [(7, 866), (15, 642), (20, 365)],
        [(16, 324), (9, 584), (18, 209)],
    ]
    found = least_noise(offered(figures), 30)
    assert (total_bits(found), total_noise(found)) == (29, 1415)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_twelve_tensors_in_eight_formats_are_exact_too(share):
    slots = realistic(np.random.default_rng(2), 12, 8)
    least, most = ends(slots)
    budget = int(least + share * (most - least))
    best = {0: 0.0}  # of each size the least noise, tensor by tensor
    for options in slots:
        sums = {}
        for bits, noise in best.items():
            for each in options:
                size = bits + each.bits
                if size <= budget:
                    sums[size] = min(sums.get(size, math.inf), noise + each.noise)
        best, floor = {}, math.inf
        for bits in sorted(sums):
            if sums[bits] < floor:
                floor = best[bits] = sums[bits]
    assert total_noise(least_noise(slots, budget)) == pytest.approx(min(best.values()), rel=1e-12)


def test_highs_finds_nothing_better():
    slots = realistic(np.random.default_rng(3), 40, 12)
    least, most = ends(slots)
    for share in (0.05, 0.4, 0.8):
        budget = int(least + share * (most - least))
        found = total_noise(least_noise(slots, budget))
        assert found == pytest.approx(milp_noise(slots, budget), rel=1e-9)


@given(INSTANCES, st.floats(0, 1))
def test_no_choice_is_below_the_bound(instance, share):
    slots = offered(instance)
    least, most = ends(slots)
    budget = least + int(share * (most - least))
    bound = relaxed_noise(relaxed_front(slots), budget)
    assert bound <= total_noise(least_noise(slots, budget)) * (1 + 1e-12)
    steps = relaxed_front(slots)
    assert all(a.bits < b.bits and a.noise >= b.noise >= 0 for a, b in itertools.pairwise(steps))


@settings(max_examples=20)
@given(INSTANCES, st.floats(0, 1), st.randoms())
def test_the_order_in_which_options_are_given_changes_nothing(instance, share, rng):
    slots = offered(instance)
    least, most = ends(slots)
    budget = least + int(share * (most - least))
    shuffled = [rng.sample(options, len(options)) for options in slots]
    assert least_noise(shuffled, budget) == least_noise(slots, budget)


def test_of_slots_with_the_same_options_the_first_take_the_larger():
    options = [Option(4, 1.0, "a"), Option(8, 0.1, "b")]
    assert [each.format for each in least_noise([options] * 4, 24)] == ["b", "b", "a", "a"]


def test_of_equal_noise_the_smallest_is_taken():
    slots = [[Option(2, 0.0, "small"), Option(9, 0.0, "large")], [Option(5, 0.5, "only")]]
    assert [each.format for each in least_noise(slots, 99)] == ["small", "only"]
    assert undominated([Option(2, 0.5, "b"), Option(2, 0.5, "a"), Option(3, math.inf, "c")]) == [
        Option(2, 0.5, "a")
    ]


def test_slots_that_all_pay_the_same_for_a_bit_are_near_the_bound():
    sizes = np.random.default_rng(4).integers(10**5, 10**7, 60).tolist()
    slots = [[Option(n * b, n * 4.0**-b, f"f{b}") for b in range(2, 9)] for n in sizes]
    budget = sum(sizes) * 9 // 2
    found = total_noise(least_noise(slots, budget))
    assert found <= relaxed_noise(relaxed_front(slots), budget) * (1 + 1e-6)


def test_a_budget_below_the_smallest_is_refused():
    with pytest.raises(ValueError, match="the smallest choice has 4 bits, the budget 3"):
        least_noise([[Option(4, 1.0, "a")]], 3)


def test_a_thousand_tensors_are_within_the_gap_of_the_bound():
    slots = realistic(np.random.default_rng(5), 1000, 10)
    least, most = ends(slots)
    budget = (least + most) // 2
    chosen = least_noise(slots, budget)
    assert total_bits(chosen) <= budget
    assert total_noise(chosen) <= relaxed_noise(relaxed_front(slots), budget) * (1 + 1e-4)
