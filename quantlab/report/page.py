"""The report of a sweep: report.html to look at and to mail, report.md for a pull request, plots.

The same records, command, bar and language give the same bytes. The layout is in ``templates/``,
the words are in ``texts/``, the content comes from `tables` and `sentences`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from quantlab.records.record import Row
from quantlab.records.rows import first_rows
from quantlab.report import plots
from quantlab.report.answers import (
    additivity_table,
    answer_sentences,
    answer_table,
    change_table,
    describe_front,
    find_outputs,
    kl_front,
    kl_points,
)
from quantlab.report.choices import Findings, format_points, qualities, row_name
from quantlab.report.plots import FRONT_NAMES, error_vs_storage, shades
from quantlab.report.sentences import (
    answers,
    bar_text,
    format_widths,
    grouped_by_reason,
    percent,
    sentence,
    shrinkage_sentence,
    underflow_sentences,
    unmeasured_text,
    verdict_sentences,
)
from quantlab.report.tables import (
    GLOSSARY,
    MAX_PAGE_ROWS,
    MAX_ROWS,
    PREDICTED,
    PREDICTION_ROWS,
    SHADES,
    Table,
    figure_keys,
    heat_table,
    metric_text,
    metrics_table,
    prediction_table,
    row_head,
    side_by_side,
    storage_table,
    storage_trend,
    trend,
)
from quantlab.report.texts import Texts
from quantlab.stats.rank import SHOWN
from quantlab.text import printable

FIRST_SENTENCES, MAX_SENTENCES = 12, 200  # before the fold, and in all
FIRST_ROWS = 40  # before the fold
FIRST_CHANGES = 12  # answers that changed, before the fold
MAX_OUTPUTS = 3  # of a model, that have a picture
NAMES = ("report.html", "report.md", "error_histogram.png")  # beside plots
PLOT_PATTERNS = ("plots/closer_*", "plots/error_vs_*", "plots/kl_vs_*", "error_histogram.png")


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


def artefacts(findings: Findings, texts: Texts) -> dict[str, bytes]:
    """Return the files of a report under their names, relative to the sweep's directory."""
    files: dict[str, bytes] = {}
    with plots.plot_style():
        pictures = {
            "picture": _bits_picture(files, findings, texts),
            "storage_picture": _storage_picture(files, findings, texts),
            "answer_pictures": _answer_pictures(files, findings, texts),
            "details": _details(files, findings, texts),
        }
        if findings.histogram:
            files["error_histogram.png"] = plots.png(
                plots.error_histogram(findings.histogram, texts)
            )
    shared = _shared_values(findings, texts)
    html = template("report.html.j2").render(**shared, **_page_values(findings, texts), **pictures)
    table = _worst_metrics(findings, texts)
    text = template("report.md.j2").render(**shared, **pictures, table=table)
    pages = {"report.html": html, "report.md": text}  # a file's name need not be Unicode
    return files | {
        name: text_of_page.encode(errors="backslashreplace") for name, text_of_page in pages.items()
    }


def _bits_picture(files: dict[str, bytes], findings: Findings, texts: Texts) -> Markup | None:
    if not findings.widths:
        return None
    drawn = plots.error_vs_bits(findings.widths, findings.bars, texts)
    svg = _save_figure(files, "error_vs_bits", drawn)
    return Markup(plots.inline(svg, trend(findings.widths[: plots.MAX_CURVES], texts)))


def _storage_picture(files: dict[str, bytes], findings: Findings, texts: Texts) -> Markup | None:
    if all(offer.is_exact for offer in format_points(findings.storage)):
        return None  # nothing to draw
    drawn = error_vs_storage(findings.storage, findings.bars, texts)
    svg = _save_figure(files, "error_vs_storage", drawn)
    return Markup(plots.inline(svg, storage_trend(findings.storage, texts)))


def _answer_pictures(
    files: dict[str, bytes], findings: Findings, texts: Texts
) -> list[tuple[str, Markup]]:
    """Draw the KL of the first outputs that lost anything, each under its name."""
    outputs = find_outputs(findings.answers)
    lossy = [output for output in outputs if kl_points(output)][:MAX_OUTPUTS]
    pictures = []
    for number, output in enumerate(lossy, 1):
        drawn = plots.kl_vs_storage(kl_points(output), kl_front(output), findings.bars, texts)
        svg = _save_figure(files, f"kl_vs_storage_{number}", drawn)
        pictures.append((output.name, Markup(plots.inline(svg, describe_front(output, texts)))))
    return pictures


