"""A plan: a format for each tensor, what it costs, and how it compares with one format for all."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import Assignment, Option, slot_name
from quantlab.plans.problem import Problem, build_problem
from quantlab.plans.request import Request
from quantlab.plans.solve import FrontPoint, least_noise, relaxed_front
from quantlab.records.table import Aggregated
from quantlab.text import format_size


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
    def bits(self) -> int:
        """Size of all tensors."""
        return sum(assignment.bits for assignment in self.assignments)

    @property
    def n_values(self) -> int:
        """Number of values."""
        return self.problem.n_values

    @property
    def bits_per_value(self) -> float:
        """Size per value, over all tensors."""
        return self.bits / max(self.n_values, 1)

    @cached_property
    def noise(self) -> float:
        """Weighted sum of the relative squared errors."""
        return math.fsum(assignment.noise for assignment in self.assignments)

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

    @cached_property
    def _front_arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        bits, noise = zip(*self.front, strict=True)
        return np.array(bits, float), np.array(noise)

    def noise_bound(self, bits: float) -> float:
        """Return the noise that no plan of a size can be below."""
        return float(np.interp(bits, *self._front_arrays))

    @cached_property
    def gap(self) -> float:
        """Excess of the noise over the bound for this budget, as a share of the bound."""
        bound = self.noise_bound(self.bits if self.budget is None else self.budget)
        return self.noise / bound - 1 if bound else 0.0

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
        limit = self.bits if self.budget is None else self.budget
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
    def counts(self) -> list[tuple[str, list[Assignment]]]:
        """Tensors in each format, with its name, the format of most bits a value first."""
        groups: dict[FormatSpec | str, list[Assignment]] = {}
        for assignment in self.assignments:
            groups.setdefault(assignment.spec or assignment.format, []).append(assignment)
        counts = [(group[0].format, group) for group in groups.values()]
        return sorted(counts, key=lambda count: (-_mean_bits(count[1]), count[0]))


def plan_within_budget(
    problem: Problem, budget: int, describe: Callable[[int], str] = "{} bits".format
) -> Plan:
    """Return the plan with the least noise within a budget in bits.

    Raises ValueError, with the range of sizes, if even the smallest plan is larger; `describe`
    says of so many values what budget was asked for.
    """
    smallest = Plan(problem, [min(slot) for slot in problem.slots])
    if smallest.bits > budget:
        least, most = (
            f"{bits / max(problem.n_values, 1):.6g} bits per value ({format_size(bits / 8)})"
            for bits in (smallest.bits, smallest.front[-1].bits)
        )
        raise ValueError(
            f"{describe(problem.n_values)} is below what there is: plans of this sweep have from "
            f"{least} to {most}"
        )
    budget = min(budget, smallest.front[-1].bits)  # more buys nothing
    # By name, so that the order of the checkpoint does not decide between equal choices.
    order = sorted(range(len(problem.slots)), key=lambda slot: slot_name(problem.slots[slot]))
    slots = [problem.slots[slot] for slot in order]
    chosen = dict(zip(order, least_noise(slots, budget - smallest.unmeasured_bits), strict=True))
    return Plan(problem, [chosen[slot] for slot in range(len(order))], budget)


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


def make_plan(sweep: Aggregated, request: Request) -> Plan:
    """Return the plan of a sweep for the budget or the bars of a request; raises ValueError."""
    problem = build_problem(sweep, request)
    if request.bar:
        return plan_for_bar(problem)
    return plan_within_budget(problem, request.budget(problem.n_values), request.budget_text)


def _mean_bits(assignments: Sequence[Assignment]) -> float:
    n_values = sum(assignment.tensor.size for assignment in assignments)
    return sum(assignment.bits for assignment in assignments) / max(n_values, 1)
