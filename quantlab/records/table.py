"""The table of a sweep: its runs -> results.json and results.csv -> rows and pandas again."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO, RawIOBase
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from tqdm import tqdm

from quantlab.formats.format import PLAIN, FormatSpec
from quantlab.records import parts, record
from quantlab.records.collection import DIRECTORY, FIGURE_KEYS, require_directory
from quantlab.records.manifest import NAME as MANIFEST
from quantlab.records.manifest import read_artefact, read_artefact_hashes, read_manifest
from quantlab.records.older import SINCE_9
from quantlab.records.record import Record, Row, Run
from quantlab.records.rows import (
    Coded,
    Column,
    Indices,
    Rows,
    column_of,
    count_groups,
    encode,
    group_codes,
    group_indices,
    group_rows,
    to_csv_cell,
    to_json,
)
from quantlab.text import as_text, first_few

WRITTEN_ROWS = 4096  # at once
MIN_PARQUET_ROWS = 100_000  # fewer are read from CSV in a second, and stay the same files anywhere
PARQUET_ROWS = 65_536  # of a group
UNPAIRED_NAMES = 3  # in one cell
CONTEXT = ("settings", "format", "coverage", "coverage_bytes", "unpaired", *SINCE_9)
FACTORS = ["dist", "mode", "n_bits", "tensor"]
FORMAT = list(PLAIN)  # columns of the format that may nest results.json
FORMAT_SETTINGS = {"block", "range", *record.COLUMN_SETTINGS}  # settings that these columns say
NO_AXES = {*FACTORS, *FORMAT_SETTINGS, "model", "model.each"}  # whether a model answers is no axis


class Table(NamedTuple):
    """The rows of a sweep, the levels that nest them, and the run directory of each."""

    rows: Rows
    levels: list[str]
    directories: Column


def tabulate(runs: Sequence[Run], figures: Rows, directory: Path) -> Table:
    """Make the table of a sweep that was collected; raises ValueError on duplicates."""
    parts.require_consistent(runs, directory)
    records = [run.record for run in parts.join_parts(runs) if run.record]
    axes = swept_axes(records)
    order = np.array([row for content in records for row in content["tensors"].values()], np.intp)
    tensors = figures.take(order)
    table = tidy(records, figures, tensors, axes)
    levels = varied_levels(table, axes)
    directories = column_of(tensors, DIRECTORY)
    _refuse_duplicates(table, levels, directories, directory)
    return Table(table, levels, directories)


def results_csv(rows: Rows, missed: Coded) -> Iterator[bytes]:
    """Yield results.csv, a part after the other, with the criteria that each row `missed`."""
    texts = [*map("; ".join, missed.distinct)]
    columns = {**rows.columns, "missed": Coded(missed.codes, texts)}
    yield f"{','.join(map(to_csv_cell, columns))}\n".encode(errors="backslashreplace")
    for part in _row_parts(len(rows)):
        lines = zip(*(column.csv(part) for column in columns.values()), strict=True)
        text = "".join(f"{','.join(line)}\n" for line in lines)
        yield text.encode(errors="backslashreplace")


def has_parquet(rows: Rows) -> bool:
    """Test whether rows are so many that they are written as Parquet too, and pyarrow is here."""
    return len(rows) >= MIN_PARQUET_ROWS and find_spec("pyarrow") is not None


def results_parquet(rows: Rows, missed: Coded) -> Iterator[bytes]:
    """Yield results.parquet, a group of rows after the other: the columns of results.csv."""
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    texts = ["; ".join(keys) or None for keys in missed.distinct]
    table = rows.with_columns({"missed": Coded(missed.codes, texts)})
    file, writer = _Parts(), None
    for part in _row_parts(len(rows), PARQUET_ROWS):
        columns = table.take(np.arange(part.start, part.stop)).columns
        group = pyarrow.table({key: _arrow_array(columns[key], pyarrow) for key in columns})
        writer = writer or parquet.ParquetWriter(file, group.schema)
        writer.write_table(group)
        yield file.take()
    if writer:
        writer.close()
    yield file.take()


class _Parts(RawIOBase):
    """A file that gives away what was written to it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self._parts.append(bytes(part))
        self._position += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        """Return what was written since the last time."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content


def _arrow_array(column: Column, pyarrow: Any) -> Any:
    """Convert a column: floats, booleans and integers as they are, all else to text."""
    if not isinstance(column, Coded):
        return pyarrow.array(column.floats(), from_pandas=True)
    kinds = {type(value) for value in column.distinct} - {type(None)}
    if kinds in ({int}, {bool}):
        return pyarrow.array(column.distinct).take(pyarrow.array(column.codes))
    if kinds == {float, int}:
        return pyarrow.array(column.floats(), from_pandas=True)
    texts = [None if value is None else _unicode(as_text(value)) for value in column.distinct]
    return pyarrow.array(texts, pyarrow.string()).take(pyarrow.array(column.codes))


def _unicode(text: str) -> str:
    """Escape what is no Unicode, as in results.csv: a file's name need not be."""
    return text.encode(errors="backslashreplace").decode()


