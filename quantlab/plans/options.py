"""What may be chosen: of each tensor the formats tried, what they cost and the noise they add."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from quantlab.plans.originals import Original
from quantlab.records.record import Row
from quantlab.report.format_name import FORMAT

OF_FORMAT = (*FORMAT, "stored_dtype")  # what of a row says how its tensor is stored


@dataclass(frozen=True)
class Part:
    """One tensor in one format; `row` is that of the table, None where it stays as it is.

    `noise` is the weighted relative squared error.
    """

    bits: int
    noise: float
    format: str
    row: Row | None


@dataclass(frozen=True, order=True)
class Option:
    """One format for the tensors of a slot, and each of these in it.

    Options sort as one would choose: fewer bits first, then less noise, then by name.
    """

    bits: int
    noise: float
    format: str
    parts: tuple[Part, ...] = field(default=(), compare=False)


def option(*parts: Part) -> Option:
    """Return some tensors in one format as an option: what they cost and add together."""
    names = ", ".join(dict.fromkeys(part.format for part in parts))
    noise = math.fsum(part.noise for part in parts)
    return Option(sum(part.bits for part in parts), noise, names, parts)


@dataclass(frozen=True)
class Slot:
    """Tensors that take one format together, and the options that they have."""

    tensors: tuple[Original, ...]
    options: tuple[Option, ...]

    @property
    def name(self) -> str:
        """The name of the first tensor."""
        return self.tensors[0].name


def relative_error(row: Row, by: str) -> float:
    """Return the relative squared error, 10^(-SQNR/10); 0 where nothing is lost.

    A row without a figure that lost something, as all-zero tensors may, has an infinite one.
    """
    if row.get(by) is None:
        return math.inf if row["max_err"] else 0.0
    return 10.0 ** (-float(row[by]) / 10)


def total_bits(options: Sequence[Option]) -> int:
    """Return the size of a choice."""
    return sum(each.bits for each in options)
