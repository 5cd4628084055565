"""Tensors, formats and options: what a plan chooses among, with size and noise.

The noise of a tensor in a format is its weighted relative squared error, alpha * 10^(-SQNR/10), or
the KL of a model's answers with this tensor alone in this format; either adds up over tensors. A
slot is a sequence of options for one tensor, or for several that take one format together; a plan
takes one option of each.

Alphas are given or measured: a sweep of ``mode=noise`` with answers of each tensor alone has them,
as the KL of the answers is about ``alpha * 10^(-SQNR/10)`` where noise is small, so that SQNRs
predict a KL in bits.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab.formats.floats import float_width
from quantlab.formats.format import FormatSpec
from quantlab.records.answers import ANSWER_KL, with_answer_kl
from quantlab.records.record import Row
from quantlab.records.table import Aggregated, read_aggregate
from quantlab.report.choices import FormatResult, group_by
from quantlab.report.sentences import SENTENCE_TENSORS
from quantlab.text import first_few, label, near_misses

FILE_DTYPES = {"I": "int", "U": "uint"}  # NumPy's names of what safetensors and GGUF abbreviate
NOISE = "noise"  # the mode of a sweep that alphas are measured in
LEVEL = "mode.sqnr_db"
MAX_RATIO = 2.0  # of the alphas of one tensor at two sizes of noise; beyond it they are doubtful
WEIGHTS_HEAD = ["tensor", "alpha"]


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


@dataclass(frozen=True)
class Sensitivity:
    """The alphas of tensors that noise was added to one at a time.

    `levels` are the least and the greatest size of the noise, in dB; the alphas of the `doubtful`
    tensors differ more than `MAX_RATIO` times between sizes.
    """

    alphas: Mapping[str, float]
    levels: tuple[float, float]
    doubtful: Sequence[str]


def read_sensitivity(directory: Path, names: Collection[str]) -> Sensitivity:
    """Compute the alphas of tensors from a sweep of noise, the geometric mean of all its sizes.

    Raises ValueError where a sweep has no noise or no answers, or lacks one of the tensors `names`.
    """
    sweep = read_aggregate(directory)
    if not any(row["mode"] == NOISE for row in sweep.rows):
        raise ValueError(
            f"{directory} is no sweep of noise: sweep with mode=noise mode.sqnr_db=30,40 model=... "
            "model.each=true"
        )
    rows = [row for row in with_answer_kl(sweep).rows if row["mode"] == NOISE]
    alphas = {
        name: [_compute_alpha(row) for row in tensor_rows]
        for name, tensor_rows in group_by(
            (row for row in rows if row[ANSWER_KL] is not None), lambda row: str(row["tensor"])
        ).items()
    }
    if missing := [label(name) for name in names if name not in alphas]:
        listed = ", ".join(first_few(missing, SENTENCE_TENSORS))
        raise ValueError(
            f"{directory} has no alpha of {len(missing)} of the {len(names)} tensors measured "
            f"({listed}): sweep noise over the same tensors"
        )
    levels = [float(FormatSpec.from_row(row).setting(LEVEL)) for row in rows]
    return Sensitivity(
        {name: _geometric_mean(alphas[name]) for name in names},
        (min(levels), max(levels)),
        [name for name in names if max(alphas[name]) > MAX_RATIO * min(alphas[name])],
    )


def _compute_alpha(row: Row) -> float:
    """Return KL over relative squared error; 0 for a tensor of zeros, which has no noise."""
    error = relative_error(row, "sqnr_db")
    return float(row[ANSWER_KL]) / error if error else 0.0


def _geometric_mean(alphas: Sequence[float]) -> float:
    """Return the geometric mean of those above 0; the KL of little noise may be lost in rounding.

    >>> _geometric_mean([1.0, 4.0, 0.0])
    2.0
    """
    logarithms = [math.log(alpha) for alpha in alphas if alpha > 0]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else 0.0


def parse_weights(
    weights: Mapping[str, float] | str | Path, names: Collection[str]
) -> Mapping[str, float]:
    """Return the alpha of each tensor, from a csv file whose first line is ``tensor,alpha`` too.

    Raises ValueError, with the line, if a tensor is none of `names` or is listed twice, or its
    alpha is no number from 0 up.
    """
    if isinstance(weights, Mapping):
        lines = [("weights", [name, str(alpha)]) for name, alpha in weights.items()]
    else:
        lines = _read_weight_lines(Path(weights))
    alphas: dict[str, float] = {}
    for where, line in lines:
        name, alpha = _parse_weight(line, where, names)
        if name in alphas:
            raise ValueError(f"{where}: '{label(name)}' stands there twice")
        alphas[name] = alpha
    return alphas


def _read_weight_lines(path: Path) -> list[tuple[str, list[str]]]:
    """Return the lines of a csv file, each with what to call it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        why = getattr(reason, "strerror", None) or reason
        raise ValueError(f"{path} cannot be read: {why}") from None
    if [cell.strip() for cell in head] != WEIGHTS_HEAD:
        raise ValueError(f"{path} must begin with the line {','.join(WEIGHTS_HEAD)}")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 2) if line]


def _parse_weight(line: list[str], where: str, names: Collection[str]) -> tuple[str, float]:
    if len(line) != 2:
        raise ValueError(f"{where}: a line is a tensor and its alpha, got {','.join(line)!r}")
    name, text = line
    if name not in names:
        near = near_misses(name, list(names))
        raise ValueError(f"{where}: the sweep has no tensor '{label(name)}': {near}")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha < math.inf:
        raise ValueError(f"{where}: the alpha of '{label(name)}' must be from 0 up, got {text!r}")
    return name, alpha