def _row_parts(n: int, n_part: int = WRITTEN_ROWS) -> Iterator[slice]:
    """Yield the parts of `n` rows that are written at once."""
    with tqdm(total=n, desc="writing", unit="row", delay=1, disable=None, leave=False) as bar:
        for start in range(0, n, n_part):
            yield slice(start, min(start + n_part, n))
            bar.update(n_part)


def results_json(rows: Rows, levels: Sequence[str]) -> Iterator[bytes]:
    """Yield results.json, a part after the other: the figures under levels, the outermost first.

    It is `disk.to_json` of nested dicts, in which what a level comes to first stands first.
    """
    factors = {*FACTORS, *levels}
    figures = [key for key in rows.columns if key not in factors and not is_context(key)]
    indent = "  " * (len(levels) + 1)
    heads = [f"{indent}{to_json(key)}: ".replace("%", "%%") for key in figures]
    template = ",\n".join(f"{head}%s" for head in heads)
    order = np.lexsort([group_codes(rows, levels[:n]) for n in range(len(levels), 0, -1)])
    path: tuple[str, ...] = ()
    for part in _row_parts(len(rows)):
        ordered = rows.take(order[part])
        names = (ordered.columns[key].format(slice(None), _level_key) for key in levels)
        cells = (ordered.columns[key].json(slice(None)) for key in figures)
        lines = []
        for row_path, row_cells in zip(
            zip(*names, strict=True), zip(*cells, strict=True), strict=True
        ):
            lines += [_open_levels(path, row_path), template % row_cells]
            path = row_path
        yield "".join(lines).encode(errors="backslashreplace")
    yield f"{_close_levels(len(path), 0)}}}\n".encode() if path else b"{}\n"


def _level_key(value: Any) -> str:
    return to_json(as_text(value))


def _open_levels(before: tuple[str, ...], path: tuple[str, ...]) -> str:
    """Close the levels in which a row is not any more, and open those in which it is."""
    same = next(
        (n for n, names in enumerate(zip(before, path, strict=False)) if len({*names}) > 1), 0
    )
    ending = f"{_close_levels(len(before), same)[:-1]},\n" if before else "{\n"
    return ending + "".join(
        f"{'  ' * depth}{name}: {{\n" for depth, name in enumerate(path[same:], same + 1)
    )


def _close_levels(depth: int, least: int) -> str:
    return "\n" + "".join(f"{'  ' * n}}}\n" for n in range(depth, least, -1))


def swept_axes(records: list[Record]) -> list[str]:
    """List the overridden keys, beyond `NO_AXES`, whose values differ between the records."""
    keys = {key for content in records for key in _overrides(content)}
    keys = {key for key in keys - NO_AXES if record.has_effect(key)}
    keys -= parts.unrecorded_part_keys(records)
    return sorted(key for key in keys if len({as_text(setting(r, key)) for r in records}) > 1)


def tidy(records: list[Record], figures: Rows, tensors: Rows, axes: list[str]) -> Rows:
    """Make one row a tensor and run: the factors, the axes, then every figure.

    `tensors` are the rows of the `figures` of a sweep that are of these records, in their order.
    """
    files = file_names(records, figures)
    of_record = np.repeat(np.arange(len(records)), [len(content["tensors"]) for content in records])
    contexts = [_context(content, files) for content in records]
    shared = Rows.of(
        [
            _factors(content, axes) | context
            for content, context in zip(records, contexts, strict=True)
        ]
    )
    columns = {**shared.take(of_record).columns}
    of_runs = {key: columns[key] for context in contexts for key in context}
    columns |= {**tensors.columns, **of_runs}
    columns |= _named_files(tensors, of_record, [_file_of(content, files) for content in records])
    keys = _row_keys(columns[FIGURE_KEYS], of_record, contexts) if len(tensors) else []
    own = [key for key in keys if key not in FORMAT and not is_context(key)]
    names = [*FACTORS, *axes, *own, *FORMAT, *filter(is_context, keys)]
    table = Rows(columns, len(tensors))
    return Rows({key: column_of(table, key) for key in dict.fromkeys(names)}, len(tensors))


