"""The results of a sweep: its records -> a tidy table -> results.json and results.csv."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from tqdm import tqdm

from quantlab.records import disk, parts, record
from quantlab.records.record import Record
from quantlab.records.row import Row, group_rows
from quantlab.records.run import Run
from quantlab.text import as_text

FACTORS = ["dist", "mode", "n_bits", "tensor"]
FORMAT = ["block", "block_size", "scale_dtype", "range"]  # how it was stored, in each row
OF_FORMAT = {"block", "block.size", "block.scale", "range"}  # settings that these columns say


def collect(directory: Path) -> list[Run]:
    """Read the record of every run below a directory, in the order of the sweep.

    Of each tensor a record keeps its row of the table, under ``identities`` what identifies it,
    under ``directories`` where it was measured, and of a divided source its place, under
    ``places``: ten thousand fit in memory. Raises ValueError when there is no record, or none that
    can be read.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory: give the directory of a sweep")
    paths = list(record.find(directory))
    if not paths:
        raise ValueError(f"{directory} is not a sweep: it holds no {record.NAME}")
    with tqdm(paths, desc="reading", unit="run", delay=1, disable=None, leave=False) as bar:
        runs = sorted((_run(path, directory) for path in bar), key=_sweep_order)
    if not any(run.record for run in runs):
        raise ValueError(f"{directory} is not a sweep: nothing in it can be read: {runs[0].error}")
    return runs


def _run(path: Path, directory: Path) -> Run:
    where = path.parent.relative_to(directory).as_posix()
    try:
        if not disk.is_inside(path, directory):
            raise ValueError(f"{path} is a link out of the sweep")
        content = record.read(path)
        sha256 = disk.digest(path)
    except ValueError as reason:
        why = str(reason).replace(f"{directory}{os.sep}", "")  # the same wherever the sweep is
        return Run(where, None, None, why)
    content["identities"] = {
        name: {key: each[key] for key in record.IDENTIFIED}
        for name, each in content["tensors"].items()
    }
    content["directories"] = dict.fromkeys(content["tensors"], where)
    content["places"] = {
        name: each["place"] for name, each in content["tensors"].items() if "place" in each
    }
    content["tensors"] = {name: record.figures(each) for name, each in content["tensors"].items()}
    return Run(where, sha256, content, content["error"])


