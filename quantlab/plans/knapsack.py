"""The choice with the least noise within a budget: a multiple-choice knapsack, solved exactly.

The relaxed problem (``relaxed.py``) has a bound that no choice is below, and a price of a bit. At
this price each option has an excess, what it costs beyond the best of its slot, and a choice is
above the bound by its excesses and by the price of the bits it leaves unused.

Few options have an excess as small as the distance of the best choice from the bound. The search
combines these alone, slot by slot, and drops what another combination beats in bits and noise; it
starts with a small limit of excess and raises it until the best choice within is proven to be the
best of all (after Pisinger's core algorithm, "A minimal algorithm for the multiple-choice knapsack
problem", European Journal of Operational Research 83, 1995).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.plans.options import Option, total_bits
from quantlab.plans.relaxed import Offered, front, relaxed_choice, relaxed_noise, undominated

TIE = 1e-9  # of the noise; choices that differ by less are equal, and the smaller is taken
FIRST, RAISE = 1e-4, 8.0  # of the largest limit of excess the one to start with, and how it grows
STATES = 2**15  # combinations that are kept; checkpoints of a thousand tensors have a third of it


class Change(NamedTuple):
    """An option instead of the best of its slot at a price: bits more, and its excess."""

    slot: int
    option: Option
    bits: int
    excess: float


def least_noise(offered: Offered, budget: int) -> list[Option]:
    """Return the choice within a budget in bits that has the least noise, of equals the smallest.

    Of slots with the same options the first take the larger. Where more than `STATES` combinations
    are as good, as where all slots pay the same for a bit, some are dropped: then it is near the
    least. Raises ValueError where the smallest choice is above the budget.
    """
    offered = [undominated(options) for options in offered]
    smallest = sum(options[0].bits for options in offered)
    if smallest > budget:
        raise ValueError(f"the smallest choice has {smallest} bits, the budget {budget}")
    budget = min(budget, sum(options[-1].bits for options in offered))
    best, price = relaxed_choice(offered, budget)
    spare = budget - total_bits(best)
    bound = relaxed_noise(front(offered), budget)
    largest = price * spare * (1 + TIE) + TIE * bound  # that of a choice without any change
    limit = largest * FIRST
    while True:
        limit = min(limit, largest)
        changes = _search(_core(offered, best, price, limit), spare, price, limit, bound)
        if changes is not None or limit == largest:
            changed = {each.slot: each.option for each in changes or ()}
            chosen = [changed.get(n, option) for n, option in enumerate(best)]
            return _in_order(offered, chosen)
        limit *= RAISE


def _cost(option: Option, price: float) -> float:
    return option.noise + price * option.bits


def _core(
    offered: Offered, best: Sequence[Option], price: float, limit: float
) -> list[list[Change]]:
    """Return the changes whose excess is within a limit, of each slot that has any."""
    core = []
    for slot, (options, base) in enumerate(zip(offered, best, strict=True)):
        least = _cost(base, price)
        changes = [
            Change(slot, each, each.bits - base.bits, _cost(each, price) - least)
            for each in options
            if each is not base
        ]
        core.append([each for each in changes if each.excess <= limit])
    return [changes for changes in core if changes]


def _search(
    core: Sequence[Sequence[Change]], spare: int, price: float, limit: float, bound: float
) -> list[Change] | None:
    """Return the changes of the best choice, None where its excess might be above the limit."""
    core = sorted(core, key=lambda changes: -max(abs(each.bits) for each in changes))
    fewer, more = (_reach(core, end) for end in (min, max))
    bits, excess = np.zeros(1, np.int64), np.zeros(1)
    origins = []
    for n, changes in enumerate(core, 1):
        steps = [(0, 0.0), *((each.bits, each.excess) for each in changes)]
        states = len(bits)
        bits = np.concatenate([bits + step for step, _ in steps])
        excess = np.concatenate([excess + step for _, step in steps])
        unused = np.maximum(spare - bits - more[n], 0)
        possible = (bits + fewer[n] <= spare) & (excess + price * unused <= limit)
        kept = np.flatnonzero(possible)
        kept = kept[_unbeaten(bits[kept], excess[kept] - price * bits[kept])]
        kept = kept[:: len(kept) // STATES + 1]
        origins.append((kept % states, kept // states))
        bits, excess = bits[kept], excess[kept]
    total = np.where(bits <= spare, excess + price * (spare - bits), np.inf)
    if not total.size:
        return None
    most = total.min() + TIE * (bound + total.min())  # within which choices are equal
    if most > limit * (1 + TIE):
        return None
    smallest = int(np.argmax(total <= most))  # states stand in the order of their sizes
    return _trace(core, origins, smallest)


def _reach(core: Sequence[Sequence[Change]], end: Callable[[list[int]], int]) -> list[int]:
    """Return how many bits fewer, or more, the slots from each on may take at most."""
    reach = [0]
    for changes in reversed(core):
        reach.append(reach[-1] + end([0, *(each.bits for each in changes)]))
    return reach[::-1]


def _unbeaten(bits: NDArray[np.int64], noise: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return where the states stand that none beats in bits and noise, the smallest first."""
    order = np.argsort(bits, kind="stable")  # merges: each change of a slot is sorted already
    least = np.minimum.accumulate(noise[order])
    is_less = np.ones(len(order), bool)
    is_less[1:] = noise[order][1:] < least[:-1]
    return order[is_less]


def _trace(
    core: Sequence[Sequence[Change]],
    origins: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    state: int,
) -> list[Change]:
    """Return the changes that led to a state."""
    found = []
    for changes, (parents, choices) in zip(reversed(core), reversed(origins), strict=True):
        if choices[state]:
            found.append(changes[choices[state] - 1])
        state = int(parents[state])
    return found


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
