"""The relaxed problem, in which a slot may be divided between two options: a bound and a price.

Its solution is the lower convex hulls of all slots, their steps taken in the order of what a bit
buys (Sinha and Zoltners, "The multiple-choice knapsack problem", Operations Research 27, 1979). No
choice is below its noise.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from quantlab.plans.options import Option, total_bits

Offered = Sequence[Sequence[Option]]  # of each slot what may be chosen


class Step(NamedTuple):
    """A point of the front: its size, and the noise that is left."""

    bits: int
    noise: float


def undominated(options: Sequence[Option]) -> list[Option]:
    """Return the options that no other beats in bits and noise, the smallest first."""
    kept: list[Option] = []
    for option in sorted(options):
        if math.isfinite(option.noise) and (not kept or option.noise < kept[-1].noise):
            kept.append(option)
    return kept


def relaxed_choice(offered: Offered, budget: int) -> tuple[list[Option], float]:
    """Return what the relaxed problem takes whole, and how much noise a bit more takes away."""
    best = [options[0] for options in offered]
    spare = budget - total_bits(best)
    for slot, before, after in _steps(offered):
        spare -= after.bits - before.bits
        if spare < 0:
            return best, -_slope(before, after)
        best[slot] = after
    return best, 0.0


def front(offered: Offered) -> list[Step]:
    """Return the choices at which the relaxed problem divides no slot, the smallest first."""
    offered = [undominated(options) for options in offered]
    bits = sum(options[0].bits for options in offered)
    # Exact sums: what is left at the end of the front is far below the rounding of its beginning.
    noise = sum((Fraction(options[0].noise) for options in offered), Fraction(0))
    found = [Step(bits, float(noise))]
    for _, before, after in _steps(offered):
        bits += after.bits - before.bits
        noise += Fraction(after.noise) - Fraction(before.noise)
        found.append(Step(bits, float(noise)))
    return found


def relaxed_noise(steps: Sequence[Step], budget: float) -> float:
    """Return the noise of the relaxed problem within a budget; NaN below the smallest choice."""
    bits, noise = zip(*steps, strict=True)
    return float(np.interp(budget, np.array(bits, float), noise, left=math.nan))


def _steps(offered: Offered) -> list[tuple[int, Option, Option]]:
    """Return the steps of all hulls with their slots, those first that take most noise a bit."""
    found = [
        (slot, *pair) for slot, options in enumerate(offered) for pair in pairwise(_hull(options))
    ]
    return sorted(found, key=lambda step: _slope(*step[1:]))


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
