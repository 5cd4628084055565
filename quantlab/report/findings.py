"""The content of a report: rows, their choices, and the tensors to look at closely."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from quantlab.records.record import Row, group_rows
from quantlab.report.bar import Bar, row_bars
from quantlab.report.choices import (
    INT8,
    TensorChoice,
    Widths,
    find_widths,
    quality,
    storage_choices,
)
from quantlab.report.stored import StoredRows, stored_rows

DETAILS = 6  # tensors that are looked at closely
HISTOGRAM = "hidden"  # the lab's choice (block F)


class TensorEntry(NamedTuple):
    """A row of the table, and what the record says of its tensor."""

    row: Row
    tensor: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """The content of the report of a sweep.

    `rows` and `levels` are those of its table, each row with its bar; `details` are looked at
    closely, `histogram` is the lab's; `failures` and `skipped` map a run or a tensor to the
    reason, `unmeasured` are the tensors that failed; `provenance` maps a text's key to what stands
    beside it.
    """

    rows: Sequence[Row]
    levels: Sequence[str]
    details: Sequence[TensorEntry]
    histogram: Sequence[TensorEntry]
    failures: Mapping[str, str]
    skipped: Mapping[str, str]
    unmeasured: Sequence[str]
    provenance: Mapping[str, str]

    @property
    def underflows(self) -> dict[str, int]:
        """Counts of values that became 0 as float32, by tensor; of several of a name, the most."""
        counts: dict[str, int] = {}
        for row in self.rows:
            count = row.get("underflowed") or 0
            counts[row["tensor"]] = max(count, counts.get(row["tensor"], 0))
        return counts

    @cached_property
    def stored(self) -> list[StoredRows]:
        """The tensors of each quantized file; none where there is no such file."""
        return stored_rows(self.rows, self.levels)

    @cached_property
    def bars(self) -> list[Bar]:
        """The bars by which rows are judged; more than one if runs differ in theirs."""
        return row_bars(self.rows)

    @cached_property
    def widths(self) -> list[Widths]:
        """The widths tried on each tensor and mode, those that need most bits first."""
        return find_widths(self.rows, self.levels)

    @cached_property
    def storage(self) -> list[TensorChoice]:
        """The formats tried on each tensor; none where there are but plain integers."""
        return storage_choices(self.rows, self.levels)


def choose_details(rows: Sequence[Row], levels: Sequence[str]) -> list[int]:
    """Choose the rows to look at closely, the worst first.

    Of each source, mode and what else was swept it is the tensor with the least SQNR, in 8 bits if
    they were tried, else in the width that comes first.
    """
    apart = [level for level in levels if level not in ("n_bits", "tensor")]
    worst = [_worst(rows, _of_one_width(rows, group)) for group in group_rows(rows, apart)]
    return sorted(worst, key=lambda n: quality(rows[n]))[:DETAILS]


def choose_histogram(rows: Sequence[Row]) -> list[int]:
    """Choose the rows of the lab's histogram: a mode each, of `hidden` or the first source.

    Of several tensors it is the one with the least SQNR in the first mode.
    """
    dist = next((row["dist"] for row in rows if row["dist"] == HISTOGRAM), rows[0]["dist"])
    candidates = _of_one_width(rows, [n for n, row in enumerate(rows) if row["dist"] == dist])
    first = [n for n in candidates if rows[n]["mode"] == rows[candidates[0]]["mode"]]
    name = rows[_worst(rows, first)]["tensor"]
    modes: dict[str, int] = {}
    for n in candidates:
        if rows[n]["tensor"] == name:
            modes.setdefault(rows[n]["mode"], n)
    return list(modes.values())


def _of_one_width(rows: Sequence[Row], among: Sequence[int]) -> list[int]:
    tried = [rows[n]["n_bits"] for n in among]
    width = INT8 if INT8 in tried else tried[0]
    return [n for n in among if rows[n]["n_bits"] == width]


def _worst(rows: Sequence[Row], among: Sequence[int]) -> int:
    return min(among, key=lambda n: quality(rows[n]))
