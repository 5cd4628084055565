"""How few bits each tensor needs, and the sentences that say so."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from typing import Any

from quantlab.bar import Bar, Row
from quantlab.record import as_text
from quantlab.tensor import printable
from quantlab.texts import Texts

REASONS = 4  # of an answer; more nobody reads
NULL = "–"  # what stands for a figure that does not exist
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
    """Return the verdict of each tensor and mode, the worst first; `levels` nest the table."""
    found = []
    for places in groups(rows, [level for level in levels if level != "n_bits"]):
        widths = sorted((rows[n] for n in places), key=lambda row: row["n_bits"])
        run = row_name(widths[0], levels, run=True)
        found.append(Verdict(row_name(widths[0], levels), run, widths, bar))
    return sorted(found, key=_worst_first)


def groups(rows: Sequence[Row], levels: Sequence[str]) -> list[list[int]]:
    """Return where the rows stand that agree in some levels, in the order of the first of them."""
    found: dict[tuple[str, ...], list[int]] = {}
    for n, row in enumerate(rows):
        found.setdefault(tuple(as_text(row[level]) for level in levels), []).append(n)
    return list(found.values())


def row_name(row: Row, levels: Sequence[str], *, run: bool = False) -> str:
    """Say which tensor and mode a row is of, then what else was swept but the width.

    Of a `run` it says which source and mode.
    """
    rest = [level for level in levels if level not in ("dist", "mode", "tensor", "n_bits")]
    settings = [f"{level}={as_text(row[level])}" for level in rest]
    return ", ".join(map(printable, [row["dist" if run else "tensor"], row["mode"], *settings]))


def _worst_first(each: Verdict) -> tuple[float, float]:
    return -(each.bits or math.inf), quality(each.rows[-1])


def quality(figures: Row) -> float:
    """Return the SQNR to rank by, in dB; a perfect round trip, which has none, ranks first."""
    return math.inf if figures["sqnr_db"] is None else figures["sqnr_db"]


def sentences(found: Sequence[Verdict], levels: Sequence[str], t: Texts) -> Iterator[str]:
    """Yield what to quote: a sentence a tensor and mode, or a run's name for one of many."""
    if "tensor" not in levels:
        yield from (sentence(each, t) for each in found)
        return
    runs: dict[str, list[Verdict]] = {}
    for each in found:
        runs.setdefault(each.run, []).append(each)
    yield from (_summary(each, t) for each in runs.values())


def sentence(each: Verdict, t: Texts) -> str:
    """Say how few bits a tensor needs, and by which figures."""
    row, tried = each.decisive, [row["n_bits"] for row in each.rows]
    words = {"name": each.name, "bits": row["n_bits"], "tried": widths(tried, t)}
    many = "" if len(tried) > 1 else "_only"
    if each.bits is None:
        return t(f"misses{many}", **words, missed=_missed(row, each.bar, t))
    gaps = each.gaps(each.bar.criteria)
    text = t(f"meets{many}", **words, figures=_figures(row, each.bar, t))
    return text + (t("gap", widths=widths(gaps, t)) if gaps else "")


def _summary(found: Sequence[Verdict], t: Texts) -> str:
    """Say how many tensors of a run meet the bar, each criterion, and which is worst off."""
    worst, bar = found[0], found[0].bar
    counts = [
        f"{criterion(key, asked, t)}: {sum(each.fewest([key]) is not None for each in found)}"
        for key, asked in bar.criteria.items()
    ]
    return t(
        "summary",
        name=worst.run,
        met=sum(each.bits is not None for each in found),
        n=len(found),
        widest=max(row["n_bits"] for each in found for row in each.rows),
        counts=", ".join(counts),
        worst=printable(worst.rows[0]["tensor"]),
        bits=worst.decisive["n_bits"],
        figures=_told(worst.decisive, bar, t),
    )


def answers(found: Iterable[Verdict], t: Texts) -> Iterator[tuple[str, str]]:
    """Yield the questions that the catalogue has of a source, and what its 8-bit figures answer.

    The answer is yes where some mode meets the bar whatever else was swept.
    """
    asked: dict[str, dict[str, list[Verdict]]] = {}
    for each in found:
        dist, mode = each.rows[0]["dist"], each.rows[0]["mode"]
        if INT8 in each.missed and f"question_{dist}" in t:
            asked.setdefault(dist, {}).setdefault(mode, []).append(each)
    for dist, modes in asked.items():
        runs = [each for mode in modes.values() for each in mode]
        meeting = [mode for mode in modes.values() if not any(each.missed[INT8] for each in mode)]
        yes = [each for mode in meeting for each in mode]
        told = yes or [each for each in runs if each.missed[INT8]]
        said = [
            f"{each.name}: {_told(row, each.bar, t)}"
            for each in told
            for row in each.rows
            if row["n_bits"] == INT8
        ]
        reasons = "; ".join(_first(said, t))
        yield t(f"question_{dist}"), t("yes" if yes else "no", reasons=reasons)


