"""The tables of a report, as text: every figure, and what each tensor needs at which width."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import matplotlib as mpl

from quantlab.records.record import Row
from quantlab.report.bar import Bar
from quantlab.report.format_name import has_formats, level_text
from quantlab.report.numbers import format_figure
from quantlab.report.sentences import rank_text
from quantlab.report.texts import Texts
from quantlab.report.verdict import Verdict, quality
from quantlab.text import printable

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


class Table(NamedTuple):
    """Heads and rows of text; `words` says which columns hold words, counting from 1."""

    heads: list[str]
    rows: list[list[str]]
    words: list[int]


def table(rows: Sequence[Row], levels: Sequence[str], bar: Bar, t: Texts) -> Table:
    """Return the figures that decide and those they come from, a row a tensor and run."""
    tensor_column = ["tensor"] if any(row["tensor"] != row["dist"] for row in rows) else []
    keys = list(dict.fromkeys(["dist", *tensor_column, "mode", "n_bits", *levels]))
    columns = glossary(rows)
    heads = [*keys, *columns]
    worded = {*keys, "top_k", "bar", "stored_dtype", "remark"} - {"n_bits", "block_size"}
    cells = [
        [
            *(printable(level_text(row, key)) for key in keys),
            *(_figure(row, key, bar, t) for key in columns),
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


def _figure(row: Row, key: str, bar: Bar, t: Texts) -> str:
    if key == "bar":
        return " ".join(bar.missed(row)) or t("bar_met")
    return rank_text(row, t) if key == "top_k" else format_figure(row.get(key), SPECS[key], t)


class HeatRow(NamedTuple):
    """What one tensor and mode need: the fewest bits by criterion, the SQNR at each width."""

    name: str
    fewest: list[str]
    cells: list[tuple[str, int | None]]


def heat_table(found: Sequence[Verdict], widths: Sequence[int], t: Texts) -> list[HeatRow]:
    """Return a row a tensor and mode, the worst first; a cell is its text and its shade."""
    return [
        HeatRow(
            each.name,
            [
                _fewest(each, criteria, t)
                for criteria in (each.bar.criteria, *([key] for key in each.bar.criteria))
            ],
            [_cell(each.at(n_bits), t) for n_bits in widths],
        )
        for each in found
    ]


def _fewest(each: Verdict, criteria: Collection[str], t: Texts) -> str:
    """Return the fewest bits, with a star where more bits may be too few again."""
    text = str(each.fewest(criteria) or t("none_tried"))
    return text + "*" * bool(each.gaps(criteria))


def _cell(row: Row | None, t: Texts) -> tuple[str, int | None]:
    if row is None:
        return "", None
    share = quality(row) / FULL
    shade = int(min(max(SHADES * share, 0), SHADES - 1))
    text = t("exact") if row["sqnr_db"] is None else format_figure(row["sqnr_db"], ".1f", t)
    return text, shade


def shades() -> list[tuple[str, str]]:
    """Return the colour of each shade, dark to light, and that of text on it."""
    colours = mpl.colormaps["cividis"].resampled(SHADES)(range(SHADES))
    return [
        (mpl.colors.to_hex(colour), "#000" if luminance(colour[:3]) > 0.18 else "#fff")
        for colour in colours
    ]


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def trend(found: Sequence[Verdict], t: Texts) -> str:
    """Return in words what the lines of the first picture show."""
    lines = []
    for each in found:
        ends = [row for row in each.rows if row["sqnr_db"] is not None]
        if ends:
            low, high = (f"{row['sqnr_db']:.1f}" for row in (ends[0], ends[-1]))
            bits = {"first": ends[0]["n_bits"], "last": ends[-1]["n_bits"]}
            lines.append(t("trend_line", name=each.name, low=low, high=high, **bits))
    return t("trend", lines="; ".join(lines))
