"""The table of a sweep: its records -> results.json and results.csv -> rows and pandas again."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import pandas as pd
from tqdm import tqdm

from quantlab.formats.format import PLAIN, FormatSpec
from quantlab.records import disk, parts, record
from quantlab.records.manifest import NAME as MANIFEST
from quantlab.records.manifest import read_artefact, read_artefact_hashes, read_manifest
from quantlab.records.older import SINCE_9
from quantlab.records.record import Record, Row, Run, group_rows
from quantlab.text import as_text, first_few

UNPAIRED_NAMES = 3  # in one cell
CONTEXT = ("settings", "format", "coverage", "coverage_bytes", "unpaired", *SINCE_9)
FACTORS = ["dist", "mode", "n_bits", "tensor"]
FORMAT = list(PLAIN)  # columns of the format that may nest results.json
FORMAT_SETTINGS = {"block", "range", *record.COLUMN_SETTINGS}  # settings that these columns say
NO_AXES = {*FACTORS, *FORMAT_SETTINGS, "model", "model.each"}  # whether a model answers is no axis


def collect(directory: Path) -> list[Run]:
    """Read the record of every run below a directory, in the order of the sweep.

    Ten thousand records must fit in memory, so that a tensor is reduced to its row of the table
    (``tensors``), its dtype, shape and sha256 (``identities``), its run directory
    (``directories``), and its place in a divided source (``places``). Raises ValueError if there is
    no record, or none that can be read.
    """
    require_records(directory)
    paths = list(record.find(directory))
    with tqdm(paths, desc="reading", unit="run", delay=1, disable=None, leave=False) as bar:
        runs = sorted((_read_run(path, directory) for path in bar), key=_sweep_order)
    if not any(run.record for run in runs):
        raise ValueError(f"{directory} is not a sweep: nothing in it can be read: {runs[0].error}")
    return runs


def require_directory(directory: Path) -> None:
    """Raise ValueError unless a directory exists and can be listed."""
    if not directory.is_dir():
        missing = "is not a directory" if directory.exists() else "does not exist"
        raise ValueError(f"{directory} {missing}: give the directory of a sweep")
    if not os.access(directory, os.R_OK | os.X_OK):  # else it would look empty
        raise ValueError(f"{directory} cannot be read: you have no permission to list its files")


def require_records(directory: Path) -> None:
    """Raise ValueError unless a directory exists and holds the record of a run."""
    require_directory(directory)
    if not any(record.find(directory)):
        raise ValueError(f"{directory} is not a sweep: it holds no {record.NAME}")


def _read_run(path: Path, directory: Path) -> Run:
    name = path.parent.relative_to(directory).as_posix()
    try:
        if not disk.is_inside(path, directory):
            raise ValueError(f"{path} is a link out of the sweep")
        content = record.read(path)
        sha256 = disk.digest(path)
    except ValueError as reason:
        error = str(reason).replace(f"{directory}{os.sep}", "")  # the same wherever the sweep is
        return Run(name, None, None, error)
    results = content["tensors"]
    content["identities"] = {
        tensor: {key: result[key] for key in record.MANIFEST_KEYS}
        for tensor, result in results.items()
    }
    content["directories"] = dict.fromkeys(results, name)
    content["places"] = {
        tensor: result["place"] for tensor, result in results.items() if "place" in result
    }
    content["tensors"] = {tensor: record.figures(result) for tensor, result in results.items()}
    return Run(name, sha256, content, content["error"])


def tabulate(runs: Sequence[Run], directory: Path) -> tuple[pd.DataFrame, list[str]]:
    """Make the table of a sweep and the levels that nest it; raises ValueError on duplicates."""
    parts.require_consistent(runs, directory)
    records = [run.record for run in parts.join_parts(runs) if run.record]
    axes = swept_axes(records)
    table = tidy(records, axes)
    levels = varied_levels(table, axes)
    _refuse_duplicates(table, levels, run_directories(runs, directory))
    return table, levels


def tables(table: pd.DataFrame, levels: list[str], missed: Sequence[str]) -> dict[str, bytes]:
    """Write results.json, and results.csv with the criteria of the bar that each row `missed`."""
    csv = table.assign(missed=missed).to_csv(index=False, lineterminator="\n")
    return {
        "results.json": disk.to_json(nest(table, levels)),
        "results.csv": csv.encode(errors="backslashreplace"),
    }


def run_directories(runs: Sequence[Run], directory: Path) -> list[Path]:
    """List the run directory of each row of the table."""
    records = [run.record for run in parts.join_parts(runs) if run.record]
    return [directory / name for content in records for name in content["directories"].values()]


def _sweep_order(run: Run) -> tuple[Any, ...]:
    """Order runs as they were typed, those that cannot be read first."""
    if run.record is None:
        return (-1,)
    job, dist, mode, n_bits = (run.record[key] for key in ("job", "dist", "mode", "n_bits"))
    n_bits = n_bits if isinstance(n_bits, int) else 0  # a run may fail for it
    return job or 0, dist, mode, n_bits, run.directory


def swept_axes(records: list[Record]) -> list[str]:
    """List the overridden keys, beyond `NO_AXES`, whose values differ between the records."""
    keys = {key for content in records for key in _overrides(content)}
    keys = {key for key in keys - NO_AXES if record.has_effect(key)}
    keys -= parts.unrecorded_part_keys(records)
    return sorted(key for key in keys if len({as_text(setting(r, key)) for r in records}) > 1)


def tidy(records: list[Record], axes: list[str]) -> pd.DataFrame:
    """Make one row a tensor and run: the factors, the axes, then every figure; null is None."""
    files = file_names(records)
    rows = [row for content in records for row in _rows(content, axes, files)]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    figures = [key for key in keys if key not in FORMAT and not is_context(key)]
    columns = [*FACTORS, *axes, *figures, *FORMAT, *filter(is_context, keys)]
    columns = list(dict.fromkeys(columns))
    cells = [[row.get(column) for column in columns] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)  # object: ints stay ints beside nulls


def file_names(records: list[Record]) -> dict[str, str]:
    """Name each quantized file by its path, as its record does.

    Files of one name get as much of their paths as it takes to tell them apart.
    """
    names = {
        str(setting(content, "mode.path")): figures["stored_file"]
        for content in records
        for figures in content["tensors"].values()
        if "stored_file" in figures
    }
    for n in range(2, max((len(Path(path).parts) for path in names), default=0) + 1):
        times = Counter(names.values())
        longer = {path: "/".join(Path(path).parts[-n:]) for path in names}
        names = {path: longer[path] if times[name] > 1 else name for path, name in names.items()}
    return names


def _rows(content: Record, axes: list[str], files: dict[str, str]) -> list[dict[str, Any]]:
    factors = {"dist": content["dist"], "mode": content["mode"], "n_bits": content["n_bits"]}
    settings = {axis: setting(content, axis) for axis in axes}
    file = files.get(str(setting(content, "mode.path")))
    bar = bar_columns(content)
    coverage = _coverage_columns(content.get("coverage"))
    return [
        factors
        | {"tensor": name}
        | settings
        | (figures | {"stored_file": file} if file else figures)
        | format_columns(content["spec"], file)
        | coverage
        | bar
        for name, figures in content["tensors"].items()
    ]


def bar_columns(content: Record) -> dict[str, Any]:
    """List the columns that say by what bar the rows of a run are judged."""
    return {
        f"{record.BAR_PREFIX}{key}": value
        for key, value in (setting(content, "report.bar") or {}).items()
        if value is not None or key not in record.LATER_CRITERIA
    }


def is_context(column: str) -> bool:
    """Test whether a column is in results.csv alone: of the format, the run, the bar or the worst.

    results.json nests the figures that it has always had.
    """
    return column in CONTEXT or column.startswith(record.BAR_PREFIX)


def _coverage_columns(coverage: Mapping[str, Any] | None) -> dict[str, Any]:
    """List the shares of values and of bytes that were compared, and the largest others."""
    if coverage is None:
        return {}
    names = first_few(list(coverage["unpaired"]), UNPAIRED_NAMES, lambda n: f"and {n} more")
    return {
        "coverage": coverage["values"] / max(coverage["all_values"], 1),
        "coverage_bytes": coverage["bytes"] / max(coverage["all_bytes"], 1),
        "unpaired": ", ".join(names) or None,
    }


def format_columns(spec: Mapping[str, Any], file: str | None) -> dict[str, Any]:
    """List the columns of a format; a stored `file` is called by its name."""
    format_spec = FormatSpec.from_json(spec)
    return (format_spec.with_element(file) if file else format_spec).columns()


def varied_levels(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """List the columns that nest results.json: dist, mode, and every other that varies."""
    levels = ["dist", "mode"]
    if len(set(table["n_bits"])) > 1:
        levels.append("n_bits")
    if any(len(set(tensors)) > 1 for _, tensors in table.groupby("dist")["tensor"]):
        levels.append("tensor")
    return [*levels, *sorted([*axes, *_varied_format(table, axes)])]


def _varied_format(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """List the columns of the format that differ between rows that agree in everything else."""
    rows = cast("list[Row]", table.to_dict("records"))
    alike = group_rows(rows, [*FACTORS, *axes])
    return [
        key for key in FORMAT if any(len({rows[n].get(key) for n in group}) > 1 for group in alike)
    ]


def nest(table: pd.DataFrame, levels: list[str]) -> dict[str, Any]:
    """Nest the figures of each row under its levels, outermost first."""
    nested: dict[str, Any] = {}
    context = filter(is_context, table.columns)
    figures = table.columns.difference([*FACTORS, *levels, *context], sort=False)
    for row in table.to_dict("records"):
        node = nested
        for level in levels:
            node = node.setdefault(as_text(row[level]), {})
        node.update({figure: row[figure] for figure in figures})
    return nested


def _refuse_duplicates(table: pd.DataFrame, levels: list[str], directories: list[Path]) -> None:
    """Raise ValueError if two rows, of these run directories, have the same levels."""
    rows = cast("list[Row]", table[levels].to_dict("records"))
    for first, *others in group_rows(rows, levels):
        if others:
            shared = ", ".join(f"{level}={as_text(rows[first][level])}" for level in levels)
            raise ValueError(
                f"two runs are of {shared}: {directories[first]} and {directories[others[0]]}; "
                f"remove one, then quantlab aggregate {directories[first].parent}"
            )


def _overrides(content: Record) -> dict[str, str]:
    return dict(text.lstrip("+").partition("=")[::2] for text in content["overrides"])


def setting(content: Record, key: str) -> Any:
    """Look up a dotted key in a record's config, else, as that of an option, in its overrides."""
    node: Any = content["config"]
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            of_other_option = key.startswith(("block.", "range."))
            return None if of_other_option else _overrides(content).get(key)
        node = node[part]
    is_option = isinstance(node, dict) and "_target_" in node
    return _overrides(content).get(key) if is_option else node


