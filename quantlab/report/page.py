"""The report of a sweep: report.html to look at and to mail, report.md for a pull request, plots.

The same records, command, bar and language give the same bytes. The layout is in ``templates/``,
the words are in ``texts/``, the content comes from `tables`, `storage_table`, `prediction_table`,
`tensor_detail` and `sentences`.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from quantlab.report import plots
from quantlab.report.choices import format_points, has_formats, quality, row_name
from quantlab.report.findings import Findings
from quantlab.report.plots import NAMED, error_vs_storage, shades
from quantlab.report.sentences import (
    answers,
    bar_text,
    criterion_heads,
    format_widths,
    grouped_by_reason,
    percent,
    sentence,
    sentences,
    underflow_sentences,
    unmeasured_text,
)
from quantlab.report.stored import side_by_side, stored_sentences
from quantlab.report.tables import (
    GLOSSARY,
    PREDICTED,
    SHADES,
    glossary,
    heat_table,
    prediction_table,
    storage_heads,
    storage_sentences,
    storage_table,
    storage_trend,
    table,
    trend,
)
from quantlab.report.texts import Texts
from quantlab.stats.rank import SHOWN
from quantlab.text import format_number, printable

SENTENCES, MOST = 12, 200  # sentences before the fold, and of single tensors behind it
HEAT = 40  # rows of the heat table before the fold
PREDICTIONS = 12  # rows of the table of predictions before the fold
LINES = 60  # failures and tensors left out that are listed, rows of predictions and of report.md
PLOTS = ("plots/closer_*", "plots/error_vs_*", "error_histogram.png")


class Place(NamedTuple):
    """One of the k largest values, or the next where it came back as the last of them did.

    `after` says which place it has now, `merged` that a value which differed came back equal.
    """

    element: int
    x: str
    x_hat: str
    after: str
    merged: bool


class TensorDetail(NamedTuple):
    """One tensor looked at closely."""

    heading: str
    picture: Markup
    sentences: list[str]
    caption: str
    places: list[Place]


def artefacts(findings: Findings, t: Texts) -> dict[str, bytes]:
    """Return the files of a report under their names, relative to the sweep's directory."""
    files: dict[str, bytes] = {}
    with plots.plot_style():
        pictures = {
            "picture": _bits_picture(files, findings, t),
            "storage_picture": _storage_picture(files, findings, t),
            "details": _details(files, findings, t),
        }
        if findings.histogram:
            files["error_histogram.png"] = plots.png(plots.error_histogram(findings.histogram, t))
    shared = {"t": t, "findings": findings, **_shared_values(findings, t)}
    html = template("report.html.j2").render(**shared, **_page_values(findings, t), **pictures)
    text = template("report.md.j2").render(**shared, **_markdown_values(findings, t))
    pages = {"report.html": html, "report.md": text}  # a file's name need not be Unicode
    return files | {name: each.encode(errors="backslashreplace") for name, each in pages.items()}


def _bits_picture(files: dict[str, bytes], findings: Findings, t: Texts) -> Markup | None:
    if not findings.widths:
        return None
    drawn = plots.error_vs_bits(findings.widths, findings.bars, t)
    svg = _save_figure(files, "error_vs_bits", drawn)
    return Markup(plots.inline(svg, trend(findings.widths[: plots.LINES], t)))


def _storage_picture(files: dict[str, bytes], findings: Findings, t: Texts) -> Markup | None:
    if all(offer.is_exact for offer in format_points(findings.storage)):
        return None  # nothing to draw
    drawn = error_vs_storage(findings.storage, findings.bars, t)
    svg = _save_figure(files, "error_vs_storage", drawn)
    return Markup(plots.inline(svg, storage_trend(findings.storage, t)))


def _details(files: dict[str, bytes], findings: Findings, t: Texts) -> list[TensorDetail]:
    details = []
    for number, (row, tensor) in enumerate(findings.details, 1):
        svg = _save_figure(files, f"closer_{number}", plots.tensor_plot(tensor, t))
        name = row_name(row, findings.levels)
        details.append(tensor_detail(name, row["n_bits"], tensor, svg, t))
    return details


