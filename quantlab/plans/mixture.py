"""A plan: a format for each tensor, its size and noise, and how far it is from the best there is.

The least noise within a budget is a multiple-choice knapsack, solved exactly. The relaxed problem,
in which a slot may be divided between two options, has a bound that no choice is below, and a price
of a bit. Its solution is the lower convex hulls of all slots, their steps taken in the order of
what a bit buys (Sinha and Zoltners, "The multiple-choice knapsack problem", Operations Research 27,
1979). At this price each option has an excess, what it costs beyond the best of its slot, and a
choice is above the bound by its excesses and by the price of the bits it leaves unused.

Few options have an excess as small as the distance of the best choice from the bound. The search
combines these alone, slot by slot, and drops what another combination beats in bits and noise; it
starts with a small limit of excess and raises it until the best choice within is proven to be the
best of all (after Pisinger's core algorithm, "A minimal algorithm for the multiple-choice knapsack
problem", European Journal of Operational Research 83, 1995).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import Assignment, Option, Slot, slot_name, total_bits
from quantlab.plans.problem import Problem
from quantlab.report.choices import group_by, pareto_front
from quantlab.text import format_size

NOISE_RTOL = 1e-9  # choices that differ by less are equal, and the smaller is taken
FIRST_LIMIT = 1e-4  # of the largest limit of excess, the one to start with
LIMIT_GROWTH = 8.0
MAX_STATES = 2**15  # combinations per slot; checkpoints of a thousand tensors have a third of it


class FrontPoint(NamedTuple):
    """A size in bits, and the least noise of the relaxed problem at this size."""

    bits: int
    noise: float


@dataclass(frozen=True)
class Plan:
    """An option of each slot, within a `budget` in bits of the whole, or without one to meet bars.

    `unmet` are the tensors that meet their bar in no format: they stay as they are stored.
    """

    problem: Problem
    chosen: Sequence[Option]
    budget: int | None = None
    unmet: Sequence[str] = ()

    @cached_property
    def assignments(self) -> list[Assignment]:
        """Assignment of each tensor, in the order of the checkpoint."""
        chosen = {
            assignment.tensor.key: assignment
            for option in self.chosen
            for assignment in option.assignments
        }
        return [
            chosen.get(tensor.key) or Assignment(tensor, tensor.bits)
            for tensor in self.problem.tensors
        ]

    @cached_property
    def unmeasured(self) -> list[Assignment]:
        """Assignments of the tensors that were not measured, which stay as they are stored."""
        measured = {part.tensor.key for option in self.chosen for part in option.assignments}
        return [
            assignment for assignment in self.assignments if assignment.tensor.key not in measured
        ]

    @cached_property
    def total(self) -> Option:
        """All tensors together, with their size and noise."""
        return Option.of(self.assignments)

    @cached_property
    def unmeasured_bits(self) -> int:
        """Size of the tensors that were not measured."""
        return sum(assignment.bits for assignment in self.unmeasured)

    @cached_property
    def front(self) -> list[FrontPoint]:
        """Mixtures of the relaxed problem, in bits of the whole checkpoint."""
        return [
            FrontPoint(point.bits + self.unmeasured_bits, point.noise)
            for point in relaxed_front(self.problem.slots)
        ]

    def noise_bound(self, bits: float) -> float:
        """Return the noise that no plan of a size can be below."""
        return float(relaxed_noise(self.front, bits))

    @cached_property
    def gap(self) -> float:
        """Excess of the noise over the bound for this budget, as a share of the bound."""
        bound = self.noise_bound(self.total.bits if self.budget is None else self.budget)
        return self.total.noise / bound - 1 if bound else 0.0

    @cached_property
    def uniform(self) -> list[Option]:
        """One format for all tensors that were tried in it, for each format, the smallest first.

        Other tensors stay as they are stored, or have the format that they must have.
        """
        specs = dict.fromkeys(
            option.spec for slot in self.problem.slots for option in slot if option.spec
        )
        return sorted(self._uniform_option(spec) for spec in specs)

    def _uniform_option(self, spec: FormatSpec) -> Option:
        options = [
            by_spec.get(spec) or by_spec.get(None) or min(by_spec.values())
            for by_spec in self._options_by_spec
        ]
        parts = [part for option in options for part in option.assignments]
        return Option.of([*self.unmeasured, *parts], spec)

    @cached_property
    def _options_by_spec(self) -> list[dict[FormatSpec | None, Option]]:
        return [{option.spec: option for option in slot} for slot in self.problem.slots]

    @property
    def best_uniform(self) -> Option | None:
        """The uniform format with the least noise that is not larger; None if all are."""
        limit = self.total.bits if self.budget is None else self.budget
        return min(
            (option for option in self.uniform if option.bits <= limit),
            key=lambda option: (option.noise, option.bits, option.format),
            default=None,
        )

    @property
    def cheapest_uniform(self) -> Option | None:
        """The smallest uniform format in which all tensors meet their bars; None if none does."""
        return next((option for option in self.uniform if option.meets), None)

    @property
    def formats(self) -> list[Option]:
        """Tensors in each format together, the format of most bits a value first."""
        groups = group_by(self.assignments, lambda part: part.spec or part.format)
        formats = [Option.of(group, group[0].spec) for group in groups.values()]
        return sorted(formats, key=lambda option: (-option.bits_per_value, option.format))


def plan_within_budget(
    problem: Problem, budget: int, describe: Callable[[int], str] = "{} bits".format
) -> Plan:
    """Return the plan with the least noise within a budget in bits.

    Raises ValueError, with the range of sizes, if even the smallest plan is larger; `describe`
    says of so many values what budget was asked for.
    """
    smallest = Plan(problem, [min(slot) for slot in problem.slots])
    if smallest.total.bits > budget:
        least, most = (
            f"{bits / max(problem.n_values, 1):.6g} bits per value ({format_size(bits / 8)})"
            for bits in (smallest.total.bits, smallest.front[-1].bits)
        )
        sizes = least if least == most else f"from {least} to {most}"
        raise ValueError(
            f"{describe(problem.n_values)} is below what there is: plans of this sweep have "
            f"{sizes}{problem.describe_fixed()}"
        )
    budget = min(budget, smallest.front[-1].bits)  # more buys nothing
    # By name, so that the order of the checkpoint does not decide between equal choices.
    order = sorted(range(len(problem.slots)), key=lambda slot: slot_name(problem.slots[slot]))
    slots = [problem.slots[slot] for slot in order]
    chosen = dict(zip(order, least_noise(slots, budget - smallest.unmeasured_bits), strict=True))
    return Plan(problem, [chosen[slot] for slot in range(len(order))], budget)


def smallest_plan(problem: Problem, noise: float) -> Plan:
    """Return the smallest plan whose noise, such as a predicted KL, is at most this.

    Less noise takes more bits, so that the least budget is found by bisection. Raises ValueError,
    with the least noise that there is, where that is more.
    """
    smallest = Plan(problem, [min(slot) for slot in problem.slots])
    plan = plan_within_budget(problem, smallest.front[-1].bits)
    if plan.total.noise > noise:
        raise ValueError(
            f"no plan of this sweep loses as little as {noise:.6g}: the least is "
            f"{plan.total.noise:.6g}{problem.describe_fixed()}"
        )
    too_few, enough = smallest.total.bits - 1, plan.total.bits
    while enough - too_few > 1:
        middle = plan_within_budget(problem, (too_few + enough) // 2)
        if middle.total.noise <= noise:
            plan, enough = middle, middle.total.bits
        else:
            too_few = middle.budget or too_few + 1
    return plan


def plan_for_bar(problem: Problem) -> Plan:
    """Return the plan of the cheapest format for each tensor that meets the bar of its row.

    A tensor that meets it in no format stays as it is stored, unless it must have another format.
    """
    chosen, unmet = [], list(problem.without_format)
    for slot in problem.slots:
        meeting = [option for option in slot if option.meets]
        closest = min(slot, key=lambda option: option.noise)
        chosen.append(min(meeting, default=closest))
        if len(slot) > 1 and [option.spec for option in meeting] == [None]:
            unmet += [assignment.tensor.name for assignment in slot[0].assignments]
    return Plan(problem, chosen, unmet=unmet)


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
    bound = float(relaxed_noise(relaxed_front(slots), budget))
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


def relaxed_noise(
    front: Sequence[FrontPoint], budget: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the noise of the relaxed problem within budgets; NaN below the smallest choice."""
    bits, noise = zip(*front, strict=True)
    return np.asarray(np.interp(budget, np.array(bits, float), noise, left=math.nan))


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