NAME = "results.csv"
TABLES = {"results.json", NAME}
TENSORS_SINCE = 4  # the schema of a manifest


class Aggregated(NamedTuple):
    """The table of a sweep beside its manifest.

    `tensors` are the originals, also those that were not measured, with ``dist``, ``name``,
    ``dtype``, ``shape`` and ``sha256``; `failures` map a run that failed, or a source that lacks
    parts, to the reason, `incomplete` a run of which some tensors could not be measured: those are
    `unmeasured`; `artefacts` are the sha256 of the files of the aggregate, by their names: that of
    results.csv is of the bytes that the rows were read from.
    """

    directory: Path
    rows: list[Row]
    levels: list[str]
    tensors: Sequence[Mapping[str, Any]]
    failures: Mapping[str, str]
    artefacts: Mapping[str, str]
    incomplete: Mapping[str, str] = MappingProxyType({})
    unmeasured: Sequence[str] = ()


def read_aggregate(directory: Path) -> Aggregated:
    """Read results.csv and manifest.json of a sweep; raises ValueError, naming a missing file."""
    require_directory(directory)
    manifest = read_manifest(directory)
    hashes = manifest and manifest["artefacts"]
    table = _parse(read_artefact(directory, NAME, hashes))
    if manifest is None or hashes is None:
        raise ValueError(f"{directory} has neither {MANIFEST} nor runs: do the sweep again")
    listed = hashes.keys() >= TABLES
    if manifest["schema"] < TENSORS_SINCE or "format" not in table or not listed:
        again = f"quantlab aggregate {directory} writes it again"
        raise ValueError(f"{directory / MANIFEST} is of an older version: {again}")
    failed = [run for run in manifest["runs"] if run["status"] != "completed"]
    reasons = {run["directory"]: run["error"] or run["status"] for run in failed}
    unmeasured = {run["directory"]: run["unmeasured"] for run in failed if "unmeasured" in run}
    failures = {name: why for name, why in reasons.items() if name not in unmeasured}
    return Aggregated(
        directory,
        rows(table),
        manifest["levels"],
        manifest["tensors"],
        failures | manifest.get("missing", {}),
        hashes,
        {name: reasons[name] for name in unmeasured},
        list(dict.fromkeys(name for names in unmeasured.values() for name in names)),
    )