def measurement(name: str, n_bits: int | None, tensor: plots.Entry, t: Texts) -> str:
    """Return one tensor of one run as HTML that stands in a notebook."""
    with plots.plot_style():
        drawn = plots.svg(plots.tensor_plot(tensor, t), salt="measurement")
    measured = tensor["params"] | tensor["measured"] | tensor["rank"]
    figures = {key: format_number(value, ".6g") for key, value in measured.items()}
    detail = tensor_detail(name, n_bits, tensor, drawn, t)
    return template("measurement.html.j2").render(detail=detail, figures=figures, t=t)


def _save_figure(files: dict[str, bytes], name: str, drawn: Figure) -> bytes:
    """Keep a picture as PNG and as SVG, and return the SVG."""
    files[f"plots/{name}.png"] = plots.png(drawn)
    files[f"plots/{name}.svg"] = plots.svg(drawn, salt=name)
    return files[f"plots/{name}.svg"]


def _shared_values(findings: Findings, t: Texts) -> dict[str, Any]:
    """Return what both forms of the report say."""
    return {
        "title": _title(findings, t),
        "subtitle": _subtitle(findings, t) if findings.rows else t("not_measured"),
        "criteria": criterion_heads(findings.bars, t),
        "answers": list(answers(findings.widths, t)),
        "sentences": [
            *stored_sentences(findings.stored, t),
            *storage_sentences(findings.storage, findings.levels, t),
            *sentences(findings.widths, findings.levels, t),
        ],
        "row_head": t("heat_tensor_format" if has_formats(findings.rows) else "heat_tensor"),
        "unmeasured": unmeasured_text(findings.unmeasured, t),
        "the_bar": bar_text(findings.rows, t),
        "starred": any(each.gaps([key]) for each in findings.widths for key in each.bar.criteria),
        "failures": grouped_by_reason(findings.failures, t),
        "underflows": list(underflow_sentences(findings.underflows, t)),
        "skipped": [(printable(each), why) for each, why in findings.skipped.items()],
        "lines": LINES,
        **_storage_values(findings, t),
    }


def _title(findings: Findings, t: Texts) -> str:
    if findings.stored and not findings.widths:
        return t("title_stored" if len(findings.stored) == 1 else "title_stored_many")
    tensors = {each.rows[0]["tensor"] for each in findings.widths}
    return t("title" if len(tensors) == 1 else "title_many")


def _storage_values(findings: Findings, t: Texts) -> dict[str, Any]:
    """Return what both forms of the report say of formats."""
    n = len(findings.storage)
    stored_heads, stored_cells = side_by_side(findings.stored, t)
    return {
        "quantized": stored_cells,
        "quantized_heads": stored_heads,
        "quantized_caption": t("stored_many" if len(findings.stored) > 1 else "stored_one"),
        "storage": storage_table(findings.storage, t),
        "storage_heads": storage_heads(t),
        "storage_caption": t(
            "storage_caption_many" if n > 1 else "storage_caption", n=n, most=NAMED
        ),
    }


def _subtitle(findings: Findings, t: Texts) -> str:
    dists, modes = (
        ", ".join(dict.fromkeys(row[key] for row in findings.rows)) for key in ("dist", "mode")
    )
    widths = _widths(findings)
    if not widths:
        files = ", ".join(each.name for each in findings.stored)
        return t("subtitle_stored", dists=dists, files=files)
    return t("subtitle", dists=dists, modes=modes, widths=format_widths(widths, t))


def _page_values(findings: Findings, t: Texts) -> dict[str, Any]:
    """Return what only the page shows."""
    many = "tensor" in findings.levels
    return {
        "first": SENTENCES,
        "most": MOST,
        "single": [sentence(each, t) for each in findings.widths[:MOST]] if many else [],
        "tried": _widths(findings),
        "heat": heat_table(findings.widths, _widths(findings), t),
        "heat_first": HEAT,
        "shades": shades(SHADES),
        "predicted": PREDICTED,
        "predictions_first": PREDICTIONS,
        "predictions": prediction_table(findings.rows, findings.levels, t),
        "table": table(findings.rows, findings.levels, t),
        "glossary": _glossary(findings, t),
        "bits_caption": _bits_caption(findings, t),
    }


def _glossary(findings: Findings, t: Texts) -> dict[str, str]:
    """Return what each column means, where formats were tried without supposing one scale."""
    keys = glossary(findings.rows)
    formats = keys is not GLOSSARY
    other = [f"column_{key}_formats" if formats else "" for key in keys]
    texts = {
        key: t(each if each in t else f"column_{key}")
        for key, each in zip(keys, other, strict=True)
    }
    return texts | {key: t(f"column_{key}") for key in ("rmse", "landmark_rel_err")}


