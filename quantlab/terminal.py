"""What a person reads in the terminal: one run's figures; a sweep's tables and verdict."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantlab.bar import Bar, Row
from quantlab.record import as_text
from quantlab.tensor import label
from quantlab.texts import Texts
from quantlab.verdict import (
    answers,
    cell,
    groups,
    quality,
    rank,
    sentences,
    the_bar,
    unmeasured,
)

if TYPE_CHECKING:  # a single run prints its figures without pandas
    from quantlab.files import Entry
    from quantlab.record import Record
    from quantlab.report import Findings

WIDTH = 100  # columns
LONGEST = 60  # rows; beyond them a terminal is the wrong place
FEW = 12  # predictions, likewise
SHORT = 20  # characters of what a run is called by
MOST = 20  # verdicts
WORST = 3  # of a run's tensors a terminal shows those that suffer most
MEASURED = {
    "mae": ".2e",
    "max_err": ".2e",
    "rel_err": ".1%",
    "cos_sim": ".7f",
    "n_codes": "d",
    "sqnr_db": ".2f",
    "zeroed": ".1%",
}
RATIOS = {key: MEASURED[key] for key in ("sqnr_db", "rel_err", "zeroed", "cos_sim", "n_codes")}
PREDICTED = {"scale": ".3g", "mae": ".3g", "sqnr_db": ".1f", "landmark_rel_err": ".1%"}
NUMBER = re.compile(r"[-+\d.,]+(e[-+]\d+)?%?|–|inf|.+ → .+")
MET, MISSED = "green", "yellow"
Cell = str | Text


def render(*parts: Table | str) -> str:
    """Return tables, at most `WIDTH` columns wide, and text, a blank line between.

    Only a terminal is given colours.
    """
    console = Console(width=WIDTH, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        for number, part in enumerate(part for part in parts if part):
            if number:
                console.print()
            console.print(part, soft_wrap=isinstance(part, str))
    return re.sub(r" +$", "", captured.get().rstrip("\n"), flags=re.MULTILINE)


def listing(entries: Sequence["Entry"]) -> str:
    """Return what a file of tensors holds, a line each, chosen or why not."""
    rows = [
        (label(each.name), str(list(each.shape)), each.dtype, f"{each.size:,}", _choice(each))
        for each in entries
    ]
    return render(_table(["tensor", "shape", "dtype", "elements", ""], rows))


def _choice(entry: "Entry") -> str:
    return f"left out: {entry.left_out}" if entry.left_out else "chosen"


def figures(one: "Record") -> str:
    """Return the figures of one run: of one tensor all, of many those that decide, worst first."""
    tensors = one["tensors"]
    if len(tensors) == 1:
        return "\n".join(_figure_lines(one, *next(iter(tensors.items()))))
    measured = {name: tensor["measured"] for name, tensor in tensors.items()}
    worst = sorted(tensors, key=lambda name: quality(measured[name]))
    rows = [
        (label(name), f"{tensors[name]['n_elements']:,}", *_ratios(measured[name]))
        for name in worst[:LONGEST]
    ]
    left_out = [f"... and {len(worst) - LONGEST} more, in record.json"] * (len(worst) > LONGEST)
    table = render(_table(["tensor, worst first", "elements", *RATIOS], rows))
    return "\n".join([table, *left_out, *_skipped(one["skipped"], Texts("en"))])


def _figure_lines(one: "Record", name: str, tensor: dict[str, Any]) -> Iterator[str]:
    yield f"{label(name)} {tensor['shape']}, {one['mode']}, {one['n_bits']} bits"
    predicted = tensor["predicted"] or {}
    for key, value in (tensor["params"] | tensor["measured"] | tensor["rank"]).items():
        note = f"   {tensor['reasons'][key]}" if key in tensor["reasons"] else ""
        if key in predicted:
            note = f"   predicted {cell(predicted[key], '.6g')}"
        yield f"  {key:<20}{cell(value, '.6g'):>14}{note}"


def sweep(found: "Findings", files: Sequence[Path], t: Texts) -> str:
    """Return the tables of a sweep, its verdict, its failures and where its files are."""
    return render(
        *_tables(found, t),
        "\n".join(_skipped(found.skipped, t)),
        "\n".join(_failures(found.failures, t)),
        "\n".join(map(str, dict.fromkeys(map(_told, files)))),
    )


def _told(path: Path) -> Path:
    """Return a file, or for all pictures the directory that holds them."""
    return path.parent if path.parent.name == "plots" else path


def _tables(found: "Findings", t: Texts) -> Iterator[Table | str]:
    rows, levels = found.rows, found.levels
    if not rows:
        return
    if "tensor" in levels:
        levels = [level for level in levels if level != "tensor"]
        runs = _runs(rows, levels)
        yield overview(runs, levels, t)
        yield t("worst_tensors", n=WORST)
        yield worst(runs, levels)
    else:
        yield measured(rows, levels, found.bar, t)
        if len(rows) > LONGEST:
            yield t("more_rows", n=len(rows) - LONGEST)
        believed = "predicted_scale" in rows[0]
        if believed and len(rows) <= FEW:
            yield t("predicted_measured")
            yield predicted(rows, levels)
        elif believed:
            yield t("predicted_elsewhere")
    yield "\n".join(_verdicts(found, t))


def _verdicts(found: "Findings", t: Texts) -> Iterator[str]:
    yield from (f"{question} {answer}" for question, answer in answers(found.verdicts, t))
    said = list(sentences(found.verdicts, found.levels, t))
    yield from said[:MOST]
    if len(said) > MOST:
        yield t("more_verdicts", n=len(said) - MOST)
    if found.unmeasured:
        yield unmeasured(found.unmeasured, t)
    yield the_bar(found.bar, t)


def measured(rows: Sequence[Row], levels: Sequence[str], bar: Bar, t: Texts) -> Table:
    """Return the figures that decide, a row a tensor and run."""
    lines = [
        (
            *_named(row, levels),
            *(_judged(key, spec, row, bar) for key, spec in MEASURED.items()),
            Text(rank(row, t), MET if row["top_order_kept"] else MISSED),
        )
        for row in rows[:LONGEST]
    ]
    return _table([*_heads(levels), *MEASURED, t("head_top_k")], lines)


def _judged(key: str, spec: str, row: Row, bar: Bar) -> Cell:
    text = cell(row[key], spec)
    if key not in bar.criteria:
        return text
    return Text(text, MISSED if key in bar.missed(row) else MET)


def predicted(rows: Sequence[Row], levels: Sequence[str]) -> Table:
    """Return what theory said beside what came out, a row a tensor and run."""
    lines = [
        (
            *_named(row, levels),
            *(
                f"{cell(row[f'predicted_{key}'], spec)} → {cell(row[key], spec)}"
                for key, spec in PREDICTED.items()
            ),
        )
        for row in rows
        if row["predicted_scale"] is not None
    ]
    return _table([*_heads(levels), *PREDICTED], lines)


def _runs(rows: Sequence[Row], levels: Sequence[str]) -> list[list[Row]]:
    """Return the rows of each run, the tensors that suffer most first."""
    return [sorted((rows[n] for n in run), key=quality) for run in groups(rows, levels)]


def overview(runs: Sequence[list[Row]], levels: Sequence[str], t: Texts) -> Table:
    """Return a row a run: how its tensors fared, the middle one and the worst."""
    lines = [
        (
            *_named(rows[0], levels),
            str(len(rows)),
            str(sum(row["top_order_kept"] for row in rows)),
            cell(median(map(quality, rows)), ".2f"),
            cell(rows[0]["sqnr_db"], ".2f"),
            label(rows[0]["tensor"]),
        )
        for rows in runs
    ]
    heads = ("head_tensors", "head_in_order", "head_median", "head_least", "head_worst")
    return _table([*_heads(levels), *map(t, heads)], lines)


def worst(runs: Sequence[list[Row]], levels: Sequence[str]) -> Table:
    """Return the figures that decide of the worst tensors of each run."""
    lines = [
        (*_named(row, levels), label(row["tensor"]), *_ratios(row))
        for rows in runs
        for row in rows[:WORST]
    ]
    return _table([*_heads(levels), "tensor", *RATIOS], lines[:LONGEST])


def _failures(reasons: Mapping[str, str], t: Texts) -> Iterator[str]:
    if len(reasons) > 1:
        yield t("failures", n=len(reasons))
    grouped = grouped_by_reason(reasons, t)
    yield from (t("failed", who=who, why=why) for who, why in grouped[:LONGEST])
    if len(grouped) > LONGEST:
        yield t("more_lines", n=len(grouped) - LONGEST)


def grouped_by_reason(reasons: Mapping[str, str], t: Texts) -> list[tuple[str, str]]:
    """Return each reason once, and whose it is: the first, and how many more."""
    groups: dict[str, list[str]] = {}
    for who, why in reasons.items():
        groups.setdefault(why, []).append(who)
    return [
        (who[0] if len(who) == 1 else t("and_more", first=who[0], n=len(who) - 1), why)
        for why, who in groups.items()
    ]


def _skipped(reasons: Mapping[str, str], t: Texts) -> Iterator[str]:
    for name, why in list(reasons.items())[:WORST]:
        yield t("left_out", name=label(name), why=why)
    if len(reasons) > WORST:
        yield t("more_left_out", n=len(reasons) - WORST)


def _ratios(figures: Row) -> Iterator[str]:
    return (cell(figures[key], spec) for key, spec in RATIOS.items())


def _named(row: Row, levels: Sequence[str]) -> tuple[str, ...]:
    return tuple(label(as_text(row[level]), SHORT) for level in levels)


def _heads(levels: Sequence[str]) -> list[str]:
    """Return what stands over levels, swept keys in lines as narrow as their values."""
    return ["bits" if level == "n_bits" else re.sub(r"([._])", r"\1\n", level) for level in levels]


def _table(heads: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> Table:
    """Align words to the left and numbers to the right; only words may be broken."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, head in enumerate(heads):
        cells = [row[column] for row in rows]
        numeric = all(NUMBER.fullmatch(str(each)) for each in cells)
        table.add_column(
            head,
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="ellipsis" if numeric else "fold",
        )
    for row in rows:
        table.add_row(*row)
    return table
