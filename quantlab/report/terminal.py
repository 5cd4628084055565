"""What a person reads in the terminal of a sweep: its tables and its verdict."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from quantlab.records.record import Row, group_rows
from quantlab.report.bar import Bar
from quantlab.report.console import Cell, render, table
from quantlab.report.findings import Findings
from quantlab.report.format_name import has_formats, level_text, with_format
from quantlab.report.numbers import MEASURED, RATIOS, ratio_cells
from quantlab.report.prediction_table import is_predicted
from quantlab.report.sentences import (
    answers,
    bar_text,
    failure_sentences,
    rank_text,
    sentences,
    skipped_sentences,
    underflow_sentences,
    unmeasured_text,
)
from quantlab.report.storage import TensorFormats
from quantlab.report.storage_table import storage_heads, storage_sentences, storage_table
from quantlab.report.stored import stored_sentences
from quantlab.report.texts import Texts
from quantlab.report.verdict import quality
from quantlab.text import NULL, format_number, label

LONGEST = 60  # rows; beyond them a terminal is the wrong place
FEW = 12  # predictions, likewise
SHORT = 20  # characters of what a run is called by
LONG = 48  # characters of a format
MOST = 20  # verdicts
WORST = 3  # of a run's tensors a terminal shows those that suffer most
PREDICTED = {"scale": ".3g", "mae": ".3g", "sqnr_db": ".1f", "landmark_rel_err": ".1%"}
MET, MISSED = "green", "yellow"


def sweep_summary(found: Findings, files: Sequence[Path], t: Texts) -> str:
    """Return the tables of a sweep, its verdict, its failures and where its files are."""
    return render(
        *_tables(found, t),
        "\n".join(underflow_sentences(found.underflows, t)),
        "\n".join(skipped_sentences(found.skipped, t)),
        "\n".join(_failures(found.failures, t)),
        "\n".join(map(str, dict.fromkeys(map(_shown_path, files)))),
    )


def _shown_path(path: Path) -> Path:
    """Return a file, or for all pictures the directory that holds them."""
    return path.parent if path.parent.name == "plots" else path


def _tables(found: Findings, t: Texts) -> Iterator[Table | str]:
    rows, levels = found.rows, found.levels
    if not rows:
        return
    if has_formats(rows):
        rows, levels = with_format(rows, levels)
    if "tensor" in levels:
        levels = [level for level in levels if level != "tensor"]
        runs = _rows_by_run(rows, levels)
        yield overview_table(runs, levels, t)
        yield t("worst_tensors", n=WORST)
        yield worst_table(runs, levels)
    else:
        yield from _figure_tables(rows, levels, found.bar, t)
    if found.storage:
        yield t("section_storage")
        yield storage_overview(found.storage, t)
        yield from _more_rows(found.storage, t)
    yield "\n".join(_verdicts(found, t))


def _figure_tables(
    rows: Sequence[Row], levels: Sequence[str], bar: Bar, t: Texts
) -> Iterator[Table | str]:
    yield measured_table(rows, levels, bar, t)
    yield from _more_rows(rows, t)
    has_predictions = "predicted_scale" in rows[0]
    if has_predictions and len(rows) <= FEW:
        yield t("predicted_measured")
        yield predicted_table(rows, levels)
    elif has_predictions:
        yield t("predicted_elsewhere")


def _more_rows(rows: Sequence[Any], t: Texts) -> Iterator[str]:
    if len(rows) > LONGEST:
        yield t("more_rows", n=len(rows) - LONGEST)


def _verdicts(found: Findings, t: Texts) -> Iterator[str]:
    yield from (f"{question} {answer}" for question, answer in answers(found.verdicts, t))
    found_sentences = [
        *stored_sentences(found.stored, found.bar, t),
        *storage_sentences(found.storage, found.levels, t),
        *sentences(found.verdicts, found.levels, t),
    ]
    yield from found_sentences[:MOST]
    if len(found_sentences) > MOST:
        yield t("more_verdicts", n=len(found_sentences) - MOST)
    if found.unmeasured:
        yield unmeasured_text(found.unmeasured, t)
    yield bar_text(found.bar, t)


def measured_table(rows: Sequence[Row], levels: Sequence[str], bar: Bar, t: Texts) -> Table:
    """Return the figures that decide, a row a tensor and run."""
    lines = [
        (
            *_level_cells(row, levels),
            *(_coloured(key, spec, row, bar) for key, spec in MEASURED.items()),
            Text(rank_text(row, t), MET if row["top_order_kept"] else MISSED),
        )
        for row in rows[:LONGEST]
    ]
    return table([*_level_heads(levels), *MEASURED, t("head_top_k")], lines)


def _coloured(key: str, spec: str, row: Row, bar: Bar) -> Cell:
    text = format_number(row[key], spec)
    if key not in bar.criteria:
        return text
    return Text(text, MISSED if key in bar.missed(row) else MET)


def predicted_table(rows: Sequence[Row], levels: Sequence[str]) -> Table:
    """Return what theory said beside what came out, a row a tensor and run."""
    lines = [
        (
            *_level_cells(row, levels),
            *(
                f"{format_number(row[f'predicted_{key}'], spec)} → {format_number(row[key], spec)}"
                for key, spec in PREDICTED.items()
            ),
        )
        for row in rows
        if is_predicted(row)
    ]
    return table([*_level_heads(levels), *PREDICTED], lines)


def _rows_by_run(rows: Sequence[Row], levels: Sequence[str]) -> list[list[Row]]:
    """Return the rows of each run, the tensors that suffer most first."""
    return [sorted((rows[n] for n in run), key=quality) for run in group_rows(rows, levels)]


def overview_table(runs: Sequence[list[Row]], levels: Sequence[str], t: Texts) -> Table:
    """Return a row a run: how its tensors fared, the middle one and the worst."""
    lines = [
        (
            *_level_cells(rows[0], levels),
            str(len(rows)),
            str(sum(row["top_order_kept"] for row in rows)),
            format_number(median(map(quality, rows)), ".2f"),
            format_number(rows[0]["sqnr_db"], ".2f"),
            label(rows[0]["tensor"]),
        )
        for rows in runs
    ]
    heads = ("head_tensors", "head_in_order", "head_median", "head_least", "head_worst")
    return table([*_level_heads(levels), *map(t, heads)], lines)


def worst_table(runs: Sequence[list[Row]], levels: Sequence[str]) -> Table:
    """Return the figures that decide of the worst tensors of each run."""
    worst = [row for rows in runs for row in rows[:WORST]]
    stored = ["stored_dtype"] if any(row.get("stored_dtype") for row in worst) else []
    lines = [
        (
            *_level_cells(row, levels),
            label(row["tensor"]),
            *(row.get(key) or NULL for key in stored),
            *ratio_cells(row),
        )
        for row in worst
    ]
    return table([*_level_heads(levels), "tensor", *stored, *RATIOS], lines[:LONGEST])


def storage_overview(found: Sequence[TensorFormats], t: Texts) -> Table:
    """Return the cheapest format of each tensor that meets the bar."""
    lines = [(label(row.name), *row[1:]) for row in storage_table(found[:LONGEST], t)]
    return table(storage_heads(t), lines)


def _failures(reasons: Mapping[str, str], t: Texts) -> Iterator[str]:
    if len(reasons) > 1:
        yield t("failures", n=len(reasons))
    said = failure_sentences(reasons, t)
    yield from said[:LONGEST]
    if len(said) > LONGEST:
        yield t("more_lines", n=len(said) - LONGEST)


def _level_cells(row: Row, levels: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        label(level_text(row, level), LONG if level == "format" else SHORT) for level in levels
    )


def _level_heads(levels: Sequence[str]) -> list[str]:
    """Return what stands over levels, swept keys in lines as narrow as their values."""
    return ["bits" if level == "n_bits" else re.sub(r"([._])", r"\1\n", level) for level in levels]
