"""What a runtime is asked: does it have this format, what does it store, in what terms."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

from quantlab.plans.originals import Original
from quantlab.records.record import Row


class Taken(NamedTuple):
    """A tensor and the row of the format that it takes; None where it stays as it is."""

    tensor: Original
    row: Row | None


class Runtime(ABC):
    """A runtime, its recipe and the file that holds it."""

    name: str
    file: str  # the name of the recipe's file
    hint: str  # what to sweep for formats that it has
    least_dims = 2  # of a tensor that it quantizes

    def takes(self, tensor: Original) -> bool:
        """Return whether it quantizes a tensor of this name and shape at all."""
        return len(tensor.shape) >= self.least_dims

    @abstractmethod
    def settings(self, row: Row) -> Any:
        """Return the format of a row in its own terms; None where it has none like it."""

    def bits(self, row: Row) -> int:
        """Return the size of a row's tensor as it stores it."""
        return bits_of(row)

    @abstractmethod
    def recipe(self, taken: Iterable[Taken]) -> bytes:
        """Return the recipe; raises ValueError where it cannot name a tensor."""

    @abstractmethod
    def usage(self, path: str) -> str:
        """Return how the recipe at a path is used, in a line."""


def bits_of(row: Row) -> int:
    """Return the size of a row's tensor, with codes, scales, zero points and constants."""
    return round(row["bits_per_value"] * row["n_elements"])


def is_plain_range(row: Row) -> bool:
    """Return whether scales are taken from the largest magnitude, as runtimes take theirs."""
    return row.get("range") in (None, "absmax")


def has_whole_groups(row: Row, size: int) -> bool:
    """Return whether groups of a size divide the rows of a tensor, as runtimes demand."""
    return bool(size * row["n_scales"] == row["n_elements"])


def module_name(tensor: str) -> str:
    """Return the name of the module whose weight a tensor is."""
    return tensor.removesuffix(".weight")