def rows(table: pd.DataFrame) -> list[Row]:
    """Convert a table to rows of Python's own types, None where a figure is missing."""
    plain = table.astype(object)
    return cast("list[Row]", plain.where(plain.notna(), None).to_dict("records"))


TEXT = (
    "dist", "mode", "tensor", "dtype", "reasons", "block", "scale_dtype", "range", "stored_dtype",
    "stored_file", "remark", "settings", "format", "unpaired", "missed",
)  # fmt: skip


def load(directory: str | Path) -> pd.DataFrame:
    """Load the table of a sweep, one row a tensor and run, from its results.csv.

    Text is ``string``, whole numbers are ``Int64``, yes and no ``boolean``, everything else, and a
    column without any value, is ``float64``. A figure that does not exist is missing, and `reasons`
    says why. What the sweep varied beyond the first four columns stands after them.

    ========================================  ======================================================
    columns                                   unit
    ========================================  ======================================================
    dist, mode, tensor, dtype, block,         names
    scale_dtype, range
    stored_dtype, stored_file                 the type that a library or a file stores, the file
    n_bits                                    bits; missing of files, which have their own
    mae, max_err, rmse, bias, err_p50,        that of the tensor's values
    err_p95, scale, scale_min, scale_max,
    x_min, x_max
    rel_err, zeroed, clipped                  shares from 0 up; 1 is all, or as large as the value
    landmark_rel_err                          share of the landmark, predicted_landmark
    sqnr_db, out_sqnr_db                      dB; that of a layer's output, where its inputs or an
                                              importance matrix are given
    worst_row_sqnr_db, worst_matrix_sqnr_db   dB; the least of the rows (the last axis, or that of
                                              groups; of a vector its blocks), and of the matrices
                                              of a stack, such as experts
    worst_matrix                              index of that matrix
    code_entropy, kl, top_bits_sufficient     bits
    rmse_over_scale                           steps, of `scale` each
    bound_ratio                               halves of a step
    cos_sim, one_minus_cos                    none
    zero_point, qmin, qmax                    codes
    n_codes, n_elements, top_k,               counts
    top_merged, top_swapped
    underflowed                               count of values that float32 turned to 0 before they
                                              were quantized
    bits_per_value, bits_above_bound          bits, all that is stored over the number of values;
                                              what of it lies above Shannon's bound
    block_size                                values that share a scale
    n_scales, scales_saturated,               counts of scales
    scales_vanished
    clip_share, zero_share, round_share       shares of the squared error
    top_worst, top_expected, top_best         shares of the top k
    scale_replaced, zero_point_clipped,       yes or no
    top_same_set, top_same_order,
    top_order_kept
    predicted_scale, predicted_max_err,       as the figure itself; only of tensors that were
    predicted_mae, predicted_rmse,            predicted
    predicted_sqnr_db, predicted_landmark,
    predicted_landmark_rel_err
    reasons                                   why figures are missing
    settings                                  those of mode, block and range that differ from their
                                              options' own, as JSON
    format                                    the name of the format
    bar_top_order, bar_rel_err, bar_sqnr_db,  criteria of the bar that the run is judged by; missing
    bar_worst_row_sqnr_db, bar_coverage,      where nothing is demanded
    bar_kl, bar_top1_same, bar_accuracy_drop
    remark                                    what is wrong with what is stored
    coverage, coverage_bytes                  of a stored file: share of the original's values that
                                              were compared, share of the file's bytes that were
    unpaired                                  names of the largest tensors that were not compared
    missed                                    criteria of the bar that a row does not meet; missing
                                              where it meets all
    ========================================  ======================================================

    Raises ValueError if the directory holds no table, or one that is not as it was aggregated.
    """
    require_directory(Path(directory))
    return _parse(read_artefact(Path(directory), NAME, read_artefact_hashes(Path(directory))))


def _parse(content: bytes) -> pd.DataFrame:
    """Parse results.csv."""
    table = pd.read_csv(
        BytesIO(content),
        dtype=dict.fromkeys(TEXT, "string"),
        keep_default_na=False,  # a tensor may be called NA
        na_values=[""],
        dtype_backend="numpy_nullable",
        lineterminator="\n",  # a name may hold the other
    )
    floats = {
        column: "float64"
        for column, dtype in table.dtypes.items()
        if dtype == "Float64"
        or (column not in TEXT and table[column].isna().all())
        or (dtype == "Int64" and str(column).startswith(record.BAR_PREFIX))
    }
    return table.astype(floats).fillna({"tensor": ""})