def tabulate(runs: Sequence[Run], directory: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of a sweep and the levels that nest it; raises ValueError on duplicates."""
    parts.require_consistent(runs, directory)
    records = [run.record for run in parts.combined(runs) if run.record]
    axes = swept_axes(records)
    table = tidy(records, axes)
    levels = varied_levels(table, axes)
    _refuse_duplicates(table, levels, run_directories(runs, directory))
    return table, levels


def tables(table: pd.DataFrame, levels: list[str], missed: Sequence[str]) -> dict[str, bytes]:
    """Return results.json, and results.csv with what each row has `missed` of the bar."""
    csv = table.assign(missed=missed).to_csv(index=False, lineterminator="\n")
    return {
        "results.json": disk.to_json(nest(table, levels)),
        "results.csv": csv.encode(errors="backslashreplace"),
    }


def run_directories(runs: Sequence[Run], directory: Path) -> list[Path]:
    """Return the run directory of each row of the table."""
    records = [run.record for run in parts.combined(runs) if run.record]
    return [directory / where for one in records for where in one["directories"].values()]


def _sweep_order(run: Run) -> tuple[Any, ...]:
    """Order runs as they were typed, what cannot be read first."""
    if run.record is None:
        return (-1,)
    one = run.record
    n_bits = one["n_bits"] if isinstance(one["n_bits"], int) else 0  # a run may fail for it
    return one["job"] or 0, one["dist"], one["mode"], n_bits, run.directory


def swept_axes(records: list[Record]) -> list[str]:
    """Return the overridden keys, beyond `FACTORS`, whose values differ between the records."""
    keys = {key for each in records for key in _overrides(each)}
    keys = {key for key in keys - {*FACTORS} - OF_FORMAT if record.has_effect(key)}
    keys -= parts.no_settings(records)
    return sorted(key for key in keys if len({as_text(_setting(r, key)) for r in records}) > 1)


def tidy(records: list[Record], axes: list[str]) -> pd.DataFrame:
    """Return one row a tensor and run: the factors, the axes, then every figure; null is None."""
    files = file_names(records)
    rows = [row for each in records for row in _rows(each, axes, files)]
    keys = (key for row in rows for key in row if key not in FORMAT)
    columns = list(dict.fromkeys([*FACTORS, *axes, *keys, *FORMAT]))
    cells = [[row.get(column) for column in columns] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)  # object: ints stay ints beside nulls


def file_names(records: list[Record]) -> dict[str, str]:
    """Return what to call each quantized file, by its path: as its record does, or in full.

    Two files of one name are told apart by as much of their paths as it takes.
    """
    names = {
        str(_setting(each, "mode.path")): figures["stored_file"]
        for each in records
        for figures in each["tensors"].values()
        if "stored_file" in figures
    }
    for n in range(2, max((len(Path(path).parts) for path in names), default=0) + 1):
        times = Counter(names.values())
        longer = {path: "/".join(Path(path).parts[-n:]) for path in names}
        names = {path: longer[path] if times[name] > 1 else name for path, name in names.items()}
    return names


def _rows(one: Record, axes: list[str], files: dict[str, str]) -> list[dict[str, Any]]:
    factors = {"dist": one["dist"], "mode": one["mode"], "n_bits": one["n_bits"]}
    settings = {axis: _setting(one, axis) for axis in axes}
    file = files.get(str(_setting(one, "mode.path")))
    return [
        factors
        | {"tensor": name}
        | settings
        | (figures | {"stored_file": file} if file else figures)
        | one["format"]
        for name, figures in one["tensors"].items()
    ]


def varied_levels(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """Return the columns that nest results.json: what varies, after dist and mode."""
    levels = ["dist", "mode"]
    if len(set(table["n_bits"])) > 1:
        levels.append("n_bits")
    if any(len(set(tensors)) > 1 for _, tensors in table.groupby("dist")["tensor"]):
        levels.append("tensor")
    return [*levels, *sorted([*axes, *_varied_format(table, axes)])]


def _varied_format(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """Return the columns of the format that differ where all else is the same."""
    rows = cast("list[Row]", table.to_dict("records"))
    alike = group_rows(rows, [*FACTORS, *axes])
    return [
        key for key in FORMAT if any(len({rows[n].get(key) for n in group}) > 1 for group in alike)
    ]


def nest(table: pd.DataFrame, levels: list[str]) -> dict[str, Any]:
    """Return the figures of each row under its levels, outermost first."""
    nested: dict[str, Any] = {}
    figures = table.columns.difference([*FACTORS, *levels], sort=False)
    for row in table.to_dict("records"):
        node = nested
        for level in levels:
            node = node.setdefault(as_text(row[level]), {})
        node.update({figure: row[figure] for figure in figures})
    return nested


def _refuse_duplicates(table: pd.DataFrame, levels: list[str], directories: list[Path]) -> None:
    """Raise ValueError when two rows, of these run directories, answer one question."""
    rows = cast("list[Row]", table[levels].to_dict("records"))
    for first, *others in group_rows(rows, levels):
        if others:
            twice = ", ".join(f"{level}={as_text(rows[first][level])}" for level in levels)
            raise ValueError(
                f"two runs are of {twice}: {directories[first]} and {directories[others[0]]}; "
                f"remove one, then quantlab aggregate {directories[first].parent}"
            )


def _overrides(one: Record) -> dict[str, str]:
    return dict(text.lstrip("+").partition("=")[::2] for text in one["overrides"])


def _setting(one: Record, key: str) -> Any:
    """Return the value of a dotted key in a record's config, or as it was typed."""
    node: Any = one["config"]
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            unused = key.startswith(("block.", "range."))  # a setting of another option
            return None if unused else _overrides(one).get(key)
        node = node[part]
    return node
