"""The aggregate of a sweep: results.json, results.csv, verdict, report, plots and manifest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.records import disk, manifest, parts, record
from quantlab.records.answers import NAME as ANSWERS
from quantlab.records.answers import answer_rows, answers_csv
from quantlab.records.collection import collect
from quantlab.records.record import Record, Row, Run
from quantlab.records.rows import Column, column_of, group_rows
from quantlab.records.table import (
    PARQUET,
    TABLES,
    has_parquet,
    results_csv,
    results_json,
    results_parquet,
    setting,
    tabulate,
)
from quantlab.report import page, verdict
from quantlab.report.answers import find_outputs
from quantlab.report.bar import MISSED, ReportSettings, missed_column
from quantlab.report.choices import INT8, Findings, TensorEntry, qualities, quality
from quantlab.report.texts import Texts
from quantlab.text import NULL

MAX_DETAILS = 6  # tensors that are looked at closely
WRITTEN = {*TABLES, PARQUET, ANSWERS, verdict.NAME, *page.NAMES, manifest.NAME}  # beside plots
HISTOGRAM_DIST = "hidden"  # the lab's choice (block F)


class Aggregate(NamedTuple):
    """The findings of a sweep, its files, and the overrides of each run that failed.

    `incomplete` are the overrides of runs of which some tensors could not be measured, with the
    reason; `gaps` are the divided sources that lack parts.
    """

    findings: Findings
    files: list[Path]
    failed: list[list[str]]
    incomplete: dict[tuple[str, ...], str]
    gaps: Sequence[parts.MissingParts]


def aggregate(directory: Path, settings: ReportSettings) -> Aggregate:
    """Write the aggregate of every record below `directory` into it, whole or not at all.

    The caller holds the lock of the directory, which is of one sweep. The files depend on the
    records, the command in the sweep's multirun.yaml and the settings alone; the manifest has the
    times. A record that cannot be read is a failure like that of a run. Raises ValueError when
    there is no record, or when two records answer for the same combination.
    """
    runs, figures = collect(directory)
    table, levels, directories = tabulate(runs, figures, directory)
    judged = settings.judged_table(table)
    missed = missed_column(judged)
    rows = judged.with_columns({MISSED: missed})
    answers = settings.judged(answer_rows(runs, figures))
    origin = manifest.from_directory(directory, runs, figures, levels)
    findings = Findings(
        rows=rows,
        levels=levels,
        details=_entries(choose_details(rows, levels), rows, directory, directories),
        histogram=_entries(choose_histogram(rows), rows, directory, directories),
        answers=answers,
        **_run_findings(runs),
    )
    disk.clear(directory, WRITTEN)  # a plan may be written meanwhile
    disk.clear(directory / "plots")
    with disk.publication(directory, voucher=manifest.NAME) as files:
        files.write("results.json", results_json(judged, levels))
        files.write("results.csv", results_csv(judged, missed))
        if has_parquet(judged):
            files.write(PARQUET, results_parquet(judged, missed))
        if answers:
            files.write(ANSWERS, [answers_csv(answers)])
        provenance = _provenance(runs, origin, files.hashes["results.json"], settings.texts)
        findings = replace(findings, provenance=provenance)
        files.write(verdict.NAME, [_verdict(findings)])
        for name, content in page.artefacts(findings, settings.texts).items():
            files.write(name, [content])
        whole = manifest.manifest(origin, manifest.hydra_files(directory), files.hashes)
        files.write(manifest.NAME, [disk.to_json(whole)])
        files.stale = _find_stale(directory, files.hashes)
    return Aggregate(findings, files.paths, *_unfinished(runs), parts.find_missing_parts(runs))


def _verdict(findings: Findings) -> bytes:
    check = verdict.Check(
        findings.choices,
        findings.bars,
        {**findings.failures, **findings.incomplete},
        findings.stored,
        outputs=find_outputs(findings.answers),
    )
    return verdict.verdict_json(check)


def _unfinished(runs: Sequence[Run]) -> tuple[list[list[str]], dict[tuple[str, ...], str]]:
    """List the overrides of runs that failed, and map those of incomplete runs to the reason."""
    failed, incomplete = [], {}
    for run in runs:
        if run.record and run.error and run.is_incomplete:
            incomplete[tuple(run.record["overrides"])] = run.error
        elif run.record and run.error:
            failed.append(run.record["overrides"])
    return failed, incomplete


def _run_findings(runs: Sequence[Run]) -> dict[str, Any]:
    """Collect the findings that are of runs and not of rows."""
    records = [run.record for run in parts.join_parts(runs) if run.record]
    failures = {_run_label(run): run.error for run in runs if run.error and not run.is_incomplete}
    incomplete = {_run_label(run): run.error for run in runs if run.error and run.is_incomplete}
    sources = {str(setting(content, "dist.path") or "") for content in records}
    return {
        "source": sources.pop() if len(sources) == 1 else "",
        "failures": failures | parts.missing_part_advice(runs),
        "skipped": {name: why for content in records for name, why in content["skipped"].items()},
        "unmeasured": list(
            dict.fromkeys(name for content in records for name in content["failed"])
        ),
        "incomplete": incomplete,
        "own_metrics": list(dict.fromkeys(name for content in records for name in _extra(content))),
    }


def _extra(content: Record) -> Mapping[str, Any]:
    """Return the metrics that a config adds to those of every run."""
    return setting(content, "metrics.extra") or {}


def _entries(
    chosen: Sequence[int], rows: Sequence[Row], directory: Path, directories: Column
) -> list[TensorEntry]:
    """Read the records of some rows again, of whose tensors `collect` keeps the figures alone."""
    read = cache(record.read)
    paths = [directory / directories[n] / record.NAME for n in chosen]
    entries = (
        read(path)["tensors"][rows[n]["tensor"]] for n, path in zip(chosen, paths, strict=True)
    )
    return [TensorEntry(rows[n], entry) for n, entry in zip(chosen, entries, strict=True)]


def _find_stale(directory: Path, written: Mapping[str, str]) -> list[Path]:
    """Find the files of an earlier aggregation that this one does not write."""
    paths = [
        path
        for pattern in (*page.PLOT_PATTERNS, ANSWERS, PARQUET)
        for path in directory.glob(pattern)
    ]
    return [path for path in paths if path.relative_to(directory).as_posix() not in written]


def _provenance(
    runs: Sequence[Run], origin: Mapping[str, Any], sha256: str, texts: Texts
) -> dict[str, str]:
    """List command, runs, versions and hash, for the foot of the report."""
    statuses = Counter(run_entry["status"] for run_entry in origin["runs"])
    versions = {
        f"{key} {version}"
        for run in runs
        if run.record
        for key, version in run.record["versions"].items()
    }
    counts = {key: statuses[key] for key in ("completed", "failed", "unreadable")}
    return {
        "command": origin["command"] or NULL,
        "runs": texts("runs", **counts),
        "versions": ", ".join(sorted(versions)),
        "results": sha256,
    }


def _run_label(run: Run) -> str:
    return " ".join([run.directory, *(run.record["overrides"] if run.record else ())])


def choose_details(rows: Sequence[Row], levels: Sequence[str]) -> list[int]:
    """Choose the rows to look at closely, the worst first.

    Of each source, mode and what else was swept it is the tensor with the least SQNR, in 8 bits if
    they were tried, else in the width that comes first.
    """
    apart = [level for level in levels if level not in ("n_bits", "tensor")]
    widths, decibels = column_of(rows, "n_bits").floats(), qualities(rows)
    groups = (_in_one_width(widths, group) for group in group_rows(rows, apart))
    worst = [int(group[decibels[group].argmin()]) for group in groups]
    return sorted(worst, key=lambda n: decibels[n])[:MAX_DETAILS]


def choose_histogram(rows: Sequence[Row]) -> list[int]:
    """Choose the rows of the lab's histogram: a mode each, of `hidden` or the first source.

    Of several tensors it is the one with the least SQNR in the first mode.
    """
    if not rows:
        return []
    sources = {rows[group[0]]["dist"]: group for group in group_rows(rows, ["dist"])}
    of_source = sources.get(HISTOGRAM_DIST) or next(iter(sources.values()))
    candidates = _in_one_width(column_of(rows, "n_bits").floats(), of_source).tolist()
    first = [n for n in candidates if rows[n]["mode"] == rows[candidates[0]]["mode"]]
    name = rows[min(first, key=lambda n: quality(rows[n]))]["tensor"]
    modes: dict[str, int] = {}
    for n in candidates:
        if rows[n]["tensor"] == name:
            modes.setdefault(rows[n]["mode"], n)
    return list(modes.values())


def _in_one_width(widths: NDArray[np.float64], among: Sequence[int]) -> NDArray[np.intp]:
    """Select the rows of 8 bits if there are any, else of the width of the first."""
    rows = np.asarray(among)
    tried = widths[rows]
    width = INT8 if INT8 in tried else tried[0]
    return rows[(tried == width) | (np.isnan(tried) & np.isnan(width))]
