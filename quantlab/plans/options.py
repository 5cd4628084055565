"""Tensors, formats and options: what a plan chooses among, with size and noise.

The noise of a tensor in a format is its weighted relative squared error, alpha * 10^(-SQNR/10), or
the KL of a model's answers with this tensor alone in this format; either adds up over tensors. A
slot is a sequence of options for one tensor, or for several that take one format together; a plan
takes one option of each.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantlab.formats.floats import float_width
from quantlab.formats.format import FormatSpec
from quantlab.records.answers import ANSWER_KL
from quantlab.records.record import Row
from quantlab.records.table import Aggregated
from quantlab.report.choices import FormatResult
from quantlab.text import label

FILE_DTYPES = {"I": "int", "U": "uint"}  # NumPy's names of what safetensors and GGUF abbreviate


@dataclass(frozen=True)
class Original:
    """A tensor of the checkpoint as its source stores it.

    `bits` is the size of all its values; `reason` says why it was not measured, None if it was.
    """

    dist: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int
    reason: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Source and name."""
        return self.dist, self.name

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """True if the values are floating-point numbers."""
        return "float" in self.dtype


@dataclass(frozen=True)
class Assignment:
    """One tensor in one format, or as it is stored if `result` is None.

    `bits` is the size of the whole tensor.
    """

    tensor: Original
    bits: int
    noise: float = 0.0
    result: FormatResult | None = None

    @property
    def spec(self) -> FormatSpec | None:
        """Format of the tensor; None if it stays as it is stored."""
        return self.result.spec if self.result else None

    @property
    def row(self) -> Row | None:
        """Row of the sweep's table; None if the tensor stays as it is stored."""
        return self.result.row if self.result else None

    @property
    def meets(self) -> bool:
        """True if the bar of its row is met, or the tensor stays as it is stored."""
        return self.result is None or self.result.meets

    @property
    def format(self) -> str:
        """Name of the format; the dtype of a tensor that stays as it is stored."""
        return self.spec.name if self.spec else self.tensor.dtype

    @property
    def bits_per_value(self) -> float:
        """Size per value; 0 for an empty tensor."""
        return self.bits / self.tensor.size if self.tensor.size else 0.0


@dataclass(frozen=True, order=True)
class Option:
    """One format for the tensors of a slot; `spec` is None if they stay as they are stored.

    Options sort by preference: fewer bits, then less noise, then by name.
    """

    bits: int
    noise: float
    format: str
    spec: FormatSpec | None = field(default=None, compare=False)
    assignments: tuple[Assignment, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, assignments: Sequence[Assignment], spec: FormatSpec | None = None) -> "Option":
        """Sum the size and noise of tensors that have `spec`, or stay as they are stored."""
        names = dict.fromkeys(assignment.format for assignment in assignments)
        return cls(
            sum(assignment.bits for assignment in assignments),
            math.fsum(assignment.noise for assignment in assignments),
            spec.name if spec else ", ".join(names),
            spec,
            tuple(assignments),
        )

    @property
    def bits_per_value(self) -> float:
        """Size per value, over all tensors."""
        return self.bits / max(sum(part.tensor.size for part in self.assignments), 1)

    @property
    def meets(self) -> bool:
        """True if every tensor meets the bar of its row, or stays as it is stored."""
        return all(assignment.meets for assignment in self.assignments)


Slot = Sequence[Option]


def slot_name(slot: Slot) -> str:
    """Return the name of the first tensor of a slot."""
    return slot[0].assignments[0].tensor.name


def total_bits(options: Iterable[Option]) -> int:
    """Sum the sizes of options."""
    return sum(option.bits for option in options)


def read_originals(sweep: Aggregated) -> list[Original]:
    """Return the tensors of a sweep in their order.

    Raises ValueError if a source has two of one name, as in a sweep over checkpoints or seeds.
    """
    tensors = [_original(entry) for entry in sweep.tensors]
    counts = Counter(tensor.key for tensor in tensors).most_common(1)
    (dist, name), times = counts[0] if counts else (("", ""), 0)
    if times > 1:
        raise ValueError(
            f"{sweep.directory} holds {times} tensors '{label(name)}' of {dist}: a plan is of one "
            "checkpoint, so sweep formats alone"
        )
    return tensors


def _original(entry: Mapping[str, Any]) -> Original:
    shape, n_bytes = tuple(entry["shape"]), entry.get("n_bytes")
    dtype = _numpy_name(entry["dtype"])
    bits = math.prod(shape) * float_width(dtype) if n_bytes is None else 8 * n_bytes
    return Original(entry["dist"], entry["name"], dtype, shape, bits, entry.get("reason"))


def _numpy_name(dtype: str) -> str:
    """Return NumPy's name of a dtype that a file calls otherwise, as ``I64``.

    >>> _numpy_name("I64"), _numpy_name("float32")
    ('int64', 'float32')
    """
    match = re.fullmatch(r"([IU])(8|16|32|64)", dtype)
    return f"{FILE_DTYPES[match[1]]}{match[2]}" if match else dtype


def relative_error(row: Row, figure: str) -> float:
    """Return the relative squared error, 10^(-SQNR/10), or a KL itself; 0 if nothing was lost.

    Infinite for a row that lost something and has no figure, as an all-zero tensor may.
    """
    if row.get(figure) is None:
        return math.inf if row["max_err"] else 0.0
    if figure == ANSWER_KL:
        return float(row[figure])
    return 10.0 ** (-float(row[figure]) / 10)
