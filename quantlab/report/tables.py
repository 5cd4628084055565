"""The tables of a report, as text: every figure, and what each tensor needs at which width."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from quantlab.formats.format import PLAIN
from quantlab.records.record import Row
from quantlab.report.bar import Bar
from quantlab.report.choices import (
    FormatResult,
    SourceCounts,
    TensorChoice,
    Widths,
    count_by_source,
    format_points,
    has_formats,
    quality,
    row_name,
    storage_front,
)
from quantlab.report.sentences import percent, rank_text
from quantlab.report.texts import Texts
from quantlab.text import NULL, as_text, format_number, printable

SHADES, FULL = 12, 60.0  # shades of the heat table; the SQNR in dB from which on it is lightest
FIGURES = {
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
GLOSSARY = ("bar", *FIGURES, "top_k", *PARAMS)
WITH_FORMATS = ("bar", *STORAGE, *FIGURES, *BUDGET, "top_k", *PARAMS)
SPECIAL = {"stored_dtype": "", "remark": "", "out_sqnr_db": ".2f"}  # of some rows alone
SPECS = FIGURES | PARAMS | STORAGE | BUDGET | SPECIAL
MEASURED = {  # the figures that a terminal shows, as it shows them
    "mae": ".2e",
    "max_err": ".2e",
    "rel_err": ".1%",
    "cos_sim": ".7f",
    "n_codes": "d",
    "sqnr_db": ".2f",
    "zeroed": ".1%",
}
RATIOS = {key: MEASURED[key] for key in ("sqnr_db", "rel_err", "zeroed", "cos_sim", "n_codes")}
BITS, SQNR = ".4g", ".2f"
FORMATS = 5  # of a source that a sentence names
PREDICTED = {
    "scale": ".3g",
    "max_err": ".3g",
    "mae": ".3g",
    "rmse": ".3g",
    "sqnr_db": ".1f",
    "landmark_rel_err": "%",
}
OF_MANY = [key for key in PREDICTED if key != "landmark_rel_err"]  # not the luck of one value
GRADES = {"close": math.log(1.1), "off": math.log(1.5), "wrong": math.inf}


class Table(NamedTuple):
    """Heads and rows of text; `words` says which columns hold words, counting from 1."""

    heads: list[str]
    rows: list[list[str]]
    words: list[int]


def table(rows: Sequence[Row], levels: Sequence[str], texts: Texts) -> Table:
    """Return the figures that decide and those they come from, a row a tensor and run."""
    tensor_column = ["tensor"] if any(row["tensor"] != row["dist"] for row in rows) else []
    keys = list(dict.fromkeys(["dist", *tensor_column, "mode", "n_bits", *levels]))
    columns = glossary(rows)
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


def glossary(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the figures that decide; where formats were tried, also what they cost."""
    if not has_formats(rows):
        return GLOSSARY
    special = (key for key in SPECIAL if any(row.get(key) is not None for row in rows))
    return (*special, *WITH_FORMATS)


def level_text(row: Row, level: str) -> str:
    """Return the value of a level as text; a choice that a format does not have is a dash."""
    return NULL if row[level] is None and level in ("n_bits", *PLAIN) else as_text(row[level])


def _figure(row: Row, key: str, texts: Texts) -> str:
    if key == "bar":
        return " ".join(Bar.from_row(row).missed(row)) or texts("bar_met")
    return rank_text(row, texts) if key == "top_k" else metric_text(row, key, SPECS[key], texts)


class HeatRow(NamedTuple):
    """One tensor and mode: the fewest bits by criterion, the SQNR at each width."""

    name: str
    fewest: list[str]
    cells: list[tuple[str, int | None]]


def heat_table(tensors: Sequence[Widths], widths: Sequence[int], texts: Texts) -> list[HeatRow]:
    """Return a row a tensor and mode, the worst first; a cell is its text and its shade."""
    criteria = list(dict.fromkeys(key for tensor in tensors for key in tensor.bar.criteria))
    return [
        HeatRow(
            tensor.name,
            [
                _fewest(tensor, keys, texts)
                for keys in (tensor.bar.criteria, *([key] for key in criteria))
            ],
            [_cell(tensor.row_at(n_bits), texts) for n_bits in widths],
        )
        for tensor in tensors
    ]


