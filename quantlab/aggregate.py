"""Collect a sweep: records -> tidy table -> results.json, results.csv, report, manifest.json."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
from tqdm import tqdm

from quantlab import manifest, record, report
from quantlab.bar import Bar, Row
from quantlab.record import Record
from quantlab.report import Findings, Shown
from quantlab.texts import Texts
from quantlab.verdict import NULL, groups, verdicts

FACTORS = ["dist", "mode", "n_bits", "tensor"]


class Sweep(NamedTuple):
    """What became of a sweep: what there is to tell of it, and the files that tell it.

    `failed` holds the overrides of each run that failed.
    """

    findings: Findings
    files: list[Path]
    failed: list[list[str]]


def aggregate(directory: Path, bar: Bar, t: Texts) -> Sweep:
    """Write the aggregate of every record below `directory` into it.

    Its files depend on the records, the command that the sweep's multirun.yaml tells, the bar and
    the language alone; times stand in the manifest. A record that cannot be read
    is a failure like that of a run. Raises ValueError when there is no record, or when two records
    answer for the same combination.
    """
    runs = collect(directory)
    table, levels = tabulate(runs, directory)
    artefacts = tables(table, levels)
    told = manifest.told_by_records(directory, runs, levels)
    origin = provenance(runs, told, artefacts, t)
    rows = cast("list[Row]", table.to_dict("records"))
    findings = _findings(runs, directory, rows, levels, bar, origin)
    artefacts |= report.artefacts(findings, t)
    artefacts["manifest.json"] = record.to_json(manifest.manifest(told, artefacts))
    for name, content in artefacts.items():
        (directory / name).parent.mkdir(exist_ok=True)
        record.write(directory / name, content)
    _clear(directory, artefacts)
    failed = [run.record["overrides"] for run in runs if run.record and run.error]
    return Sweep(findings, [directory / name for name in artefacts], failed)


def _findings(
    runs: Sequence[manifest.Run],
    directory: Path,
    rows: list[Row],
    levels: list[str],
    bar: Bar,
    origin: Mapping[str, str],
) -> Findings:
    homes = _homes(runs, directory)
    records = [run.record for run in runs if run.record]
    return Findings(
        rows=rows,
        levels=levels,
        verdicts=verdicts(rows, levels, bar),
        bar=bar,
        closer=_shown(report.choose(rows, levels), rows, homes),
        histogram=_shown(report.choose_histogram(rows), rows, homes) if rows else [],
        failures={_which(run): run.error for run in runs if run.error},
        skipped={name: why for one in records for name, why in one["skipped"].items()},
        unmeasured=list(dict.fromkeys(name for one in records for name in one["failed"])),
        provenance=origin,
    )


def _shown(chosen: Sequence[int], rows: Sequence[Row], homes: Sequence[Path]) -> list[Shown]:
    """Return some rows with what their records say, which `collect` did not keep."""
    read = cache(record.read)
    entries = (read(homes[n] / record.NAME)["tensors"][rows[n]["tensor"]] for n in chosen)
    return [Shown(rows[n], entry) for n, entry in zip(chosen, entries, strict=True)]


def _clear(directory: Path, artefacts: Mapping[str, bytes]) -> None:
    """Remove the pictures of an earlier report that this one has not."""
    for pattern in report.PICTURES:
        for path in directory.glob(pattern):
            if path.relative_to(directory).as_posix() not in artefacts:
                path.unlink()


def _homes(runs: Sequence[manifest.Run], directory: Path) -> list[Path]:
    """Return the run directory of each row of the table."""
    return [directory / run.directory for run in runs if run.record for _ in run.record["tensors"]]


def provenance(
    runs: Sequence[manifest.Run],
    told: Mapping[str, Any],
    artefacts: Mapping[str, bytes],
    t: Texts,
) -> dict[str, str]:
    """Return where the figures come from, as the foot of the report has it."""
    statuses = Counter(each["status"] for each in told["runs"])
    versions = {
        f"{key} {version}"
        for run in runs
        if run.record
        for key, version in run.record["versions"].items()
    }
    counts = {key: statuses[key] for key in ("completed", "failed", "unreadable")}
    return {
        "command": told["command"] or NULL,
        "runs": t("runs", **counts),
        "versions": ", ".join(sorted(versions)),
        "results": hashlib.sha256(artefacts["results.json"]).hexdigest(),
    }


def collect(directory: Path) -> list[manifest.Run]:
    """Read the record of every run below a directory, in the order of the sweep.

    Of each tensor a record keeps its row of the table alone: ten thousand fit in memory. Raises
    ValueError when there is no record, or none that can be read.
    """
    paths = list(record.find(directory))
    if not paths:
        raise ValueError(f"{directory} is no sweep: there is no {record.NAME} in it or below it")
    with tqdm(paths, desc="reading", unit="run", delay=1, disable=None, leave=False) as bar:
        runs = sorted((_run(path, directory) for path in bar), key=_sweep_order)
    if not any(run.record for run in runs):
        raise ValueError(f"{directory} is no sweep, nothing in it can be read: {runs[0].error}")
    return runs


def _run(path: Path, directory: Path) -> manifest.Run:
    where = path.parent.relative_to(directory).as_posix()
    try:
        if not record.is_inside(path, directory):
            raise ValueError(f"{path} is a link out of the sweep")
        content = record.read(path)
        sha256 = record.digest(path)
    except ValueError as reason:
        why = str(reason).replace(f"{directory}{os.sep}", "")  # the same wherever the sweep is
        return manifest.Run(where, None, None, why)
    content["tensors"] = {name: record.figures(each) for name, each in content["tensors"].items()}
    return manifest.Run(where, sha256, content, content["error"])


def tabulate(runs: Sequence[manifest.Run], directory: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of a sweep and the levels that nest it; raises ValueError on duplicates."""
    records = [run.record for run in runs if run.record]
    axes = swept_axes(records)
    table = tidy(records, axes)
    levels = varied_levels(table, axes)
    _refuse_duplicates(table, levels, _homes(runs, directory))
    return table, levels


