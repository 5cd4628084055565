"""The tables of a report, as text: every figure, and what each tensor needs at which width."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from quantlab.formats.format import PLAIN
from quantlab.records.record import Row
from quantlab.records.rows import Coded, Column, column_of, first_rows, select_rows
from quantlab.report.bar import missed_criteria
from quantlab.report.choices import (
    Findings,
    FormatResult,
    StoredRows,
    TensorChoice,
    Widths,
    format_points,
    has_formats,
    quality,
    row_name,
    storage_front,
)
from quantlab.report.sentences import BITS_SPEC, SQNR_SPEC, criterion_heads, percent, rank_text
from quantlab.report.texts import Texts
from quantlab.text import NULL, as_text, format_number, printable

SHADES, LIGHTEST_DB = 12, 60.0  # of the heat table, and the SQNR from which on it is lightest
MAX_PAGE_ROWS = 5000  # of a table of a page: with more it takes a browser seconds
MAX_ROWS = 60  # of a table, list or file that is read as text
PREDICTION_ROWS = 12  # that stand before a fold
METRICS = {
    "mae": ".3g",
    "max_err": ".3g",
    "rel_err": "%",
    "cos_sim": ".7f",
    "n_codes": "d",
    "sqnr_db": ".2f",
    "zeroed": "%",
}
PARAMS = {"scale": ".4g", "zero_point": "d", "n_elements": "d"}
STORAGE = {"bits_per_value": ".4g", "bits_above_bound": ".2f"}
BUDGET = dict.fromkeys(("clip_share", "zero_share", "round_share"), "%")
GLOSSARY = ("bar", *METRICS, "top_k", *PARAMS)
WITH_FORMATS = ("bar", *STORAGE, *METRICS, *BUDGET, "top_k", *PARAMS)
SPECIAL = {  # of some rows alone
    "stored_dtype": "",
    "remark": "",
    "out_sqnr_db": ".2f",
    "worst_row_sqnr_db": ".2f",
    "worst_matrix_sqnr_db": ".2f",
}
OWN_SPEC = ".4g"  # of a metric of one's own
SPECS = METRICS | PARAMS | STORAGE | BUDGET | SPECIAL
# As a terminal shows them, whose columns have one width.
MEASURED = METRICS | {"mae": ".2e", "max_err": ".2e", "rel_err": ".1%", "zeroed": ".1%"}
RATIOS = {key: MEASURED[key] for key in ("sqnr_db", "rel_err", "zeroed", "cos_sim", "n_codes")}
PREDICTED = {
    "scale": ".3g",
    "max_err": ".3g",
    "mae": ".3g",
    "rmse": ".3g",
    "sqnr_db": ".1f",
    "landmark_rel_err": "%",
}
RANKED = [key for key in PREDICTED if key != "landmark_rel_err"]  # not the luck of one value
SQNR_KEYS = ("sqnr_db", "worst_row_sqnr_db", "out_sqnr_db")
GRADES = {"close": math.log(1.1), "off": math.log(1.5), "wrong": math.inf}


class Graded(str):
    """Text of a cell with a grade, by which a page or a terminal colours it."""

    __slots__ = ("grade",)
    grade: str

    def __new__(cls, text: str, grade: str) -> "Graded":
        """Return the text with its grade: a class of the page's style, or met and missed."""
        cell = super().__new__(cls, text)
        cell.grade = grade
        return cell


