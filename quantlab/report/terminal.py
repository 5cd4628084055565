"""Text for a terminal: a sweep's tables and verdict, a run's figures."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isinf
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from quantlab.formats.format import is_format_column
from quantlab.records.record import Record, Row, answer_figures, figures
from quantlab.records.rows import group_rows
from quantlab.report.answers import answer_sentences, answer_table, find_outputs
from quantlab.report.bar import Bar
from quantlab.report.choices import Findings, has_formats, quality, stored_rows
from quantlab.report.sentences import (
    answers,
    bar_text,
    failure_sentences,
    rank_text,
    skipped_sentences,
    stored_sentences,
    underflow_sentences,
    unmeasured_text,
    verdict_sentences,
)
from quantlab.report.tables import (
    MAX_ROWS,
    MEASURED,
    PREDICTED,
    PREDICTION_ROWS,
    RATIOS,
    Graded,
    Table,
    is_predicted,
    level_text,
    metric_text,
    ratio_cells,
    storage_table,
)
from quantlab.report.texts import Texts
from quantlab.text import NULL, format_number, label

LEVEL_CHARS, FORMAT_CHARS = 20, 48
VERDICT_LINES = 20
WORST_TENSORS = 3  # of a run, those that suffer most
WORST_ROWS = 12  # of all runs: with more of them each names its worst alone, in the overview
PREDICTED_COLUMNS = {key: PREDICTED[key] for key in ("scale", "mae", "sqnr_db")} | {
    "landmark_rel_err": ".1%"
}
COLOURS = {"met": "green", "missed": "yellow"}
MAX_COLUMNS = 100
NUMBER_CELL = re.compile(r"[-+\d.,]+(e[-+]\d+)?%?|–|exacto?|.+ → .+")


def sweep_summary(findings: Findings, files: Sequence[Path], texts: Texts) -> str:
    """Return the tables of a sweep, its verdict, its failures and where its files are."""
    return render(
        *_tables(findings, texts),
        "\n".join(underflow_sentences(findings.underflows, texts)),
        "\n".join(skipped_sentences(findings.skipped, texts)),
        "\n".join(dict.fromkeys(findings.incomplete.values())),
        "\n".join(_failures(findings.failures, texts)),
        "\n".join(map(str, dict.fromkeys(map(_shown_path, files)))),
    )


def _shown_path(path: Path) -> Path:
    """Return a file, or for all pictures the directory that holds them."""
    return path.parent if path.parent.name == "plots" else path


def _tables(findings: Findings, texts: Texts) -> Iterator[Table | str]:
    rows, levels = findings.rows, findings.levels
    if not rows:
        return
    if has_formats(rows):
        kept = [level for level in levels if not is_format_column(level)]
        levels = [kept[0], "format", *kept[1:]]
    if "tensor" in levels:
        levels = [level for level in levels if level != "tensor"]
        runs = _rows_by_run(rows, levels)
        yield overview_table(runs, levels, texts)
        yield from _worst_tables(runs, levels, texts)
    else:
        yield from _figure_tables(rows, levels, texts)
    if findings.storage:
        yield texts("section_storage")
        yield from first_rows(storage_table(findings.storage, texts), texts)
    if outputs := find_outputs(findings.answers):
        yield texts("section_answers")
        yield from first_rows(answer_table(outputs, texts), texts, "more_answers")
        sentences = answer_sentences(outputs, texts)
        yield "\n".join(texts.first_few(sentences, VERDICT_LINES, "more_verdicts"))
    yield "\n".join(_verdicts(findings, texts))


def _worst_tables(
    runs: Sequence[list[Row]], levels: Sequence[str], texts: Texts
) -> Iterator[Table | str]:
    """Yield the figures of the worst tensors of each run, where the runs are few."""
    n_worst = min(WORST_TENSORS, WORST_ROWS // len(runs))
    if not n_worst:
        return
    yield texts("worst_tensors", n=n_worst)
    worst = [row for run in runs for row in run[:n_worst]]
    heads = [*_level_heads(levels), "tensor"]
    cells = [[*_level_cells(row, levels), label(row["tensor"])] for row in worst]
    yield ratio_table(heads, cells, worst, texts)


def _figure_tables(
    rows: Sequence[Row], levels: Sequence[str], texts: Texts
) -> Iterator[Table | str]:
    yield from first_rows(measured_table(rows, levels, texts), texts)
    has_predictions = "predicted_scale" in rows[0]
    if has_predictions and len(rows) <= PREDICTION_ROWS:
        yield texts("predicted_measured")
        yield predicted_table(rows, levels, texts)
    elif has_predictions:
        yield texts("predicted_elsewhere")


def _verdicts(findings: Findings, texts: Texts) -> Iterator[str]:
    yield from (f"{question} {answer}" for question, answer in answers(findings.widths, texts))
    yield from texts.first_few(verdict_sentences(findings, texts), VERDICT_LINES, "more_verdicts")
    if findings.unmeasured:
        yield unmeasured_text(findings.unmeasured, texts)
    yield bar_text(findings.rows, texts)


def measured_table(rows: Sequence[Row], levels: Sequence[str], texts: Texts) -> Table:
    """Lay out the figures that decide, a row a tensor and run."""
    lines = [
        (
            *_level_cells(row, levels),
            *(_graded(key, spec, row, texts) for key, spec in MEASURED.items()),
            Graded(rank_text(row, texts), "met" if row["top_order_kept"] else "missed"),
        )
        for row in rows
    ]
    return Table([*_level_heads(levels), *MEASURED, texts("head_top_k")], lines)


def _graded(key: str, spec: str, row: Row, texts: Texts) -> str:
    bar = Bar.from_row(row)
    text = metric_text(row, key, spec, texts)
    if key not in bar.criteria:
        return text
    return Graded(text, "missed" if key in bar.missed(row) else "met")


def predicted_table(rows: Sequence[Row], levels: Sequence[str], texts: Texts) -> Table:
    """Lay out predicted beside measured figures, a row a tensor and run."""
    lines = [
        (
            *_level_cells(row, levels),
            *(_predicted_cell(row, key, texts) for key in PREDICTED_COLUMNS),
        )
        for row in rows
        if is_predicted(row)
    ]
    return Table([*_level_heads(levels), *PREDICTED_COLUMNS], lines)


def _predicted_cell(row: Row, key: str, texts: Texts) -> str:
    spec = PREDICTED_COLUMNS[key]
    before = format_number(row[f"predicted_{key}"], spec)
    return f"{before} → {metric_text(row, key, spec, texts)}"


def _rows_by_run(rows: Sequence[Row], levels: Sequence[str]) -> list[list[Row]]:
    """Group rows by run, the tensors that suffer most first."""
    return [sorted((rows[n] for n in run), key=quality) for run in group_rows(rows, levels)]


def overview_table(runs: Sequence[list[Row]], levels: Sequence[str], texts: Texts) -> Table:
    """Lay out a row a run: the counts of its tensors, the median SQNR and the worst."""
    lines = [
        (
            *_level_cells(rows[0], levels),
            str(len(rows)),
            str(sum(row["top_order_kept"] for row in rows)),
            metric_text(_median_row(rows), "sqnr_db", ".2f", texts),
            metric_text(rows[0], "sqnr_db", ".2f", texts),
            label(rows[0]["tensor"]),
        )
        for rows in runs
    ]
    heads = ("head_tensors", "head_in_order", "head_median", "head_least", "head_worst")
    return Table([*_level_heads(levels), *map(texts, heads)], lines)


def _median_row(rows: Sequence[Row]) -> Row:
    """Return a row with the median SQNR of rows that are sorted by it."""
    middle = rows[len(rows) // 2]
    decibels = median(map(quality, rows))
    return {**middle, "sqnr_db": None if isinf(decibels) else decibels}


def ratio_table(
    heads: Sequence[str], names: Sequence[Sequence[str]], rows: Sequence[Row], texts: Texts
) -> Table:
    """Lay out the figures that do not depend on a tensor's unit, behind the cells of its name."""
    stored = ["stored_dtype"] if any(row.get("stored_dtype") for row in rows) else []
    lines = [
        [*cells, *(row.get(key) or NULL for key in stored), *ratio_cells(row, texts)]
        for cells, row in zip(names, rows, strict=True)
    ]
    return Table([*heads, *stored, *RATIOS], lines)