def _markdown_values(findings: Findings, t: Texts) -> dict[str, Any]:
    """Return what only report.md shows: of many rows those that suffer most."""
    rows = findings.rows
    if len(rows) > LINES:
        rows = sorted(rows, key=quality)[:LINES]
    return {
        "tried": _widths(findings),
        "heat": heat_table(findings.widths[:LINES], _widths(findings), t),
        "table": table(rows, findings.levels, t),
    }


def _bits_caption(findings: Findings, t: Texts) -> str:
    if len(findings.widths) <= plots.LINES:
        return t("bits_caption")
    return t("bits_caption_many", n=plots.LINES, of=len(findings.widths))


def _widths(findings: Findings) -> list[int]:
    return sorted({row["n_bits"] for row in findings.rows if row["n_bits"] is not None})


@cache
def template(name: str) -> jinja2.Template:
    """Return the template of a name; of HTML it escapes what it is given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("quantlab.report"),
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


def tensor_detail(
    name: str, n_bits: int | None, tensor: plots.Entry, drawn: bytes, t: Texts
) -> TensorDetail:
    """Return what to say of a tensor beside its picture."""
    measured, found = tensor["measured"], plots.finding([tensor["measured"]], t)
    half = f"{tensor['error_histogram']['upper']:.3g}" if plots.has_one_step(tensor) else None
    codes = {"n_codes": measured["n_codes"], "all": 2**n_bits} if n_bits and tensor["codes"] else {}
    sentences = [
        t("errors" if half else "errors_any", finding=found, half=half),
        *([_codes_sentence(codes, measured, n_bits, t)] if codes else ()),
        _zeroed_sentence(measured, half, t),
        *([t("clipped", value=percent(measured["clipped"], t))] if measured["clipped"] else ()),
    ]
    alt = ("closer_alt" if half else "closer_alt_any") if codes else "closer_alt_errors"
    caption, listed = _top(tensor, t)
    return TensorDetail(
        heading=t("in_bits", name=name, bits=n_bits) if n_bits else name,
        picture=Markup(plots.inline(drawn, t(alt, finding=found, half=half, **codes))),
        sentences=sentences,
        caption=caption,
        places=listed,
    )


def _codes_sentence(
    codes: Mapping[str, int], measured: Mapping[str, Any], n_bits: int | None, t: Texts
) -> str:
    entropy = f"{measured['code_entropy']:.2f}"
    return t("codes_used", **codes, entropy=entropy, bits=n_bits)


def _top(tensor: plots.Entry, t: Texts) -> tuple[str, list[Place]]:
    """Return the largest values before and after, and what to write above them.

    With many scales any other value may come in among them: the ranks are those among themselves.
    """
    k, top = tensor["rank"]["top_k"], tensor["top"]
    caption = t("top_caption" if k <= SHOWN else "top_caption_long", k=k, shown=SHOWN)
    if tensor["params"]["scale"] is None:
        caption = f"{caption} {t('top_among')}"
        top = {key: each[: min(k, SHOWN)] for key, each in top.items()}
    return caption, list(places(top, k, t))


def _zeroed_sentence(measured: Mapping[str, Any], half: str | None, t: Texts) -> str:
    """Say how many values came back as 0, and of one step, whose map is monotone, which."""
    if not measured["zeroed"]:
        return t("flushed_none")
    return t("flushed" if half else "flushed_any", share=percent(measured["zeroed"], t), half=half)


def places(top: Mapping[str, Any], k: int, t: Texts) -> Iterator[Place]:
    """Yield the k largest values of a record, the next where it merged with them.

    Equal values share their places: a sort puts either first, or leaves it out of the k.
    """
    x, x_hat = top["x"], top["x_hat"]
    for n, (index, before, after) in enumerate(zip(top["indices"], x, x_hat, strict=True)):
        first = sum(other > after for other in x_hat) + 1
        last = sum(other >= after for other in x_hat)
        merged = any(
            other != before and back == after for other, back in zip(x, x_hat, strict=True)
        )
        if n < min(k, SHOWN) or (n == k and merged):
            rank = "–".join(map(str, dict.fromkeys([first, min(last, k)])))
            rank = t("top_or_out", places=rank) if last > k else rank
            yield Place(index, f"{before:.6g}", f"{after:.6g}", rank, merged)
