"""The choice with the least noise within a budget: a multiple-choice knapsack, solved exactly.

The relaxed problem, in which a slot may be divided between two options, has a bound that no choice
is below, and a price of a bit. Its solution is the lower convex hulls of all slots, their steps
taken in the order of what a bit buys (Sinha and Zoltners, "The multiple-choice knapsack problem",
Operations Research 27, 1979). At this price each option has an excess, what it costs beyond the
best of its slot, and a choice is above the bound by its excesses and by the price of the bits it
leaves unused.

Few options have an excess as small as the distance of the best choice from the bound. The search
combines these alone, slot by slot, and drops what another combination beats in bits and noise; it
starts with a small limit of excess and raises it until the best choice within is proven to be the
best of all (after Pisinger's core algorithm, "A minimal algorithm for the multiple-choice knapsack
problem", European Journal of Operational Research 83, 1995).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.plans.options import Option, Slot, total_bits
from quantlab.report.choices import pareto_front

NOISE_RTOL = 1e-9  # choices that differ by less are equal, and the smaller is taken
FIRST_LIMIT = 1e-4  # of the largest limit of excess, the one to start with
LIMIT_GROWTH = 8.0
MAX_STATES = 2**15  # combinations per slot; checkpoints of a thousand tensors have a third of it


class FrontPoint(NamedTuple):
    """A size in bits, and the least noise of the relaxed problem at this size."""

    bits: int
    noise: float


class Swap(NamedTuple):
    """An option instead of the best of its slot at a price: additional bits, and its excess."""

    slot: int
    option: Option
    bits: int
    excess: float


def least_noise(slots: Sequence[Slot], budget: int) -> list[Option]:
    """Return the choice within a budget in bits that has the least noise, of equals the smallest.

    Among slots with the same options the first take the larger. If more than `MAX_STATES`
    combinations are as good, as when all slots pay the same for a bit, some are dropped, and the
    choice is near the least. Raises ValueError if the smallest choice is above the budget.
    """
    slots = [undominated(slot) for slot in slots]
    smallest = sum(slot[0].bits for slot in slots)
    if smallest > budget:
        raise ValueError(f"the smallest choice has {smallest} bits, the budget {budget}")
    budget = min(budget, sum(slot[-1].bits for slot in slots))
    base, price = relaxed_choice(slots, budget)
    spare = budget - total_bits(base)
    bound = relaxed_noise(relaxed_front(slots), budget)
    largest = price * spare * (1 + NOISE_RTOL) + NOISE_RTOL * bound  # of a choice without any swap
    limit = largest * FIRST_LIMIT
    while True:
        limit = min(limit, largest)
        swaps = _search_core(_core(slots, base, price, limit), spare, price, limit, bound)
        if swaps is not None or limit == largest:
            swapped = {swap.slot: swap.option for swap in swaps or ()}
            chosen = [swapped.get(number, option) for number, option in enumerate(base)]
            return _break_ties(slots, chosen)
        limit *= LIMIT_GROWTH


def undominated(options: Iterable[Option]) -> list[Option]:
    """Choose the options that no other beats in bits and noise, the smallest first."""
    return pareto_front(sorted(options), lambda option: (option.bits, option.noise))


def relaxed_choice(slots: Sequence[Slot], budget: int) -> tuple[list[Option], float]:
    """Return the undivided options of the relaxed problem, and the noise that one bit saves."""
    best = [slot[0] for slot in slots]
    spare = budget - total_bits(best)
    for slot, before, after in _hull_steps(slots):
        spare -= after.bits - before.bits
        if spare < 0:
            return best, -_slope(before, after)
        best[slot] = after
    return best, 0.0


def relaxed_front(slots: Sequence[Slot]) -> list[FrontPoint]:
    """Return the choices at which the relaxed problem divides no slot, the smallest first."""
    slots = [undominated(slot) for slot in slots]
    bits = sum(slot[0].bits for slot in slots)
    # Exact sums: the noise at the end of the front is far below the rounding of its beginning.
    noise = sum((Fraction(slot[0].noise) for slot in slots), Fraction(0))
    front = [FrontPoint(bits, float(noise))]
    for _, before, after in _hull_steps(slots):
        bits += after.bits - before.bits
        noise += Fraction(after.noise) - Fraction(before.noise)
        front.append(FrontPoint(bits, float(noise)))
    return front


def relaxed_noise(front: Sequence[FrontPoint], budget: float) -> float:
    """Return the noise of the relaxed problem within a budget; NaN below the smallest choice."""
    bits, noise = zip(*front, strict=True)
    return float(np.interp(budget, np.array(bits, float), noise, left=math.nan))


def _hull_steps(slots: Sequence[Slot]) -> list[tuple[int, Option, Option]]:
    """Return the steps of all hulls with their slots, most noise saved per bit first."""
    steps = [(number, *pair) for number, slot in enumerate(slots) for pair in pairwise(_hull(slot))]
    return sorted(steps, key=lambda step: _slope(*step[1:]))


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of noise over bits."""
    hull: list[Option] = []
    for option in options:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(before: Option, after: Option) -> float:
    return (after.noise - before.noise) / (after.bits - before.bits)