def _details(files: dict[str, bytes], findings: Findings, texts: Texts) -> list[TensorDetail]:
    details = []
    for number, (row, tensor) in enumerate(findings.details, 1):
        svg = _save_figure(files, f"closer_{number}", plots.tensor_plot(tensor, texts))
        name = row_name(row, findings.levels)
        details.append(tensor_detail(name, row["n_bits"], tensor, svg, texts))
    return details


def measurement(name: str, n_bits: int | None, tensor: plots.Entry, texts: Texts) -> str:
    """Return one tensor of one run as HTML that stands in a notebook."""
    with plots.plot_style():
        drawn = plots.svg(plots.tensor_plot(tensor, texts), salt="measurement")
    measured = tensor["params"] | tensor["measured"] | tensor["rank"]
    figures = {key: metric_text(measured, key, ".6g", texts) for key in measured}
    detail = tensor_detail(name, n_bits, tensor, drawn, texts)
    return template("measurement.html.j2").render(detail=detail, figures=figures, t=texts)


def _save_figure(files: dict[str, bytes], name: str, drawn: Figure) -> bytes:
    """Keep a picture as PNG and as SVG, and return the SVG."""
    files[f"plots/{name}.png"] = plots.png(drawn)
    files[f"plots/{name}.svg"] = plots.svg(drawn, salt=name)
    return files[f"plots/{name}.svg"]


def _shared_values(findings: Findings, texts: Texts) -> dict[str, Any]:
    """Collect the values of both templates."""
    outputs = find_outputs(findings.answers)
    n_choices, n_files = len(findings.storage), len(findings.stored)
    caption = "storage_caption_many" if n_choices > 1 else "storage_caption"
    return {
        "t": texts,
        "findings": findings,
        "title": _title(findings, texts),
        "subtitle": _subtitle(findings, texts) if findings.rows else texts("not_measured"),
        "shrinkage": shrinkage_sentence(findings, texts),
        "answers": list(answers(findings.widths, texts)),
        "sentences": verdict_sentences(findings, texts),
        "answer_table": answer_table(outputs, texts),
        "answer_sentences": answer_sentences(outputs, texts),
        "changes": change_table(outputs, texts),
        "additivity": additivity_table(outputs, texts),
        "unmeasured": unmeasured_text(findings.unmeasured, texts),
        "incomplete": list(dict.fromkeys(findings.incomplete.values())),
        "the_bar": bar_text(findings.rows, texts),
        "starred": any(
            widths.gaps([key]) for widths in findings.widths for key in widths.bar.criteria
        ),
        "failures": grouped_by_reason(findings.failures, texts),
        "underflows": underflow_sentences(findings.underflows, texts),
        "skipped": [(printable(name), why) for name, why in findings.skipped.items()],
        "lines": MAX_ROWS,
        "heat": heat_table(findings, texts),
        "quantized": side_by_side(findings.stored, texts),
        "quantized_caption": texts("stored_many" if n_files > 1 else "stored_one"),
        "storage": storage_table(findings.storage, texts),
        "storage_caption": texts(caption, n=n_choices, most=FRONT_NAMES),
    }


def _title(findings: Findings, texts: Texts) -> str:
    if findings.stored and not findings.widths:
        return texts("title_stored" if len(findings.stored) == 1 else "title_stored_many")
    tensors = {widths.rows[0]["tensor"] for widths in findings.widths}
    return texts("title" if len(tensors) == 1 else "title_many")


def _subtitle(findings: Findings, texts: Texts) -> str:
    dists, modes = (
        ", ".join(row[key] for row in first_rows(findings.rows, [key])) for key in ("dist", "mode")
    )
    if not findings.n_bits:
        files = ", ".join(file.name for file in findings.stored)
        return texts("subtitle_stored", dists=dists, files=files)
    widths = format_widths(findings.n_bits, texts)
    return texts("subtitle", dists=dists, modes=modes, widths=widths)


