"""The report of a sweep: report.html to look at and to mail, report.md for a pull request, plots.

It is made of the records alone: the same records give the same bytes. The layout is in
``templates/``, the words are in ``texts/``, the figures of the page come from `page`,
`guess` and `card`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from quantlab import card, guess, page, plots
from quantlab.bar import Bar, Row
from quantlab.record import Record
from quantlab.tensor import label
from quantlab.terminal import cell, grouped_by_reason
from quantlab.texts import Texts
from quantlab.verdict import (
    INT8,
    Verdict,
    answers,
    criterion,
    quality,
    sentence,
    sentences,
    the_bar,
    widths,
)

CARDS = 6  # tensors that are looked at closely
FIRST, MOST = 12, 200  # sentences before the fold, and of single tensors behind it
HEAT = 40  # rows of the heat table before the fold
LINES = 60  # failures and tensors left out that are listed, rows of predictions and of report.md
HISTOGRAM = "hidden"  # the lab's choice (block F)


@dataclass(frozen=True)
class Findings:
    """What a report tells of a sweep.

    `rows` and `levels` are those of its table, `verdicts` has the worst first; `shown` are the
    records to look at closely; `failures` and `skipped` map a run or a tensor to the reason;
    `provenance` maps a text's key to what stands beside it.
    """

    rows: Sequence[Row]
    levels: Sequence[str]
    verdicts: Sequence[Verdict]
    bar: Bar
    shown: Sequence[Record]
    failures: Mapping[str, str]
    skipped: Mapping[str, str]
    provenance: Mapping[str, str]


def choose(records: Mapping[str, Record]) -> list[str]:
    """Choose the runs to look at closely: of each source and mode one, in 8 bits if it was tried.

    `records` maps a run's directory to what its record says, in the order of the sweep.
    """
    eight_first = sorted(records.items(), key=lambda item: item[1]["n_bits"] != INT8)
    chosen: dict[tuple[str, str], str] = {}
    for directory, one in eight_first:
        chosen.setdefault((one["dist"], one["mode"]), directory)
    return list(chosen.values())[:CARDS]


def artefacts(found: Findings, t: Texts) -> dict[str, bytes]:
    """Return the files of a report under their names, relative to the sweep's directory."""
    files: dict[str, bytes] = {}
    trend, cards = None, []
    with plots.styled():
        if found.verdicts:
            drawn = plots.error_vs_bits(found.verdicts, found.bar, t)
            svg = _keep(files, "error_vs_bits", drawn)
            trend = Markup(plots.inline(svg, page.trend(found.verdicts[: plots.LINES], t)))
        for number, one in enumerate(sorted(found.shown, key=card.worst_first), 1):
            drawn = plots.closer(plots.worst(one["tensors"])[1], t)
            svg = _keep(files, f"closer_{number}", drawn)
            cards.append(card.card(one, svg, t))
        if found.shown:
            histogram = plots.error_histogram(_one_source(found.shown), t)
            files["error_histogram.png"] = plots.png(histogram)
    said = {"t": t, "found": found, **_said(found, t)}
    html = _template("report.html.j2").render(**said, **_page(found, t), trend=trend, cards=cards)
    text = _template("report.md.j2").render(**said, **_markdown(found, t))
    return files | {"report.html": html.encode(), "report.md": text.encode()}


def measurement(one: Record, t: Texts) -> str:
    """Return one run of one tensor as HTML that stands in a notebook."""
    ((_, tensor),) = one["tensors"].items()
    with plots.styled():
        drawn = plots.svg(plots.closer(tensor, t), salt="measurement")
    measured = tensor["params"] | tensor["measured"] | tensor["rank"]
    figures = {key: cell(value, ".6g") for key, value in measured.items()}
    shown = card.card(one, drawn, t)
    return _template("measurement.html.j2").render(card=shown, figures=figures, t=t)


def _keep(files: dict[str, bytes], name: str, drawn: Figure) -> bytes:
    """Keep a picture as PNG and as SVG, and return the SVG."""
    files[f"plots/{name}.png"] = plots.png(drawn)
    files[f"plots/{name}.svg"] = plots.svg(drawn, salt=name)
    return files[f"plots/{name}.svg"]


def _one_source(shown: Sequence[Record]) -> list[Record]:
    """Return a record a mode, of the source and the width that the lab's histogram is of."""
    first = next((one for one in shown if one["dist"] == HISTOGRAM), shown[0])
    return [one for one in shown if all(one[key] == first[key] for key in ("dist", "n_bits"))]


def _said(found: Findings, t: Texts) -> dict[str, Any]:
    """Return what both forms of the report say."""
    tensors = {each.rows[0]["tensor"] for each in found.verdicts}
    return {
        "title": t("title" if len(tensors) == 1 else "title_many"),
        "subtitle": _subtitle(found, t) if found.rows else t("not_measured"),
        "criteria": [criterion(key, asked, t) for key, asked in found.bar.criteria.items()],
        "answers": list(answers(found.verdicts, t)),
        "sentences": list(sentences(found.verdicts, found.levels, t)),
        "the_bar": the_bar(found.bar, t),
        "starred": any(each.gaps([key]) for each in found.verdicts for key in found.bar.criteria),
        "failures": grouped_by_reason(found.failures, t),
        "skipped": [(label(each), why) for each, why in found.skipped.items()],
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
        rows = sorted(rows, key=lambda row: quality(row["sqnr_db"]))[:LINES]
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
    return re.sub(r"([|\\`*_<\[])", r"\\\1", " ".join(text.split()))
