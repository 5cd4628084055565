"""The report of a sweep: report.html to look at and to mail, report.md for a pull request, plots.

The same records, command, bar and language give the same bytes. The layout is in
``templates/``, the words are in ``texts/``, the figures of the page come from `page`,
`guess` and `card`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from quantlab import card, guess, page, plots
from quantlab.bar import Bar, Row
from quantlab.tensor import printable
from quantlab.terminal import grouped_by_reason
from quantlab.texts import Texts
from quantlab.verdict import (
    INT8,
    Verdict,
    answers,
    cell,
    criterion,
    groups,
    quality,
    row_name,
    sentence,
    sentences,
    the_bar,
    unmeasured,
    widths,
)

CARDS = 6  # tensors that are looked at closely
FIRST, MOST = 12, 200  # sentences before the fold, and of single tensors behind it
HEAT = 40  # rows of the heat table before the fold
LINES = 60  # failures and tensors left out that are listed, rows of predictions and of report.md
PICTURES = ("plots/closer_*", "plots/error_vs_bits.*", "error_histogram.png")
HISTOGRAM = "hidden"  # the lab's choice (block F)


class Shown(NamedTuple):
    """A row of the table, and what the record says of its tensor."""

    row: Row
    tensor: plots.Entry


@dataclass(frozen=True)
class Findings:
    """What a report tells of a sweep.

    `rows` and `levels` are those of its table, `verdicts` has the worst first; `closer` are looked
    at closely, `histogram` is the lab's; `failures` and `skipped` map a run or a tensor to the
    reason, `unmeasured` are the tensors that failed; `provenance` maps a text's key to what stands
    beside it.
    """

    rows: Sequence[Row]
    levels: Sequence[str]
    verdicts: Sequence[Verdict]
    bar: Bar
    closer: Sequence[Shown]
    histogram: Sequence[Shown]
    failures: Mapping[str, str]
    skipped: Mapping[str, str]
    unmeasured: Sequence[str]
    provenance: Mapping[str, str]


def choose(rows: Sequence[Row], levels: Sequence[str]) -> list[int]:
    """Choose the rows to look at closely, the worst first.

    Of each source, mode and what else was swept it is the tensor with the least SQNR, in 8 bits if
    they were tried, else in the width that comes first.
    """
    apart = [level for level in levels if level not in ("n_bits", "tensor")]
    worst = [_worst(rows, _of_one_width(rows, each)) for each in groups(rows, apart)]
    return sorted(worst, key=lambda n: quality(rows[n]))[:CARDS]


def choose_histogram(rows: Sequence[Row]) -> list[int]:
    """Choose the rows of the lab's histogram: a mode each, of `hidden` or the first source.

    Of several tensors it is the one with the least SQNR in the first mode.
    """
    dist = next((row["dist"] for row in rows if row["dist"] == HISTOGRAM), rows[0]["dist"])
    left = _of_one_width(rows, [n for n, row in enumerate(rows) if row["dist"] == dist])
    first = [n for n in left if rows[n]["mode"] == rows[left[0]]["mode"]]
    name = rows[_worst(rows, first)]["tensor"]
    modes: dict[str, int] = {}
    for n in left:
        if rows[n]["tensor"] == name:
            modes.setdefault(rows[n]["mode"], n)
    return list(modes.values())


def _of_one_width(rows: Sequence[Row], among: Sequence[int]) -> list[int]:
    tried = [rows[n]["n_bits"] for n in among]
    wanted = INT8 if INT8 in tried else tried[0]
    return [n for n in among if rows[n]["n_bits"] == wanted]


def _worst(rows: Sequence[Row], among: Sequence[int]) -> int:
    return min(among, key=lambda n: quality(rows[n]))


def artefacts(found: Findings, t: Texts) -> dict[str, bytes]:
    """Return the files of a report under their names, relative to the sweep's directory."""
    files: dict[str, bytes] = {}
    trend, cards = None, []
    with plots.styled():
        if found.verdicts:
            drawn = plots.error_vs_bits(found.verdicts, found.bar, t)
            svg = _keep(files, "error_vs_bits", drawn)
            trend = Markup(plots.inline(svg, page.trend(found.verdicts[: plots.LINES], t)))
        for number, (row, tensor) in enumerate(found.closer, 1):
            svg = _keep(files, f"closer_{number}", plots.closer(tensor, t))
            cards.append(card.card(row_name(row, found.levels), row["n_bits"], tensor, svg, t))
        if found.histogram:
            files["error_histogram.png"] = plots.png(plots.error_histogram(found.histogram, t))
    said = {"t": t, "found": found, **_said(found, t)}
    html = _template("report.html.j2").render(**said, **_page(found, t), trend=trend, cards=cards)
    text = _template("report.md.j2").render(**said, **_markdown(found, t))
    pages = {"report.html": html, "report.md": text}  # a file's name need not be Unicode
    return files | {name: each.encode(errors="backslashreplace") for name, each in pages.items()}


