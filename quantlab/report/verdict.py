"""How few bits each tensor needs."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from quantlab.records.record import Row, group_rows
from quantlab.report.bar import Bar
from quantlab.report.format_name import FORMAT, has_setting, varied_choices
from quantlab.text import as_text, printable

INT8 = 8  # the width that the lab's question is about


@dataclass(frozen=True)
class Verdict:
    """How one tensor fares in one mode; `rows` are its widths, the narrowest first.

    `name` says which tensor and mode, `run` which source and mode, and what else was swept.
    """

    name: str
    run: str
    rows: list[Row]
    bar: Bar

    @cached_property
    def missed(self) -> dict[int, set[str]]:
        """The criteria of the bar that each width misses, the narrowest first."""
        return {row["n_bits"]: set(self.bar.missed(row)) for row in self.rows}

    @cached_property
    def bits(self) -> int | None:
        """The fewest bits tried that meet the bar; None where none does."""
        return self.fewest(self.bar.criteria)

    def fewest(self, criteria: Collection[str]) -> int | None:
        """Return the fewest bits tried that meet some of the bar's criteria."""
        return next((n for n, missed in self.missed.items() if missed.isdisjoint(criteria)), None)

    def gaps(self, criteria: Collection[str]) -> list[int]:
        """Return the widths that miss some of the bar's criteria, though fewer bits meet them."""
        least = self.fewest(criteria) or math.inf
        wider = {n: missed for n, missed in self.missed.items() if n > least}
        return [n for n, missed in wider.items() if not missed.isdisjoint(criteria)]

    @property
    def decisive(self) -> Row:
        """The row to quote: of the fewest bits that meet the bar, else of the widest."""
        return self.at(self.bits) or self.rows[-1]

    def at(self, n_bits: int | None) -> Row | None:
        """Return the row of a width, if it was tried."""
        return next((row for row in self.rows if row["n_bits"] == n_bits), None)


def verdicts(rows: Sequence[Row], levels: Sequence[str], bar: Bar) -> list[Verdict]:
    """Return the verdict of each tensor and mode, the worst first; `levels` nest the table.

    There is none of files, which have widths of their own.
    """
    found, chosen = [], [row for row in rows if row["n_bits"] is not None]
    for places in group_rows(chosen, [level for level in levels if level != "n_bits"]):
        widths = sorted((chosen[n] for n in places), key=lambda row: row["n_bits"])
        run = row_name(widths[0], levels, run=True)
        found.append(Verdict(row_name(widths[0], levels), run, widths, bar))
    return sorted(found, key=_worst_first)


def row_name(row: Row, levels: Sequence[str], *, run: bool = False) -> str:
    """Say which tensor and mode a row is of, then what else was swept but the width.

    Of a `run` it says which source and mode.
    """
    rest = [level for level in levels if level not in ("dist", "tensor", *FORMAT)]
    others = [f"{level}={as_text(row[level])}" for level in rest if has_setting(row, level)]
    settings = [*varied_choices(row, levels), *others]
    return ", ".join(map(printable, [row["dist" if run else "tensor"], row["mode"], *settings]))


def _worst_first(each: Verdict) -> tuple[float, float]:
    return -(each.bits or math.inf), quality(each.rows[-1])


def quality(figures: Row) -> float:
    """Return the SQNR to rank by, in dB; a perfect round trip, which has none, ranks first."""
    return math.inf if figures["sqnr_db"] is None else figures["sqnr_db"]
