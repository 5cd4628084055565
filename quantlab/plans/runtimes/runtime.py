"""The interface of a runtime: which tensors it quantizes, which formats it has, and its recipe."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import Assignment, Original
from quantlab.records import disk
from quantlab.records.record import Row

FORMAT_COLUMNS = (  # of results.csv, that say how a tensor is stored
    "mode", "n_bits", "block", "block_size", "scale_dtype", "range", "stored_dtype",
)  # fmt: skip


class FileSize(NamedTuple):
    """The size of the file that a runtime makes, to the byte if it is exact."""

    n_bytes: int
    is_exact: bool = True


class Runtime(ABC):
    """A runtime, its recipe and the file that holds it."""

    name: str
    file: str  # name of the recipe's file
    hint: str  # what to sweep for formats that it has
    scope: str  # checkpoints whose tensors it quantizes
    call: str  # a line that uses the recipe at `path`, which is `quoted` for a shell

    axes: range | None = range(2, 3)  # numbers of axes of the layers' weights; None for any tensor

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why a tensor is not quantized, None if it is.

        The reason is ``dtype``, ``axes``, ``name``, ``layer`` or ``rule``; the texts of a report
        have a sentence ``plan_untaken_...`` for each.
        """
        if self.axes is None:
            return None
        if not tensor.is_float:
            return "dtype"
        is_layer = len(tensor.shape) in self.axes and tensor.name.endswith(".weight")
        return None if is_layer else "layer"

    @abstractmethod
    def config(self, assignment: Assignment) -> Any:
        """Return the format of an assignment in terms of the runtime, None if it has none."""

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size of a tensor as the runtime stores it."""
        return assignment.bits

    def file_size(self, assignments: Iterable[Assignment], path: str) -> FileSize | None:
        """Return the size of the file that the runtime makes of a checkpoint, None if unknown.

        Raises ValueError where the checkpoint cannot be read.
        """
        del assignments, path
        return None

    def module_configs(self, assignments: Iterable[Assignment]) -> dict[str, Any]:
        """Map the modules whose weights are quantized to their formats, None as they are stored."""
        return {
            part.tensor.name.removesuffix(".weight"): self.config(part)
            for part in assignments
            if self.refuse_tensor(part.tensor) is None
        }

    @abstractmethod
    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the recipe; raises ValueError if it cannot name a tensor."""

    def usage(self, path: str) -> str:
        """Return a line that uses the recipe at a path."""
        return self.call.format(path=path, quoted=shlex.quote(path))


class Generic(Runtime):
    """No runtime but tools of one's own: the settings of every format, as JSON."""

    name = "json"
    file = "plan.recipe.json"
    hint = "'mode=glob(*)'"
    scope = "any"
    call = "{path}"
    axes = None

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the settings of a format, without columns that it does not have."""
        row, spec = assignment.row, assignment.spec
        if row is None or spec is None:
            return None
        columns = {key: row[key] for key in FORMAT_COLUMNS if row.get(key) is not None}
        return columns | dict(spec.settings)

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the mapping from tensors to their settings; null leaves one as it is stored."""
        return disk.to_json({part.tensor.name: self.config(part) for part in assignments})


def table_bits(row: Row) -> int:
    """Return the size of a row's tensor, with codes, scales, zero points and constants."""
    return round(row["bits_per_value"] * row["n_elements"])


def standard_spec(assignment: Assignment) -> FormatSpec | None:
    """Return the format of an assignment, None if no runtime may have it.

    That is one with settings of its own or a range that is not the whole, or with groups that do
    not divide the last axis of the tensor.
    """
    spec = assignment.spec
    if spec is None or spec.settings or spec.range not in (None, "absmax"):
        return None
    is_divided = spec.block != "group" or assignment.tensor.shape[-1] % (spec.block_size or 1) == 0
    return spec if is_divided else None


def own_spec(assignment: Assignment, modes: Collection[str]) -> FormatSpec | None:
    """Return the format of an assignment if it is of a mode by the runtime's own rule.

    None if it is of another mode, or has settings beside those of its mode.
    """
    spec = assignment.spec
    if spec is None or spec.mode not in modes:
        return None
    return spec if all(key.startswith("mode.") for key, _ in spec.settings) else None