def tables(table: pd.DataFrame, levels: list[str]) -> dict[str, bytes]:
    """Return results.json and results.csv."""
    csv = table.to_csv(index=False, lineterminator="\n")
    return {
        "results.json": record.to_json(nest(table, levels)),
        "results.csv": csv.encode(errors="backslashreplace"),
    }


def _which(run: manifest.Run) -> str:
    return " ".join([run.directory, *(run.record["overrides"] if run.record else ())])


def _sweep_order(run: manifest.Run) -> tuple[Any, ...]:
    """Order runs as they were typed, what cannot be read first."""
    if run.record is None:
        return (-1,)
    one = run.record
    n_bits = one["n_bits"] if isinstance(one["n_bits"], int) else 0  # a run may fail for it
    return one["job"] or 0, one["dist"], one["mode"], n_bits, run.directory


def swept_axes(records: list[Record]) -> list[str]:
    """Return the overridden keys, beyond `FACTORS`, whose values differ between the records."""
    keys = {key for each in records for key in _overrides(each)}
    keys = {key for key in keys - {*FACTORS} if record.has_effect(key)}
    return sorted(
        key for key in keys if len({record.as_text(_setting(r, key)) for r in records}) > 1
    )


def tidy(records: list[Record], axes: list[str]) -> pd.DataFrame:
    """Return one row a tensor and run: the factors, the axes, then every figure; null is None."""
    rows = [row for each in records for row in _rows(each, axes)]
    columns = list(dict.fromkeys([*FACTORS, *axes, *(key for row in rows for key in row)]))
    cells = [[row.get(column) for column in columns] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)  # object: ints stay ints beside nulls


def _rows(one: Record, axes: list[str]) -> list[dict[str, Any]]:
    factors = {"dist": one["dist"], "mode": one["mode"], "n_bits": one["n_bits"]}
    settings = {axis: _setting(one, axis) for axis in axes}
    return [
        factors | {"tensor": name} | settings | figures for name, figures in one["tensors"].items()
    ]


def varied_levels(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """Return the columns that nest results.json: what varies, after dist and mode."""
    levels = ["dist", "mode"]
    if len(set(table["n_bits"])) > 1:
        levels.append("n_bits")
    if any(len(set(tensors)) > 1 for _, tensors in table.groupby("dist")["tensor"]):
        levels.append("tensor")
    return [*levels, *axes]


def nest(table: pd.DataFrame, levels: list[str]) -> dict[str, Any]:
    """Return the figures of each row under its levels, outermost first."""
    nested: dict[str, Any] = {}
    figures = table.columns.difference([*FACTORS, *levels], sort=False)
    for row in table.to_dict("records"):
        node = nested
        for level in levels:
            node = node.setdefault(record.as_text(row[level]), {})
        node.update({figure: row[figure] for figure in figures})
    return nested


def _refuse_duplicates(table: pd.DataFrame, levels: list[str], homes: list[Path]) -> None:
    """Raise ValueError when two rows, of the run directories `homes`, answer the same question."""
    rows = cast("list[Row]", table[levels].to_dict("records"))
    for first, *others in groups(rows, levels):
        if others:
            twice = ", ".join(f"{level}={record.as_text(rows[first][level])}" for level in levels)
            raise ValueError(
                f"two runs are of {twice}: {homes[first]} and {homes[others[0]]}; remove one, then "
                f"python -m quantlab aggregate {homes[first].parent}"
            )


def _overrides(one: Record) -> dict[str, str]:
    return dict(text.lstrip("+").partition("=")[::2] for text in one["overrides"])


def _setting(one: Record, key: str) -> Any:
    """Return the value of a dotted key in a record's config, or as it was typed."""
    node: Any = one["config"]
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return _overrides(one).get(key)
        node = node[part]
    return node