class Table(NamedTuple):
    """Heads and rows of text; `words` says which columns hold words, counting from 1.

    Terminals, report.md and pages render the same tables.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (1,)


def metrics_table(
    rows: Sequence[Row], levels: Sequence[str], texts: Texts, own_metrics: Sequence[str] = ()
) -> Table:
    """Lay out the figures that decide and those they come from, a row a tensor and run.

    Metrics of one's own come last.
    """
    pairs = first_rows(rows, ["dist", "tensor"])
    tensor_column = ["tensor"] if any(row["tensor"] != row["dist"] for row in pairs) else []
    keys = list(dict.fromkeys(["dist", *tensor_column, "mode", "n_bits", *levels]))
    columns = (*figure_keys(rows), *own_metrics)
    heads = [*keys, *columns]
    worded = {*keys, "top_k", "bar", "stored_dtype", "remark"} - {"n_bits", "block_size"}
    cells = [
        [
            *(printable(level_text(row, key)) for key in keys),
            *(_figure(row, key, texts) for key in columns),
        ]
        for row in rows
    ]
    return Table(heads, cells, [n for n, head in enumerate(heads, 1) if head in worded])


def figure_keys(rows: Sequence[Row]) -> tuple[str, ...]:
    """List the figures that decide; where formats were tried, also those of their cost."""
    if not has_formats(rows):
        return GLOSSARY
    special = (key for key in SPECIAL if _is_special(column_of(rows, key), rows))
    return (*special, *WITH_FORMATS)


def _is_special(column: Column, rows: Sequence[Row]) -> bool:
    """Test whether some row has another figure in a column than its SQNR."""
    if isinstance(column, Coded) and any(isinstance(value, str) for value in column.distinct):
        return True
    figures, decibels = column.floats(), column_of(rows, "sqnr_db").floats()
    return bool(np.any(~np.isnan(figures) & (figures != decibels)))


def level_text(row: Row, level: str) -> str:
    """Return the value of a level as text; a choice that a format does not have is a dash."""
    return NULL if row[level] is None and level in ("n_bits", *PLAIN) else as_text(row[level])


def _figure(row: Row, key: str, texts: Texts) -> str:
    if key == "bar":
        return " ".join(missed_criteria(row)) or texts("bar_met")
    if key == "top_k":
        return rank_text(row, texts)
    return metric_text(row, key, SPECS.get(key, OWN_SPEC), texts)


def heat_table(findings: Findings, texts: Texts) -> Table:
    """Lay out the fewest bits by criterion and the SQNR at each width, the worst tensor first.

    Of many tensors there are `MAX_PAGE_ROWS`.

    Grades are the shades of an SQNR, ``s0`` the darkest.
    """
    criteria = list(dict.fromkeys(key for bar in findings.bars for key in bar.criteria))
    whole = [texts("heat_all")] if len(criteria) > 1 else []  # else it is that of the criterion
    heads = [
        row_head(findings, texts),
        *whole,
        *criterion_heads(findings.bars, texts),
        *(texts("heat_width", bits=n_bits) for n_bits in findings.n_bits),
    ]
    rows = [
        [
            tensor.name,
            *(_fewest(tensor, tensor.bar.criteria, texts) for _ in whole),
            *(_fewest(tensor, [key], texts) for key in criteria),
            *(_shaded(tensor.row_at(n_bits), texts) for n_bits in findings.n_bits),
        ]
        for tensor in findings.widths[:MAX_PAGE_ROWS]
    ]
    return Table(heads, rows)


def row_head(findings: Findings, texts: Texts) -> str:
    """Head the column of names."""
    return texts("heat_tensor_format" if has_formats(findings.rows) else "heat_tensor")


def _fewest(widths: Widths, criteria: Collection[str], texts: Texts) -> str:
    """Format the fewest bits, with a star where more bits may be too few again.

    It is a dash where the bar of the run does not have such a criterion.
    """
    if not widths.bar.criteria.keys() & set(criteria):
        return NULL
    text = str(widths.fewest_bits(criteria) or texts("none_tried"))
    return text + "*" * bool(widths.gaps(criteria))


def _shaded(row: Row | None, texts: Texts) -> str:
    if row is None:
        return ""
    shade = int(min(max(SHADES * quality(row) / LIGHTEST_DB, 0), SHADES - 1))
    return Graded(metric_text(row, "sqnr_db", ".1f", texts), f"s{shade}")


def trend(tensors: Sequence[Widths], texts: Texts) -> str:
    """Describe the lines of the first picture in words."""
    lines = []
    for widths in tensors:
        ends = [row for row in widths.rows if row["sqnr_db"] is not None]
        if ends:
            low, high = (f"{row['sqnr_db']:.1f}" for row in (ends[0], ends[-1]))
            bits = {"first": ends[0]["n_bits"], "last": ends[-1]["n_bits"]}
            lines.append(texts("trend_line", name=widths.name, low=low, high=high, **bits))
    return texts("trend", lines="; ".join(lines))


def format_figure(value: Any, spec: str, texts: Texts) -> str:
    """Format a figure; the spec ``%`` is a share."""
    return percent(value, texts) if spec == "%" else format_number(value, spec)


def ratio_cells(figures: Mapping[str, Any], texts: Texts) -> list[str]:
    """Format the figures that do not depend on the unit of a tensor, a cell each."""
    return [metric_text(figures, key, spec, texts) for key, spec in RATIOS.items()]


def metric_text(figures: Mapping[str, Any], key: str, spec: str, texts: Texts) -> str:
    """Format a figure; an SQNR that has no value because nothing was lost is called exact.

    So is that of the output, where an importance of its columns was given.
    """
    if key in SQNR_KEYS and key in figures and figures[key] is None and not figures["max_err"]:
        return texts("exact")
    return format_figure(figures.get(key), spec, texts)


def storage_table(choices: Sequence[TensorChoice], texts: Texts) -> Table:
    """Lay out the cheapest format of each tensor that meets the bar, its cost and its SQNR."""
    heads = [texts(f"storage_{key}") for key in ("tensor", "format", "bits", "sqnr")]
    rows = [[choice.name, *_format_cells(choice.cheapest, texts)] for choice in choices]
    return Table(heads, rows, words=(1, 2))


def _format_cells(result: FormatResult | None, texts: Texts) -> tuple[str, str, str]:
    if result is None:
        return texts("storage_none"), NULL, NULL
    return result.name, *_storage_cells(result.row, texts)


def _storage_cells(row: Row, texts: Texts) -> tuple[str, str]:
    sqnr = metric_text(row, "sqnr_db", SQNR_SPEC, texts)
    return format_number(row["bits_per_value"], BITS_SPEC), sqnr


def side_by_side(files: Sequence[StoredRows], texts: Texts) -> Table:
    """Lay out all tensors of quantized files: the type, its bits and SQNR in each file.

    Those come first that differ most from file to file; of one file those that lost most.
    """
    tensors: dict[str, dict[int, Row]] = {}
    for n, file in enumerate(files):
        for row in file.rows:
            tensors.setdefault(row["tensor"], {})[n] = row
    weighted = any(row.get("out_sqnr_db") is not None for file in files for row in file.rows)
    columns = ["stored_as", "storage_bits", "storage_sqnr", *(["stored_out"] if weighted else [])]
    names = [f"{printable(file.name)}: " for file in files] if len(files) > 1 else [""]
    heads = [f"{name}{texts(key)}" for name in names for key in columns]
    rows = []
    for name in sorted(tensors, key=lambda name: _spread(list(tensors[name].values()))):
        of_files = (_stored_cells(tensors[name].get(n), columns, texts) for n in range(len(files)))
        rows.append([printable(name), *(cell for cells in of_files for cell in cells)])
    types = range(2, 2 + len(heads), len(columns))
    return Table([texts("storage_tensor"), *heads], rows, words=(1, *types))


def _spread(rows: Sequence[Row]) -> tuple[float, float]:
    """Compute the sort key: the greatest difference in SQNR first, then the least SQNR."""
    decibels = [min(quality(row), 999.0) for row in rows]
    return min(decibels) - max(decibels), min(decibels)


def _stored_cells(row: Row | None, columns: Sequence[str], texts: Texts) -> list[str]:
    if row is None:
        return [NULL] * len(columns)
    cells = [row["stored_dtype"], *_storage_cells(row, texts)]
    return [*cells, metric_text(row, "out_sqnr_db", SQNR_SPEC, texts)][: len(columns)]


def storage_trend(choices: Sequence[TensorChoice], texts: Texts) -> str:
    """Describe the front of the picture in words."""
    points = [
        texts(
            "storage_alt_point",
            name=point.name,
            sqnr=f"{point.sqnr_db:.1f}",
            bits=f"{point.bits:{BITS_SPEC}}",
        )
        for point in storage_front(format_points(choices))
        if not point.is_exact
    ]
    return texts("storage_alt", front="; ".join(points))


class Prediction(NamedTuple):
    """A figure as predicted and as measured, their ratio, and how wrong that is."""

    predicted: str
    measured: str
    ratio: str
    grade: str


def prediction_table(
    rows: Sequence[Row], levels: Sequence[str], texts: Texts
) -> list[tuple[str, list[Prediction]]]:
    """List predicted beside measured figures, a row a tensor and run, the most wrong first."""
    columns = [column_of(rows, f"predicted_{key}").floats() for key in PREDICTED]
    predicted = np.flatnonzero(~np.isnan(columns).all(axis=0)) if rows else np.zeros(0, np.intp)
    ranked = sorted(
        select_rows(rows, predicted),
        key=lambda row: -max(_log_ratio(key, row) for key in RANKED),
    )
    return [
        (
            texts("in_bits", name=row_name(row, levels), bits=row["n_bits"]),
            [_prediction(key, row, texts) for key in PREDICTED],
        )
        for row in ranked
    ]


def is_predicted(row: Row) -> bool:
    """Test if anything was predicted of a row; of many scales nothing is."""
    return any(row.get(f"predicted_{key}") is not None for key in PREDICTED)


def _prediction(key: str, row: Row, texts: Texts) -> Prediction:
    before, after, log_ratio = row.get(f"predicted_{key}"), row[key], _log_ratio(key, row)
    figures = (
        format_figure(before, PREDICTED[key], texts),
        metric_text(row, key, PREDICTED[key], texts),
    )
    if before is None or after is None:
        return Prediction(*figures, NULL, "")
    ratio = f"{after - before:+.1f}" if key == "sqnr_db" else f"×{after / before:.2f}"
    return Prediction(*figures, ratio, grade_ratio(log_ratio))


def grade_ratio(log_ratio: float) -> str:
    """Grade how far a figure is from its prediction, by the logarithm of their ratio."""
    return next(grade for grade, most in GRADES.items() if abs(log_ratio) <= most)


def _log_ratio(key: str, row: Row) -> float:
    """Compute |log| of the ratio of a figure to its prediction, 0 where one is missing.

    Of an SQNR it is the ratio of the errors behind it.
    """
    before, after = row.get(f"predicted_{key}"), row[key]
    if before is None or after is None:
        return 0.0
    if key == "sqnr_db":
        return abs(after - before) / 20 * math.log(10)
    return abs(math.log(after / before)) if after else math.inf
