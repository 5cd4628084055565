"""The interface of a runtime: which tensors it quantizes, which formats it has, and its recipe."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Any

import yaml

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import Assignment, Original
from quantlab.records import disk
from quantlab.records.record import Row

FORMAT_COLUMNS = (  # of results.csv, that say how a tensor is stored
    "mode", "n_bits", "block", "block_size", "scale_dtype", "range", "stored_dtype",
)  # fmt: skip
SCALE_BITS = 16  # of scales in the type of a model, which is float16 or bfloat16


class Runtime(ABC):
    """A runtime, its recipe and the file that holds it."""

    name: str
    file: str  # name of the recipe's file
    hint: str  # what to sweep for formats that it has
    scope: str  # checkpoints whose tensors it quantizes

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

    @abstractmethod
    def usage(self, path: str) -> str:
        """Return a line that uses the recipe at a path."""


class Generic(Runtime):
    """No runtime but tools of one's own: the settings of every format, as JSON."""

    name = "json"
    file = "plan.recipe.json"
    hint = "mode=glob(*)"
    scope = "any"
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

    def usage(self, path: str) -> str:
        """Return the path."""
        return path


def table_bits(row: Row) -> int:
    """Return the size of a row's tensor, with codes, scales, zero points and constants."""
    return round(row["bits_per_value"] * row["n_elements"])


def is_embedding(tensor: Original) -> bool:
    """Test whether a tensor is named as an embedding, which is no linear layer."""
    return "embed" in tensor.name


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


def integer_spec(
    assignment: Assignment,
    widths: Collection[int],
    blocks: Collection[str] = ("channel", "group"),
) -> FormatSpec | None:
    """Return the format of an assignment if it is of plain integers, None if it is none.

    That is ``sym`` or ``asym`` in one of `widths` and `blocks`.
    """
    spec = standard_spec(assignment)
    if spec is None or spec.mode not in ("sym", "asym"):
        return None
    return spec if spec.n_bits in widths and spec.block in blocks else None


def group_size(spec: FormatSpec) -> int:
    """Return the size of groups, -1 where a channel has one scale."""
    return spec.block_size or 0 if spec.block == "group" else -1


def integer_bits(assignment: Assignment, *, has_zero_points: bool) -> int:
    """Return the size of plain integers with scales of 16 bits; of another format as it is.

    Scales are of the type of a model, or of float16, and zero points of `n_bits`.
    """
    spec, row = assignment.spec, assignment.row
    if spec is None or row is None or spec.mode not in ("sym", "asym"):
        return assignment.bits
    n_bits = spec.n_bits or 0
    per_scale = SCALE_BITS + (n_bits if has_zero_points else 0)
    return n_bits * assignment.tensor.size + per_scale * int(row["n_scales"])


def to_yaml(value: Any) -> bytes:
    """Encode as YAML, in the order of its keys."""
    text: str = yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    return text.encode()


class _PlainDumper(yaml.SafeDumper):
    """Writes what stands in two places twice: not every reader follows aliases."""

    def ignore_aliases(self, _: Any) -> bool:
        """Return True for any value."""
        return True


def own_spec(assignment: Assignment, modes: Collection[str]) -> FormatSpec | None:
    """Return the format of an assignment if it is of a mode by the runtime's own rule.

    None if it is of another mode, or has settings beside those of its mode.
    """
    spec = assignment.spec
    if spec is None or spec.mode not in modes:
        return None
    return spec if all(key.startswith("mode.") for key, _ in spec.settings) else None