def _cost(option: Option, price: float) -> float:
    return option.noise + price * option.bits


def _core(
    slots: Sequence[Slot], base: Sequence[Option], price: float, limit: float
) -> list[list[Swap]]:
    """Return the swaps of each slot whose excess is within a limit, for slots that have any."""
    core = []
    for number, (slot, best) in enumerate(zip(slots, base, strict=True)):
        least = _cost(best, price)
        swaps = [
            Swap(number, option, option.bits - best.bits, _cost(option, price) - least)
            for option in slot
            if option is not best
        ]
        core.append([swap for swap in swaps if swap.excess <= limit])
    return [swaps for swaps in core if swaps]


def _search_core(
    core: Sequence[Sequence[Swap]], spare: int, price: float, limit: float, bound: float
) -> list[Swap] | None:
    """Return the swaps of the best choice, None if its excess might be above the limit."""
    core = sorted(core, key=lambda swaps: -max(abs(swap.bits) for swap in swaps))
    fewer, more = (_reach(core, end) for end in (min, max))
    bits, excess = np.zeros(1, np.int64), np.zeros(1)
    origins = []
    for number, swaps in enumerate(core, 1):
        steps = [(0, 0.0), *((swap.bits, swap.excess) for swap in swaps)]
        n_states = len(bits)
        bits = np.concatenate([bits + step for step, _ in steps])
        excess = np.concatenate([excess + step for _, step in steps])
        unused = np.maximum(spare - bits - more[number], 0)
        possible = (bits + fewer[number] <= spare) & (excess + price * unused <= limit)
        states = np.flatnonzero(possible)
        states = states[_undominated_states(bits[states], excess[states] - price * bits[states])]
        states = states[:: len(states) // MAX_STATES + 1]
        origins.append((states % n_states, states // n_states))
        bits, excess = bits[states], excess[states]
    total = np.where(bits <= spare, excess + price * (spare - bits), np.inf)
    if not total.size:
        return None
    most = total.min() + NOISE_RTOL * (bound + total.min())  # within which choices are equal
    if most > limit * (1 + NOISE_RTOL):
        return None
    smallest = int(np.argmax(total <= most))  # states stand in the order of their sizes
    return _trace_swaps(core, origins, smallest)


def _reach(core: Sequence[Sequence[Swap]], end: Callable[[list[int]], int]) -> list[int]:
    """Return the least, or most, bits that all slots from each on may add."""
    reach = [0]
    for swaps in reversed(core):
        reach.append(reach[-1] + end([0, *(swap.bits for swap in swaps)]))
    return reach[::-1]


def _undominated_states(bits: NDArray[np.int64], noise: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the indices of states that no other beats in bits and noise, the smallest first."""
    order = np.argsort(bits, kind="stable")  # merges: the states of each swap are sorted already
    least = np.minimum.accumulate(noise[order])
    is_less = np.ones(len(order), bool)
    is_less[1:] = noise[order][1:] < least[:-1]
    return order[is_less]


def _trace_swaps(
    core: Sequence[Sequence[Swap]],
    origins: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    state: int,
) -> list[Swap]:
    """Return the swaps that led to a state."""
    path = []
    for swaps, (parents, choices) in zip(reversed(core), reversed(origins), strict=True):
        if choices[state]:
            path.append(swaps[choices[state] - 1])
        state = int(parents[state])
    return path


def _break_ties(slots: Sequence[Slot], chosen: Sequence[Option]) -> list[Option]:
    """Give the larger options to the first among slots with equal options."""
    groups: dict[tuple[tuple[int, float], ...], list[int]] = {}
    for number, slot in enumerate(slots):
        groups.setdefault(tuple((option.bits, option.noise) for option in slot), []).append(number)
    ordered = list(chosen)
    for group in groups.values():
        sizes = sorted((chosen[number].bits for number in group), reverse=True)
        for number, bits in zip(group, sizes, strict=True):
            ordered[number] = next(option for option in slots[number] if option.bits == bits)
    return ordered