def _page_values(findings: Findings, texts: Texts) -> dict[str, Any]:
    """Collect the values that only report.html shows."""
    rows = worst_rows(findings.rows, MAX_PAGE_ROWS)
    single = findings.widths[:MAX_SENTENCES] if "tensor" in findings.levels else []
    return {
        "first": FIRST_SENTENCES,
        "most": MAX_SENTENCES,
        "single": [sentence(widths, texts) for widths in single],
        "first_rows": FIRST_ROWS,
        "first_changes": FIRST_CHANGES,
        "shades": shades(SHADES),
        "row_head": row_head(findings, texts),
        "predicted": PREDICTED,
        "first_predictions": PREDICTION_ROWS,
        "predictions": prediction_table(findings.rows, findings.levels, texts),
        "table": metrics_table(rows, findings.levels, texts, findings.own_metrics),
        "glossary": _glossary(rows, texts),
        "bits_caption": _bits_caption(findings, texts),
    }


def _glossary(rows: Sequence[Row], texts: Texts) -> dict[str, str]:
    """Explain each column, where formats were tried without supposing one scale."""
    keys = figure_keys(rows)
    formats = keys is not GLOSSARY
    other = [f"column_{key}_formats" if formats else "" for key in keys]
    meanings = {
        key: texts(variant if variant in texts else f"column_{key}")
        for key, variant in zip(keys, other, strict=True)
    }
    return meanings | {key: texts(f"column_{key}") for key in ("rmse", "landmark_rel_err")}


def _worst_metrics(findings: Findings, texts: Texts) -> Table:
    """Lay out the metrics of report.md: of many rows those with the least SQNR."""
    rows = worst_rows(findings.rows, MAX_ROWS)
    return metrics_table(rows, findings.levels, texts, findings.own_metrics)


def worst_rows(rows: Sequence[Row], limit: int) -> Sequence[Row]:
    """Choose rows with the least SQNR where there are too many, else all as they stand."""
    if len(rows) <= limit:
        return rows
    return [rows[n] for n in qualities(rows).argsort(kind="stable")[:limit].tolist()]


def _bits_caption(findings: Findings, texts: Texts) -> str:
    if len(findings.widths) <= plots.MAX_CURVES:
        return texts("bits_caption")
    return texts("bits_caption_many", n=plots.MAX_CURVES, of=len(findings.widths))


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
    name: str, n_bits: int | None, tensor: plots.Entry, drawn: bytes, texts: Texts
) -> TensorDetail:
    """Write the sentences and the table beside the picture of a tensor."""
    measured, finding = tensor["measured"], plots.finding([tensor["measured"]], texts)
    half = f"{tensor['error_histogram']['upper']:.3g}" if plots.has_one_step(tensor) else None
    codes = {"n_codes": measured["n_codes"], "all": 2**n_bits} if n_bits and tensor["codes"] else {}
    sentences = [texts("errors" if half else "errors_any", finding=finding, half=half)]
    if codes:
        entropy = f"{measured['code_entropy']:.2f}"
        sentences.append(texts("codes_used", **codes, entropy=entropy, bits=n_bits))
    # With one step, whose map is monotone, the values that came back as 0 can be named.
    zeroed = ("flushed" if half else "flushed_any") if measured["zeroed"] else "flushed_none"
    sentences.append(texts(zeroed, share=percent(measured["zeroed"], texts), half=half))
    if measured["clipped"]:
        sentences.append(texts("clipped", value=percent(measured["clipped"], texts)))
    alt = ("closer_alt" if half else "closer_alt_any") if codes else "closer_alt_errors"
    caption, listed = _top(tensor, texts)
    return TensorDetail(
        heading=texts("in_bits", name=name, bits=n_bits) if n_bits else name,
        picture=Markup(plots.inline(drawn, texts(alt, finding=finding, half=half, **codes))),
        sentences=sentences,
        caption=caption,
        places=listed,
    )


def _top(tensor: plots.Entry, texts: Texts) -> tuple[str, list[Place]]:
    """Return the largest values before and after, and what to write above them.

    With many scales any other value may come in among them: the ranks are those among themselves.
    """
    k, top = tensor["rank"]["top_k"], tensor["top"]
    caption = texts("top_caption" if k <= SHOWN else "top_caption_long", k=k, shown=SHOWN)
    if tensor["params"]["scale"] is None:
        caption = f"{caption} {texts('top_among')}"
        top = {key: values[: min(k, SHOWN)] for key, values in top.items()}
    return caption, list(places(top, k, texts))


def places(top: Mapping[str, Any], k: int, texts: Texts) -> Iterator[Place]:
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
            rank = texts("top_or_out", places=rank) if last > k else rank
            yield Place(index, f"{before:.6g}", f"{after:.6g}", rank, merged)
