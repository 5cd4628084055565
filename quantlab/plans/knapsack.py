"""The choice with the least noise within a budget: a multiple-choice knapsack, solved exactly.

HiGHS solves it through `scipy.optimize.milp`. The relaxed problem, in which a tensor may be divided
between two formats, has a solution of its own: the lower convex hulls of all slots, their steps
taken in the order of what a bit buys (Sinha and Zoltners, "The multiple-choice knapsack problem",
Operations Research 27, 1979). Its noise is a bound that no choice can be below.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from quantlab.plans.options import Option, total_bits, total_noise

UNITS = 1e6  # that a limit counts as: HiGHS keeps one to 1e-7
SLACK = 1e-9  # of the noise, within which the fewest bits are looked for
Offered = Sequence[Sequence[Option]]  # of each slot what may be chosen


class Step(NamedTuple):
    """A point of the front: its size, and the noise that is left."""

    bits: int
    noise: float


def least_noise(offered: Offered, budget: int) -> list[Option]:
    """Return the choice within a budget in bits that has the least noise, of equals the smallest.

    Noise counts as equal within a billionth. Of slots with the same options the first take the
    larger formats. Raises ValueError where the smallest choice is above the budget.
    """
    offered = [undominated(options) for options in offered]
    smallest = sum(options[0].bits for options in offered)
    if smallest > budget:
        raise ValueError(f"the smallest choice has {smallest} bits, the budget {budget}")
    best = front(offered)
    reached = max((step for step in best if step.bits <= budget), key=lambda step: step.bits)
    kept = [_within(options, reached.noise) for options in offered]
    quietest = _solve(kept, budget, _noise)
    limit = total_noise(quietest) * (1 + SLACK)
    smaller = _solve([_within(options, limit) for options in kept], budget, _bits, limit)
    return _in_order(offered, smaller if total_noise(smaller) <= limit else quietest)


def undominated(options: Sequence[Option]) -> list[Option]:
    """Return the options that no other beats in bits and noise, the smallest first."""
    kept: list[Option] = []
    for option in sorted(options):
        if math.isfinite(option.noise) and (not kept or option.noise < kept[-1].noise):
            kept.append(option)
    return kept


def front(offered: Offered) -> list[Step]:
    """Return the choices at which the relaxed problem divides no tensor, the smallest first."""
    steps = [pair for options in offered for pair in pairwise(_hull(undominated(options)))]
    steps.sort(key=lambda pair: _slope(*pair))
    bits = sum(options[0].bits for options in map(undominated, offered))
    # Exact sums: what is left at the end of the front is far below the rounding of its beginning.
    noise = sum((Fraction(undominated(options)[0].noise) for options in offered), Fraction(0))
    found = [Step(bits, float(noise))]
    for before, after in steps:
        bits += after.bits - before.bits
        noise += Fraction(after.noise) - Fraction(before.noise)
        found.append(Step(bits, float(noise)))
    return found


def relaxed_noise(steps: Sequence[Step], budget: float) -> float:
    """Return the noise of the relaxed problem within a budget; NaN below the smallest choice."""
    bits, noise = zip(*steps, strict=True)
    return float(np.interp(budget, np.array(bits, float), noise, left=math.nan))


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


def _within(options: Sequence[Option], noise: float) -> list[Option]:
    """Return the options that are not noisier alone than a whole choice."""
    return [option for option in options if option.noise <= noise] or [options[-1]]


def _bits(option: Option) -> float:
    return option.bits


def _noise(option: Option) -> float:
    return option.noise


def _solve(offered: Offered, budget: int, wanted: Any, limit: float | None = None) -> list[Option]:
    """Return the choice with the least of what is wanted, within a budget and a limit of noise.

    HiGHS takes numbers for whole that are so to 1e-6, so that a choice may be above the budget by
    as much: then it is asked again, for as much less.
    """
    allowed = budget
    while True:
        found = _milp(offered, allowed, wanted, limit)
        over = total_bits(found) - budget
        if over <= 0:
            return found
        allowed -= over


def _milp(offered: Offered, budget: int, wanted: Any, limit: float | None) -> list[Option]:
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ModuleNotFoundError:
        raise ValueError("a budget takes the package scipy: pip install 'quantlab[plan]'") from None
    sizes = [len(options) for options in offered]
    flat = [option for options in offered for option in options]
    places = np.arange(len(flat))
    slots = np.repeat(np.arange(len(offered)), sizes)
    constraints = [LinearConstraint(csr_array((np.ones(len(flat)), (slots, places))), 1, 1)]
    for value, most in ((_bits, budget), (_noise, limit)):
        if most is not None:
            scaled = np.array([[value(option) for option in flat]]) * (UNITS / (most or 1))
            constraints.append(LinearConstraint(scaled, -np.inf, UNITS if most else 0))
    costs = np.array([wanted(option) for option in flat], float)
    solved = milp(
        costs * (UNITS / (costs.max() or 1)),
        constraints=constraints,
        integrality=np.ones(len(flat), int),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0, "presolve": False},  # it is slower here, and prints
    )
    if solved.x is None:  # the limits leave no room that HiGHS can see
        return [options[-1] if wanted is _bits else options[0] for options in offered]
    ends = np.cumsum(sizes)
    parts = np.split(solved.x, ends[:-1])
    return [options[int(np.argmax(x))] for options, x in zip(offered, parts, strict=True)]


def _in_order(offered: Offered, chosen: Sequence[Option]) -> list[Option]:
    """Return a choice in which of slots with the same options the first have the larger."""
    alike: dict[tuple[tuple[int, float], ...], list[int]] = {}
    for n, options in enumerate(offered):
        alike.setdefault(tuple((each.bits, each.noise) for each in options), []).append(n)
    ordered = list(chosen)
    for slots in alike.values():
        sizes = sorted((chosen[n].bits for n in slots), reverse=True)
        for n, bits in zip(slots, sizes, strict=True):
            ordered[n] = next(each for each in offered[n] if each.bits == bits)
    return ordered