def _fewest(widths: Widths, criteria: Collection[str], texts: Texts) -> str:
    """Return the fewest bits, with a star where more bits may be too few again.

    It is a dash where the bar of the run does not have such a criterion.
    """
    if not widths.bar.criteria.keys() & set(criteria):
        return NULL
    text = str(widths.fewest_bits(criteria) or texts("none_tried"))
    return text + "*" * bool(widths.gaps(criteria))


def _cell(row: Row | None, texts: Texts) -> tuple[str, int | None]:
    if row is None:
        return "", None
    share = quality(row) / FULL
    shade = int(min(max(SHADES * share, 0), SHADES - 1))
    text = metric_text(row, "sqnr_db", ".1f", texts)
    return text, shade


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
    """Return a figure as text; the spec ``%`` is a share."""
    return percent(value, texts) if spec == "%" else format_number(value, spec)


def ratio_cells(figures: Mapping[str, Any], texts: Texts) -> list[str]:
    """Format the figures that do not depend on the unit of a tensor, a cell each."""
    return [metric_text(figures, key, spec, texts) for key, spec in RATIOS.items()]


def metric_text(figures: Mapping[str, Any], key: str, spec: str, texts: Texts) -> str:
    """Format a figure; an SQNR that has no value because nothing was lost is called exact."""
    if key == "sqnr_db" and figures[key] is None and not figures["max_err"]:
        return texts("exact")
    return format_figure(figures.get(key), spec, texts)


class StorageRow(NamedTuple):
    """A tensor, the cheapest format that meets the bar, what it costs and gives."""

    name: str
    format: str
    bits: str
    sqnr: str


def storage_table(choices: Sequence[TensorChoice], texts: Texts) -> list[StorageRow]:
    """Return a row a tensor, those that need most first."""
    return [StorageRow(choice.name, *_cells(choice.cheapest, texts)) for choice in choices]


def _cells(result: FormatResult | None, texts: Texts) -> tuple[str, str, str]:
    if result is None:
        return texts("storage_none"), NULL, NULL
    return result.name, format_number(result.bits, BITS), _sqnr(result, texts)


def _sqnr(result: FormatResult, texts: Texts) -> str:
    return texts("exact") if math.isinf(result.sqnr_db) else format_number(result.sqnr_db, SQNR)


def storage_heads(texts: Texts) -> list[str]:
    """List the heads of the columns."""
    return [texts(f"storage_{key}") for key in ("tensor", "format", "bits", "sqnr")]


def storage_sentences(
    choices: Sequence[TensorChoice], levels: Sequence[str], texts: Texts
) -> Iterator[str]:
    """Yield the cheapest format: a sentence a tensor, or of many tensors a sentence a source."""
    if "tensor" in levels:
        yield from (_summary(entry, texts) for entry in count_by_source(choices))
    else:
        yield from (_sentence(entry, texts) for entry in choices)


def _sentence(choice: TensorChoice, texts: Texts) -> str:
    if choice.cheapest is None:
        return texts("cheapest_none", name=choice.name)
    bits = format_number(choice.cheapest.bits, BITS)
    return texts("cheapest", name=choice.name, format=choice.cheapest.name, bits=bits)


def _summary(source: SourceCounts, texts: Texts) -> str:
    words = {"name": source.source, "n": source.n_tensors}
    if not source.n_met:
        return texts("cheapest_many_none", **words)
    counts = [texts("cheapest_count", format=name, n=n) for name, n in source.formats[:FORMATS]]
    more = sum(n for _, n in source.formats[FORMATS:])
    counts += [texts("cheapest_others", n=more)] if more else []
    return texts("cheapest_many", **words, met=source.n_met, counts="; ".join(counts))


def storage_trend(choices: Sequence[TensorChoice], texts: Texts) -> str:
    """Describe the front of the picture in words."""
    points = [
        texts(
            "storage_alt_point",
            name=point.name,
            sqnr=f"{point.sqnr_db:.1f}",
            bits=f"{point.bits:{BITS}}",
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
    ranked = sorted(
        filter(is_predicted, rows), key=lambda row: -max(_log_ratio(key, row) for key in OF_MANY)
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
        format_figure(after, PREDICTED[key], texts),
    )
    if before is None or after is None:
        return Prediction(*figures, NULL, "")
    ratio = f"{after - before:+.1f}" if key == "sqnr_db" else f"×{after / before:.2f}"
    return Prediction(
        *figures, ratio, next(grade for grade, most in GRADES.items() if log_ratio <= most)
    )


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