def measurement(name: str, n_bits: int, tensor: plots.Entry, t: Texts) -> str:
    """Return one tensor of one run as HTML that stands in a notebook."""
    with plots.styled():
        drawn = plots.svg(plots.closer(tensor, t), salt="measurement")
    measured = tensor["params"] | tensor["measured"] | tensor["rank"]
    figures = {key: cell(value, ".6g") for key, value in measured.items()}
    shown = card.card(name, n_bits, tensor, drawn, t)
    return _template("measurement.html.j2").render(card=shown, figures=figures, t=t)


def _keep(files: dict[str, bytes], name: str, drawn: Figure) -> bytes:
    """Keep a picture as PNG and as SVG, and return the SVG."""
    files[f"plots/{name}.png"] = plots.png(drawn)
    files[f"plots/{name}.svg"] = plots.svg(drawn, salt=name)
    return files[f"plots/{name}.svg"]


def _said(found: Findings, t: Texts) -> dict[str, Any]:
    """Return what both forms of the report say."""
    tensors = {each.rows[0]["tensor"] for each in found.verdicts}
    return {
        "title": t("title" if len(tensors) == 1 else "title_many"),
        "subtitle": _subtitle(found, t) if found.rows else t("not_measured"),
        "criteria": [criterion(key, asked, t) for key, asked in found.bar.criteria.items()],
        "answers": list(answers(found.verdicts, t)),
        "sentences": list(sentences(found.verdicts, found.levels, t)),
        "unmeasured": unmeasured(found.unmeasured, t),
        "the_bar": the_bar(found.bar, t),
        "starred": any(each.gaps([key]) for each in found.verdicts for key in found.bar.criteria),
        "failures": grouped_by_reason(found.failures, t),
        "skipped": [(printable(each), why) for each, why in found.skipped.items()],
        "lines": LINES,
    }


def _subtitle(found: Findings, t: Texts) -> str:
    dists, modes = (
        ", ".join(dict.fromkeys(row[key] for row in found.rows)) for key in ("dist", "mode")
    )
    return t("subtitle", dists=dists, modes=modes, widths=widths(_tried(found), t))


def _page(found: Findings, t: Texts) -> dict[str, Any]:
    """Return what only the page shows."""
    many = "tensor" in found.levels
    return {
        "first": FIRST,
        "most": MOST,
        "single": [sentence(each, t) for each in found.verdicts[:MOST]] if many else [],
        "tried": _tried(found),
        "heat": page.heat(found.verdicts, _tried(found), t),
        "heat_first": HEAT,
        "shades": page.shades(),
        "predicted": guess.PREDICTED,
        "predictions": guess.predictions(found.rows, found.levels, t),
        "table": page.table(found.rows, found.levels, found.bar, t),
        "glossary": (*page.GLOSSARY, "rmse", "landmark_rel_err"),
        "bits_caption": _bits_caption(found, t),
    }


def _markdown(found: Findings, t: Texts) -> dict[str, Any]:
    """Return what only report.md shows: of many rows those that suffer most."""
    rows = found.rows
    if len(rows) > LINES:
        rows = sorted(rows, key=quality)[:LINES]
    return {
        "tried": _tried(found),
        "heat": page.heat(found.verdicts[:LINES], _tried(found), t),
        "table": page.table(rows, found.levels, found.bar, t),
    }


def _bits_caption(found: Findings, t: Texts) -> str:
    if len(found.verdicts) <= plots.LINES:
        return t("bits_caption")
    return t("bits_caption_many", n=plots.LINES, of=len(found.verdicts))


def _tried(found: Findings) -> list[int]:
    return sorted({row["n_bits"] for row in found.rows})


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("quantlab"),
        autoescape=".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["escaped"] = _escaped
    return environment.get_template(name)


def _escaped(text: str) -> str:
    """Return text that stands in a cell of a Markdown table as it is."""
    return re.sub(r"([|\\`*_<\[~&])", r"\\\1", " ".join(text.split()))
