import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.plans.options import Option, total_bits
from quantlab.plans.solve import least_noise, relaxed_front, relaxed_noise, undominated

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