def _failures(reasons: Mapping[str, str], texts: Texts) -> Iterator[str]:
    if len(reasons) > 1:
        yield texts("failures", n=len(reasons))
    yield from texts.first_few(failure_sentences(reasons, texts), MAX_ROWS, "more_lines")


def _level_cells(row: Row, levels: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        label(level_text(row, level), FORMAT_CHARS if level == "format" else LEVEL_CHARS)
        for level in levels
    )


def _level_heads(levels: Sequence[str]) -> list[str]:
    """List the heads of levels, swept keys broken into lines as narrow as their values."""
    return ["bits" if level == "n_bits" else re.sub(r"([._])", r"\1\n", level) for level in levels]


def render(*parts: Table | str) -> str:
    """Return tables, at most `MAX_COLUMNS` columns wide, and text, a blank line between.

    Only a terminal is given colours.
    """
    console = Console(width=MAX_COLUMNS, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        for number, part in enumerate(part for part in parts if part):
            if number:
                console.print()
            if isinstance(part, str):
                console.print(part, soft_wrap=True)
            else:
                console.print(_grid(part))
    return re.sub(r" +$", "", captured.get().rstrip("\n"), flags=re.MULTILINE)


def lay_out(table: Table, *, whole: bool) -> str:
    """Align the columns of a table, in lines that are never broken, or as a terminal has them."""
    if not whole:
        return render(table)
    columns = list(zip(table.heads, *table.rows, strict=True))
    cells = [
        [cell.rjust(width) if is_numeric(column[1:]) else cell.ljust(width) for cell in column]
        for column in columns
        for width in (max(map(len, column)),)
    ]
    return "\n".join(" ".join(line).rstrip() for line in zip(*cells, strict=True))


def _grid(table: Table) -> Grid:
    """Align words to the left and numbers to the right; only words may be broken."""
    grid = Grid(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, head in enumerate(table.heads):
        numeric = is_numeric([row[column] for row in table.rows])
        grid.add_column(
            head,
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="ellipsis" if numeric else "fold",
        )
    for row in table.rows:
        grid.add_row(
            *(Text(cell, COLOURS[cell.grade]) if isinstance(cell, Graded) else cell for cell in row)
        )
    return grid


def is_numeric(cells: Iterable[str]) -> bool:
    """Test whether all cells of a column are numbers, which are aligned to the right."""
    return all(NUMBER_CELL.fullmatch(cell) for cell in cells)


def first_rows(table: Table, texts: Texts, more: str = "more_rows") -> Iterator[Table | str]:
    """Yield the first rows of a table, then the text under `more`, which counts the others."""
    rows = [[label(name), *cells] for name, *cells in table.rows[:MAX_ROWS]]
    yield table._replace(rows=rows)
    if len(table.rows) > MAX_ROWS:
        yield texts(more, n=len(table.rows) - MAX_ROWS)


def run_summary(record: Record, bar: Bar, texts: Texts) -> str:
    """Return the figures of one run: of one tensor all, of many those that decide, worst first."""
    tensors = record["tensors"]
    shared = {"dist": record.get("dist", ""), **bar.columns()}
    rows = [figures(tensor) | shared | {"tensor": name} for name, tensor in tensors.items()]
    if len(tensors) == 1:
        ((name, tensor),) = tensors.items()
        lines = list(_figure_lines(record, name, tensor, texts))
    else:
        worst = sorted(rows, key=quality)
        names = [[label(row["tensor"]), f"{row['n_elements']:,}"] for row in worst]
        heads = [texts("head_worst_first"), texts("head_elements")]
        parts = first_rows(ratio_table(heads, names, worst, texts), texts, "more_tensors")
        lines = [*map(render, parts), *skipped_sentences(record["skipped"], texts)]
    if stored := stored_rows(rows, ["dist"]):
        lines += [*stored_sentences(stored, texts), bar_text(rows, texts)]
    underflows = {name: tensor.get("underflowed") or 0 for name, tensor in tensors.items()}
    answered = _answer_lines(record, {row["tensor"]: row for row in rows}, shared, texts)
    return "\n".join([*lines, *underflow_sentences(underflows, texts), *answered])


def _answer_lines(
    record: Record, rows: Mapping[str, Row], shared: Row, texts: Texts
) -> Iterator[str]:
    """Yield what the answers of a run have lost, if a model answered."""
    answers = [
        {**shared, **answer_figures(answer, rows, record["spec"]["name"])}
        for answer in record.get("answers", ())
    ]
    if outputs := find_outputs(answers):
        sentences = "\n".join(answer_sentences(outputs, texts))
        yield ""
        yield render(texts("section_answers"), answer_table(outputs, texts), sentences)


def _unknown(tensor: dict[str, Any]) -> set[str]:
    """List the figures that no codec has, which a terminal leaves out."""
    if "stored_dtype" not in tensor:
        return set()
    reasons = tensor["reasons"]
    return {key for key, why in reasons.items() if why == reasons.get("scale")}


def _figure_lines(record: Record, name: str, tensor: dict[str, Any], texts: Texts) -> Iterator[str]:
    bits = f"{tensor['storage']['bits_per_value']:.4g} bits a value"
    if record["n_bits"] is not None and "stored_dtype" not in tensor:
        bits = f"{record['n_bits']} bits"
    yield f"{label(name)} {tensor['shape']}, {record['mode']}, {bits}"
    predicted = tensor["predicted"] or {}
    unknown = _unknown(tensor)
    measured = tensor["params"] | tensor["measured"] | tensor["rank"]
    for key in measured:
        if key in unknown:
            continue
        note = f"   {tensor['reasons'][key]}" if key in tensor["reasons"] else ""
        if key in predicted:
            note = f"   predicted {format_number(predicted[key], '.6g')}"
        yield f"  {key:<20}{metric_text(measured, key, '.6g', texts):>14}{note}"