def _factors(content: Record, axes: list[str]) -> dict[str, Any]:
    factors = {key: content[key] for key in FACTORS if key != "tensor"}
    return factors | {axis: setting(content, axis) for axis in axes}


def _context(content: Record, files: Mapping[str, str]) -> dict[str, Any]:
    """List the columns of a run: of its format, of what was compared, and of its bar."""
    if not content["tensors"]:
        return {}
    columns = format_columns(content["spec"], _file_of(content, files))
    return columns | _coverage_columns(content.get("coverage")) | bar_columns(content)


def _file_of(content: Record, files: Mapping[str, str]) -> str | None:
    """Find the name of the quantized file of a run, if it is of one."""
    return files.get(str(setting(content, "mode.path")))


def _named_files(
    tensors: Rows, of_record: Indices, files: Sequence[str | None]
) -> dict[str, Column]:
    """Name the quantized file of each row as all of the sweep tell it apart."""
    if not any(files):
        return {}
    own = column_of(tensors, "stored_file")
    names = [files[n] or own[row] for row, n in enumerate(of_record.tolist())]
    return {"stored_file": encode(names)}


def _row_keys(
    figure_keys: Column, of_record: Indices, contexts: Sequence[Mapping[str, Any]]
) -> list[str]:
    """List the keys of all rows in the order in which rows come to have them."""
    context_keys = encode([tuple(context) for context in contexts]).take(of_record)
    kinds = Rows({"figures": figure_keys, "context": context_keys}, len(of_record))
    firsts = (kinds[rows[0]] for rows in group_rows(kinds, kinds.columns))
    return list(dict.fromkeys(key for row in firsts for keys in row.values() for key in keys))


def file_names(records: list[Record], figures: Rows) -> dict[str, str]:
    """Name each quantized file by its path, as its record does.

    Files of one name get as much of their paths as it takes to tell them apart.
    """
    stored = column_of(figures, "stored_file")
    names = {
        str(setting(content, "mode.path")): stored[row]
        for content in records
        for row in content["tensors"].values()
        if stored[row] is not None
    }
    for n in range(2, max((len(Path(path).parts) for path in names), default=0) + 1):
        times = Counter(names.values())
        longer = {path: "/".join(Path(path).parts[-n:]) for path in names}
        names = {path: longer[path] if times[name] > 1 else name for path, name in names.items()}
    return names


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
    names = first_few(list(coverage["unpaired"]), UNPAIRED_NAMES)
    return {
        "coverage": coverage["values"] / max(coverage["all_values"], 1),
        "coverage_bytes": coverage["bytes"] / max(coverage["all_bytes"], 1),
        "unpaired": ", ".join(names) or None,
    }


def format_columns(spec: Mapping[str, Any], file: str | None) -> dict[str, Any]:
    """List the columns of a format; a stored `file` is called by its name."""
    format_spec = FormatSpec.from_json(spec)
    return (format_spec.with_element(file) if file else format_spec).columns()


def varied_levels(table: Rows, axes: list[str]) -> list[str]:
    """List the columns that nest results.json: dist, mode, and every other that varies."""
    levels = ["dist", "mode"]
    if count_groups(table, ["n_bits"]) > 1:
        levels.append("n_bits")
    if count_groups(table, ["dist", "tensor"]) > count_groups(table, ["dist"]):
        levels.append("tensor")
    alike = [*FACTORS, *axes]
    n_alike = count_groups(table, alike)
    varied = [key for key in FORMAT if count_groups(table, [*alike, key]) > n_alike]
    return [*levels, *sorted([*axes, *varied])]


def _refuse_duplicates(
    table: Rows, levels: list[str], directories: Column, directory: Path
) -> None:
    """Raise ValueError if two rows, of these run directories, have the same levels."""
    codes = group_codes(table, levels)
    if codes.max(initial=-1) + 1 == len(table):
        return
    first, other, *_ = next(rows for rows in group_indices(codes) if len(rows) > 1)
    shared = ", ".join(f"{level}={as_text(table[first][level])}" for level in levels)
    folder = directory / directories[first]
    raise ValueError(
        f"two runs are of {shared}: {folder} and {directory / directories[other]}; "
        f"remove one, then quantlab aggregate {folder.parent}"
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
PARQUET = "results.parquet"
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