def unmeasured(names: Sequence[str], t: Texts) -> str:
    """Say which tensors have no verdict, if any."""
    said = _first([*map(printable, names)], t)
    return t("unmeasured", names=", ".join(said)) if said else ""


def _first(said: Sequence[str], t: Texts) -> list[str]:
    """Return as many as anybody reads, and how many more there are."""
    more = len(said) - REASONS
    return [*said[:REASONS], *([t("more_reasons", n=more)] if more > 0 else ())]


def _told(row: Row, bar: Bar, t: Texts) -> str:
    return _missed(row, bar, t) if bar.missed(row) else _figures(row, bar, t)


def the_bar(bar: Bar, t: Texts) -> str:
    """Return the bar, every criterion with its threshold."""
    asked = "; ".join(criterion(key, asked, t) for key, asked in bar.criteria.items())
    return t("the_bar", criteria=asked)


def criterion(key: str, asked: Any, t: Texts) -> str:
    """Return a criterion of the bar with its threshold."""
    return t(f"criterion_{key}", threshold=_threshold(key, asked, t))


def _figures(row: Row, bar: Bar, t: Texts) -> str:
    said = [_figure(f"is_{key}", key, row, t) for key in bar.criteria]
    return ", ".join([*said, *_zeroed(row, t)])


def _missed(row: Row, bar: Bar, t: Texts) -> str:
    said = [_figure(f"missed_{key}", key, row, t, bar) for key in bar.missed(row)]
    return ", ".join([*said, *_zeroed(row, t)])


def _figure(text: str, key: str, row: Row, t: Texts, bar: Bar | None = None) -> str:
    if key == "top_order":
        said = rank(row, t) + t("rank_set" if row["top_worst"] == 1 else "rank_edge")
        return t(text, k=row["top_k"], rank=said)
    if bar is None:
        return t(text, value=_value(key, row[key], t))
    value, asked = row[key], bar.criteria[key]
    digits = 3 if value is None else _digits(value, asked)
    return t(text, value=_value(key, value, t, digits), threshold=_threshold(key, asked, t))


def _digits(value: float, asked: float) -> int:
    """Return how many digits tell a figure from a threshold that it misses, 3 or more."""
    return next(n for n in range(3, 18) if f"{value:.{n}g}" != f"{asked:.{n}g}")


def _zeroed(row: Row, t: Texts) -> list[str]:
    return [t("zeroed", value=percent(row["zeroed"], t))] if row["zeroed"] else []


def rank(row: Row, t: Texts) -> str:
    """Say what became of the top k, however ties are broken."""
    if row["top_order_kept"]:
        return t("rank_in_order")
    said = [t(f"rank_{kind}", n=n) for kind in ("swapped", "merged") if (n := row[f"top_{kind}"])]
    if row["top_worst"] < 1:
        least, most = f"{100 * row['top_worst']:.3g}", percent(row["top_best"], t)
        said.append(t("rank_kept", worst=least, best=most))
    return ", ".join(said)


def _threshold(key: str, asked: Any, t: Texts) -> str:
    """Return a threshold just as it was given: rounded, a figure may seem to meet it."""
    if key == "top_order":
        return ""
    share = key == "rel_err"
    exact = Decimal(repr(asked)) * (100 if share else 1)
    return t("percent" if share else "decibels", value=f"{exact.normalize():f}")


def _value(key: str, value: Any, t: Texts, digits: int = 3) -> str:
    if value is None:
        return t(f"none_{key}")
    if key == "rel_err":
        return percent(value, t, digits)
    return t("decibels", value=f"{value:.{max(digits, 4)}g}")


def percent(share: float | None, t: Texts, digits: int = 3) -> str:
    """Return a share as a percentage."""
    return NULL if share is None else t("percent", value=f"{100 * share:.{digits}g}")


def figure(value: Any, spec: str, t: Texts) -> str:
    """Return a figure as text; the spec ``%`` is a share."""
    return percent(value, t) if spec == "%" else cell(value, spec)


def cell(value: Any, spec: str) -> str:
    """Format a number; null is a dash, anything else is itself."""
    if value is None:
        return NULL
    return format(value, spec) if type(value) in (int, float) else str(value)


def widths(tried: Sequence[int], t: Texts) -> str:
    """List widths, those that follow each other by their ends."""
    steps = {after - before for before, after in pairwise(tried)}
    if len(tried) > 2 and steps == {1}:
        return t("range", first=tried[0], last=tried[-1])
    return ", ".join(map(str, tried))
