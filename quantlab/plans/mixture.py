"""A plan: a format for each tensor, what it costs, and how it compares with one for all."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantlab.plans.options import Option, Part, Slot
from quantlab.plans.originals import Original
from quantlab.plans.relaxed import Step, front
from quantlab.plans.slots import Slots
from quantlab.report.bar import Bar


@dataclass(frozen=True)
class Planned:
    """What one tensor is stored as; `measured` is False of one that the sweep left out."""

    tensor: Original
    part: Part
    measured: bool

    @property
    def bits_per_value(self) -> float:
        """The size for each value; 0 of an empty tensor."""
        return self.part.bits / self.tensor.size if self.tensor.size else 0.0


@dataclass(frozen=True)
class Mixture:
    """One format for each tensor, in bits of the whole checkpoint."""

    name: str
    bits: int
    noise: float


@dataclass(frozen=True)
class Plan:
    """A choice for each slot, within a `budget` in bits of the whole, or to meet a `bar`.

    `unmet` are the tensors of which no format meets the bar: they stay as they are.
    """

    found: Slots
    chosen: Sequence[Option]
    budget: int | None = None
    bar: Bar | None = None
    unmet: Sequence[str] = ()

    @cached_property
    def tensors(self) -> list[Planned]:
        """What each tensor is stored as, in the order of the checkpoint."""
        parts = {
            tensor.key: part
            for slot, option in zip(self.found.slots, self.chosen, strict=True)
            for tensor, part in zip(slot.tensors, option.parts, strict=True)
        }
        return [
            Planned(each, parts.get(each.key) or as_stored(each), each.key in parts)
            for each in self.found.tensors
        ]

    @cached_property
    def bits(self) -> int:
        """The size of all tensors."""
        return sum(each.part.bits for each in self.tensors)

    @cached_property
    def n_values(self) -> int:
        """How many values there are."""
        return sum(each.tensor.size for each in self.tensors)

    @cached_property
    def noise(self) -> float:
        """The weighted sum of the relative squared errors."""
        return math.fsum(each.part.noise for each in self.tensors)

    @cached_property
    def fixed_bits(self) -> int:
        """The size of the tensors about which there is no choice."""
        return sum(each.part.bits for each in self.tensors if not each.measured)

    @cached_property
    def front(self) -> list[Step]:
        """The mixtures of the relaxed problem, in bits of the whole checkpoint."""
        steps = front([slot.options for slot in self.found.slots])
        return [Step(step.bits + self.fixed_bits, step.noise) for step in steps]

    @cached_property
    def _curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        bits, noise = zip(*self.front, strict=True)
        return np.array(bits, float), np.array(noise)

    def bound(self, bits: float) -> float:
        """Return the noise that no plan of a size can be below."""
        return float(np.interp(bits, *self._curve))

    @cached_property
    def gap(self) -> float:
        """How far the noise is above the bound for this budget, as a share of the bound."""
        bound = self.bound(self.bits if self.budget is None else self.budget)
        return self.noise / bound - 1 if bound else 0.0

    @cached_property
    def uniform(self) -> list[Mixture]:
        """Each format for all tensors that were tried in it, the smallest first.

        Those that were not, or may not take it, stay as they are, or have what they must have.
        """
        found = (self._uniform(name) for name in self.formats)
        return sorted(found, key=lambda each: (each.bits, each.noise, each.name))

    def _uniform(self, name: str) -> Mixture:
        parts = [part for slot in self.found.slots for part in _in_format(slot, name)]
        noise = math.fsum(part.noise for part in parts)
        return Mixture(name, self.fixed_bits + sum(part.bits for part in parts), noise)

    @cached_property
    def formats(self) -> list[str]:
        """The formats that may be chosen somewhere."""
        options = (option for slot in self.found.slots for option in slot.options)
        return list(dict.fromkeys(each.format for each in options if each.parts[0].row))

    @property
    def best_uniform(self) -> Mixture | None:
        """The uniform format with the least noise that is not larger; None where all are."""
        limit = self.bits if self.budget is None else self.budget
        return min(
            (each for each in self.uniform if each.bits <= limit),
            key=lambda each: (each.noise, each.bits, each.name),
            default=None,
        )

    @property
    def cheapest_uniform(self) -> Mixture | None:
        """The smallest uniform format that meets the bar wherever it is taken; None where none."""
        return next((each for each in self.uniform if self._all_meet(each.name)), None)

    def _all_meet(self, name: str) -> bool:
        parts = [part for slot in self.found.slots for part in _in_format(slot, name)]
        return self.bar is not None and all(meets(part, self.bar) for part in parts)

    @property
    def counts(self) -> list[tuple[str, list[Planned]]]:
        """The tensors in each format, the format of most bits a value first."""
        groups: dict[str, list[Planned]] = {}
        for each in self.tensors:
            groups.setdefault(each.part.format, []).append(each)
        return sorted(groups.items(), key=lambda item: (-_bits_per_value(item[1]), item[0]))


def as_stored(tensor: Original) -> Part:
    """Return a tensor that stays as it is."""
    return Part(tensor.bits, 0.0, tensor.dtype, None)


def meets(part: Part, bar: Bar) -> bool:
    """Return whether a tensor meets a bar in its format, as it does where it stays as it is."""
    return part.row is None or not bar.missed(part.row)


def _in_format(slot: Slot, name: str) -> Iterator[Part]:
    """Yield the tensors of a slot in a format; those without such an option as they stay."""
    chosen = next((each for each in slot.options if each.format == name), None)
    as_it_is = next((each for each in slot.options if not each.parts[0].row), None)
    yield from (chosen or as_it_is or min(slot.options)).parts


def _bits_per_value(planned: Sequence[Planned]) -> float:
    n_values = sum(each.tensor.size for each in planned)
    return sum(each.part.bits for each in planned) / max(n_values, 1)
