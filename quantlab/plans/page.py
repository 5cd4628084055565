"""The page of a plan: plan.html, self-contained, the same bytes for the same sweep and request.

Its pictures are noise over size, and the bits per value of each tensor along the layers.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlab.plans.mixture import Plan, relaxed_noise, undominated
from quantlab.plans.options import MAX_RATIO, Assignment, Option, Sensitivity
from quantlab.plans.problem import KL
from quantlab.records.older import UNKNOWN
from quantlab.report import plots
from quantlab.report.page import template
from quantlab.report.plots import COLOURS, INK, LABEL_CHARS, LEGEND_LINE_INCHES, figure
from quantlab.report.sentences import (
    BITS_SPEC,
    SENTENCE_TENSORS,
    SQNR_SPEC,
    failure_sentences,
    name_list,
    percent,
)
from quantlab.report.tables import Table, metric_text
from quantlab.report.terminal import render
from quantlab.report.texts import Texts
from quantlab.text import NULL, format_number, format_size, label, printable

ALT_FORMATS = 6  # that the description of a picture names
CURVE_FORMATS = 8  # that the picture of the curve names
STRIP_FORMATS = 12  # that the picture along the layers names
CURVE_INCHES, STRIP_INCHES, STRIP_WIDTH_INCHES = 3.4, 2.6, 11.0
FRONT_POINTS = 200
FRONT_EXCESS = 1.1  # of the largest size, to which the front is drawn
MARKERS = ("s", "^", "D", "v", "P", "X", "p", "<")
HATCHES = ("", "////", "xxxx", "----")
LINE_COLOUR, POINT_COLOUR = COLOURS[1], COLOURS[0]


def render_page(
    plan: Plan,
    command: str,
    results_sha256: str,
    texts: Texts,
    source: str = "",
    remarks: Sequence[str] = (),
) -> bytes:
    """Return plan.html; `source` is the name of the checkpoint, empty where it is not known.

    `remarks` are sentences on its file.
    """
    texts = Texts(texts.lang, plan.problem.minimised)
    with plots.plot_style():
        curve = plots.svg(draw_curve(plan, texts), salt="plan_curve")
        strip = plots.svg(draw_strip(plan, texts), salt="plan_strip")
    dists = ", ".join(dict.fromkeys(part.tensor.dist for part in plan.assignments))
    size = {"n": len(plan.assignments), "values": f"{plan.problem.n_values:,}"}
    html = template("plan.html.j2").render(
        t=texts,
        subtitle=texts("plan_subtitle", dists=dists, **size),
        shrinkage=describe_shrinkage(plan, source, texts),
        answer=plan_answer(plan, texts),
        sentences=[*plan_sentences(plan, texts), *remarks],
        curve=Markup(plots.inline(curve, _describe_curve(plan, texts))),
        strip=Markup(plots.inline(strip, _describe_strip(plan, texts))),
        counts=format_table(plan, texts),
        tensors=tensor_table(plan, texts),
        command=command,
        results=results_sha256,
    )
    return html.encode(errors="backslashreplace")


def _describe_curve(plan: Plan, texts: Texts) -> str:
    best = [option for option in undominated(plan.uniform) if option.noise][:ALT_FORMATS]
    points = [
        texts(
            "plan_alt_point",
            name=option.format,
            noise=f"{option.noise:.3g}",
            bits=format_number(option.bits_per_value, BITS_SPEC),
        )
        for option in best
    ]
    return texts("plan_curve_alt", noise=f"{plan.total.noise:.3g}", points="; ".join(points))


def _describe_strip(plan: Plan, texts: Texts) -> str:
    counts = [
        texts("cheapest_count", format=option.format, n=len(option.assignments))
        for option in plan.formats[:ALT_FORMATS]
    ]
    return texts("plan_strip_alt", counts="; ".join(counts))


def draw_curve(plan: Plan, texts: Texts) -> Figure:
    """Draw the noise of mixtures and of each uniform format over bits per value.

    Up to `CURVE_FORMATS` uniform formats are named, evenly among those that no other beats.
    Mixtures without noise are not drawn, as the axis is logarithmic, nor is the front far beyond
    the plan and the uniform formats.
    """
    uniform = [option for option in plan.uniform if option.noise]
    best = undominated(uniform)
    places = np.linspace(0, len(best) - 1, min(CURVE_FORMATS, len(best))).astype(int)
    named = [best[place] for place in places]
    drawing = figure(CURVE_INCHES + LEGEND_LINE_INCHES * (len(named) + 3))
    panel = drawing.subplots()
    _draw_front(panel, plan, texts)
    others = [option for option in uniform if option not in named]
    if others:
        points = _points(others)
        panel.plot(*points, "o", color=POINT_COLOUR, ms=4, label=texts("plan_others"))
    for option, marker in zip(named, MARKERS, strict=False):
        name = label(option.format, LABEL_CHARS)
        panel.plot(*_points([option]), marker, color=POINT_COLOUR, ms=6, label=name)
    if plan.total.noise:
        panel.plot(*_points([plan.total]), "*", color=INK, ms=13, label=texts("plan_here"))
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_xlabel(texts("axis_storage"))
    panel.set_ylabel(texts("plan_axis_noise"))
    if panel.get_legend_handles_labels()[0]:
        drawing.legend(loc="outside lower left")
    return drawing


def _points(options: Sequence[Option]) -> tuple[list[float], list[float]]:
    return [option.bits_per_value for option in options], [option.noise for option in options]


def _draw_front(panel: Axes, plan: Plan, texts: Texts) -> None:
    """Draw the front as far as it has noise."""
    ends = [point.bits for point in plan.front if point.noise > 0]
    limit = FRONT_EXCESS * max([plan.total.bits, *(option.bits for option in plan.uniform)])
    if len(ends) > 1:
        bits = np.linspace(ends[0], min(ends[-1], limit), FRONT_POINTS)
        noise, name = relaxed_noise(plan.front, bits), texts("plan_front")
        panel.plot(bits / plan.problem.n_values, noise, color=LINE_COLOUR, lw=1.5, label=name)


def draw_strip(plan: Plan, texts: Texts) -> Figure:
    """Draw the bits per value of each tensor in the order of the checkpoint, coloured by format."""
    formats = plan.formats
    lines = 1 + min(len(formats), STRIP_FORMATS) // 3
    drawing = figure(STRIP_INCHES + LEGEND_LINE_INCHES * lines, width=STRIP_WIDTH_INCHES)
    panel = drawing.subplots()
    edges = np.arange(len(plan.assignments) + 1) + 0.5
    for number, option in enumerate(formats):
        keys = {part.tensor.key for part in option.assignments}
        heights = [
            part.bits_per_value if part.tensor.key in keys else math.nan
            for part in plan.assignments
        ]
        panel.stairs(
            heights,
            edges,
            fill=True,
            label=label(option.format, LABEL_CHARS) if number < STRIP_FORMATS else None,
            facecolor=COLOURS[number % len(COLOURS)],
            edgecolor=INK,
            hatch=HATCHES[number // len(COLOURS) % len(HATCHES)],
            lw=0,
        )
    panel.set_xlim(edges[0], edges[-1])
    panel.set_ylim(bottom=0)
    panel.set_xlabel(texts("plan_axis_tensors"))
    panel.set_ylabel(texts("axis_storage"))
    drawing.legend(loc="outside lower left", ncols=3)
    return drawing


ANSWER_TENSORS = 5  # that the first line names
TERMINAL_FORMATS = 40  # rows
FORMAT_CHARS = 40  # of a name in the terminal
MIN_SHARE = 1e-6  # that is worth a sentence


def describe_shrinkage(plan: Plan, source: str, texts: Texts) -> str:
    """Return the size of the checkpoint `source` before and after; empty where it has no name."""
    if not source:
        return ""
    before, after = sum(tensor.bits for tensor in plan.problem.tensors), plan.total.bits
    sizes = {"before": format_size(before / 8), "after": format_size(after / 8)}
    name = printable(source)
    if after >= before:
        return texts("plan_as_large", name=name, **sizes)
    return texts("plan_smaller", name=name, ratio=f"{before / after:.3g}", **sizes)


def budget_table(plans: Sequence[Plan], texts: Texts) -> Table:
    """Lay out plans for several budgets, a row each, beside the best single format."""
    texts = Texts(texts.lang, plans[0].problem.minimised)
    before = sum(tensor.bits for tensor in plans[0].problem.tensors)
    rows = []
    for plan in plans:
        total, best = plan.total, plan.best_uniform
        rows.append(
            [
                format_number(total.bits_per_value, BITS_SPEC),
                format_size(total.bits / 8),
                f"{before / total.bits:.3g}" if total.bits else NULL,
                f"{total.noise:.3g}",
                best.format if best else NULL,
                f"{best.noise:.3g}" if best else NULL,
            ]
        )
    keys = ("bits", "size", "smaller_times", "sum", "best", "best_sum")
    return Table([texts(f"plan_{key}") for key in keys], rows)


def plan_answer(plan: Plan, texts: Texts) -> str:
    """Return the plan in one line: of few tensors each with its format."""
    unmeasured = {assignment.tensor.key for assignment in plan.unmeasured}
    measured = [part for part in plan.assignments if part.tensor.key not in unmeasured]
    sums = {
        "bits": format_number(plan.total.bits_per_value, BITS_SPEC),
        "size": format_size(plan.total.bits / 8),
    }
    if len(measured) > ANSWER_TENSORS:
        n_tensors = len(plan.assignments)
        return texts("plan_many", n=len(plan.formats), tensors=n_tensors, **sums)
    tensors = [
        texts("plan_as", tensor=printable(part.tensor.name), format=part.format)
        for part in measured
    ]
    return texts("plan_few", each="; ".join(tensors), **sums)


def plan_sentences(plan: Plan, texts: Texts) -> Iterator[str]:
    """Yield sentences that compare the plan, and list the tensors and formats that it leaves."""
    problem = plan.problem
    yield from _bar_sentences(plan, texts) if plan.budget is None else _noise_sentences(plan, texts)
    if problem.failures:
        yield texts("failures", n=len(problem.failures))
        yield from failure_sentences(problem.failures, texts)
    yield from dict.fromkeys(problem.incomplete.values())
    unknown = [part for part in plan.assignments if part.tensor.dtype == UNKNOWN]
    if unknown:
        yield texts("plan_unknown", n=len(unknown), names=_tensor_names(unknown, texts))
    stored = [part for part in plan.unmeasured if part.tensor.dtype != UNKNOWN]
    if stored:
        size = format_size(plan.unmeasured_bits / 8)
        yield texts("plan_left_out", n=len(stored), size=size, names=_tensor_names(stored, texts))
    yield from _runtime_sentences(plan, texts)
    if problem.stand_ins:
        yield texts("plan_stand_ins", n=len(problem.stand_ins))


def _runtime_sentences(plan: Plan, texts: Texts) -> Iterator[str]:
    problem = plan.problem
    runtime = problem.runtime.name if problem.runtime else ""
    if problem.refused:
        yield texts("plan_refused", runtime=runtime, formats="; ".join(problem.refused))
    for reason, tensors in problem.untaken.items():
        names = name_list(tensors, SENTENCE_TENSORS, texts)
        yield texts(f"plan_untaken_{reason}", runtime=runtime, n=len(tensors), names=names)


def _noise_sentences(plan: Plan, texts: Texts) -> Iterator[str]:
    if not plan.total.noise:
        lossy = any(part.row and part.row["max_err"] for part in plan.assignments)
        yield texts("plan_weightless" if lossy else "plan_exact")
        return
    if plan.problem.minimised == KL:
        yield texts("plan_predicted", kl=f"{plan.total.noise:.3g}")
    if sensitivity := plan.problem.sensitivity:
        yield from _doubt_sentences(sensitivity, texts)
    yield _uniform_sentence(plan, texts)
    saving = plan.gap / (1 + plan.gap)  # of the noise, at the bound
    gap = percent(saving, texts, 2)
    yield texts("plan_gap", gap=gap) if saving > MIN_SHARE else texts("plan_least")
    unit, size = ("MB", 8e6) if plan.total.bits >= 16e6 else ("kB", 8e3)
    share = 1 - plan.noise_bound(plan.total.bits + size) / plan.total.noise
    if share > MIN_SHARE:
        yield texts("plan_more", unit=unit, share=percent(share, texts))


def _doubt_sentences(sensitivity: Sensitivity, texts: Texts) -> Iterator[str]:
    if sensitivity.doubtful:
        low, high = (f"{level:g}" for level in sensitivity.levels)
        yield texts(
            "plan_doubtful",
            n=len(sensitivity.doubtful),
            tensors=len(sensitivity.alphas),
            ratio=f"{MAX_RATIO:g}",
            low=low,
            high=high,
            names=name_list(sensitivity.doubtful, SENTENCE_TENSORS, texts),
        )


def _uniform_sentence(plan: Plan, texts: Texts) -> str:
    best = plan.best_uniform
    if best is None:
        return texts("plan_uniform_none")
    bits = format_number(best.bits_per_value, BITS_SPEC)
    ratio = f"{best.noise / plan.total.noise:.3g}"
    key = "plan_uniform_same" if ratio == "1" else "plan_uniform"
    return texts(key, ratio=ratio, format=best.format, bits=bits)


def _bar_sentences(plan: Plan, texts: Texts) -> Iterator[str]:
    if plan.unmet:
        names = name_list(plan.unmet, SENTENCE_TENSORS, texts)
        yield texts("plan_unmet", n=len(plan.unmet), names=names)
    missing = [part for part in plan.assignments if not part.meets]
    if missing:
        yield texts("plan_kept", n=len(missing), names=_tensor_names(missing, texts))
    uniform = plan.cheapest_uniform
    if uniform is None:
        yield texts("plan_bar_uniform_none")
        return
    bits = format_number(uniform.bits_per_value, BITS_SPEC)
    yield texts("plan_bar_uniform", format=uniform.format, bits=bits)


def _tensor_names(assignments: Iterable[Assignment], texts: Texts) -> str:
    names = [assignment.tensor.name for assignment in assignments]
    return name_list(names, SENTENCE_TENSORS, texts)


def format_table(plan: Plan, texts: Texts) -> Table:
    """Lay out the number of tensors in each format, their bits per value, size and noise share."""
    keys = ("format", "tensors", "bits", "size", "noise")
    rows = [
        [option.format, str(len(option.assignments)), *_size_cells(option, plan, texts)]
        for option in plan.formats
    ]
    return Table([texts(f"plan_{key}") for key in keys], rows)


def tensor_table(plan: Plan, texts: Texts) -> Table:
    """Lay out the tensors of a plan, a row each: those that were measured first, by size."""
    keys = ("tensor", "format", "bits", "size", "sqnr", "noise", "reason")
    rows = []
    largest_first = sorted(
        plan.assignments, key=lambda part: (part.tensor.reason is not None, -part.tensor.bits)
    )
    for part in largest_first:
        bits, size, noise = _size_cells(part, plan, texts)
        sqnr = metric_text(part.row, "sqnr_db", SQNR_SPEC, texts) if part.row else texts("exact")
        reason = part.tensor.reason or NULL
        rows.append([printable(part.tensor.name), part.format, bits, size, sqnr, noise, reason])
    return Table([texts(f"plan_{key}") for key in keys], rows, words=(1, 2, 7))


def _size_cells(part: Assignment | Option, plan: Plan, texts: Texts) -> tuple[str, str, str]:
    """Format bits per value, size, and share of the noise."""
    return (
        format_number(part.bits_per_value, BITS_SPEC),
        format_size(part.bits / 8),
        percent(part.noise / plan.total.noise if plan.total.noise else 0.0, texts),
    )


def plan_summary(plan: Plan, texts: Texts, source: str = "", remarks: Sequence[str] = ()) -> str:
    """Return the text of the terminal: sizes, the plan in one line, its formats, how it compares.

    `source` is the name of the checkpoint, `remarks` are sentences on its file.
    """
    texts = Texts(texts.lang, plan.problem.minimised)
    formats = format_table(plan, texts)
    rows = [[label(row[0], FORMAT_CHARS), *row[1:]] for row in formats.rows[:TERMINAL_FORMATS]]
    return render(
        "\n".join(
            filter(None, [describe_shrinkage(plan, source, texts), plan_answer(plan, texts)])
        ),
        formats._replace(rows=rows),
        "\n".join([*plan_sentences(plan, texts), *remarks]),
    )
