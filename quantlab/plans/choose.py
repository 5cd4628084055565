"""Which plan: the least noise within a budget, or the cheapest formats that meet a bar."""

from quantlab.plans.knapsack import least_noise
from quantlab.plans.mixture import Plan, meets
from quantlab.plans.options import Option
from quantlab.plans.slots import Slots
from quantlab.report.bar import Bar
from quantlab.text import format_size


def within_budget(found: Slots, budget: int) -> Plan:
    """Return the plan with the least noise within a budget in bits.

    Raises ValueError, with the range there is, where even the smallest plan is larger.
    """
    smallest = Plan(found, [min(slot.options) for slot in found.slots])
    if smallest.bits > budget:
        raise ValueError(_too_small(smallest, budget))
    budget = min(budget, smallest.front[-1].bits)  # more buys nothing
    by_name = sorted(range(len(found.slots)), key=lambda n: found.slots[n].name)
    options = [found.slots[n].options for n in by_name]
    chosen = dict(zip(by_name, least_noise(options, budget - smallest.fixed_bits), strict=True))
    return Plan(found, [chosen[n] for n in range(len(found.slots))], budget)


def _too_small(smallest: Plan, budget: int) -> str:
    asked, least, most = (
        f"{bits / max(smallest.n_values, 1):.6g} bits per value ({format_size(bits / 8)})"
        for bits in (budget, smallest.bits, smallest.front[-1].bits)
    )
    return f"{asked} is below what there is: plans of this sweep have from {least} to {most}"


def meeting(found: Slots, bar: Bar) -> Plan:
    """Return the plan of the cheapest format for each tensor that meets the bar.

    A tensor of which no format does stays as it is, unless it must have another.
    """
    chosen, unmet = [], list(found.lost)
    for slot in found.slots:
        formats = [option for option in slot.options if option.parts[0].row]
        good = [each for each in formats if all(meets(part, bar) for part in each.parts)]
        as_it_is = [option for option in slot.options if not option.parts[0].row]
        chosen.append(min([*good, *as_it_is], default=min(slot.options, key=_noise)))
        unmet += [tensor.name for tensor in slot.tensors if formats and as_it_is and not good]
    return Plan(found, chosen, bar=bar, unmet=unmet)


def _noise(option: Option) -> float:
    return option.noise
