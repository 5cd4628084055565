"""The page of a plan: plan.html, self-contained, the same bytes for the same sweep and request.

Its pictures are noise over size, and the bits per value of each tensor along the layers.
"""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlab.plans.mixture import Plan
from quantlab.plans.options import Option
from quantlab.plans.sentences import (
    count_heads,
    count_rows,
    plan_answer,
    plan_sentences,
    tensor_heads,
    tensor_rows,
)
from quantlab.plans.solve import undominated
from quantlab.report import plots
from quantlab.report.page import template
from quantlab.report.plots import COLOURS, INK, LABEL, figure
from quantlab.report.texts import Texts
from quantlab.text import format_number, label

ALT_FORMATS = 6  # that the description of a picture names
CURVE_FORMATS = 8  # that the picture of the curve names
STRIP_FORMATS = 12  # that the picture along the layers names
CURVE_INCHES, LEGEND_LINE_INCHES = 3.4, 0.17
STRIP_INCHES, STRIP_WIDTH_INCHES = 2.6, 11.0
FRONT_POINTS = 200
FRONT_EXCESS = 1.1  # of the largest size, to which the front is drawn
MARKERS = ("s", "^", "D", "v", "P", "X", "p", "<")
HATCHES = ("", "////", "xxxx", "----")
LINE_COLOUR, POINT_COLOUR = COLOURS[1], COLOURS[0]


def render_page(plan: Plan, command: str, results_sha256: str, texts: Texts) -> bytes:
    """Return plan.html."""
    with plots.plot_style():
        curve = plots.svg(draw_curve(plan, texts), salt="plan_curve")
        strip = plots.svg(draw_strip(plan, texts), salt="plan_strip")
    dists = ", ".join(dict.fromkeys(part.tensor.dist for part in plan.assignments))
    size = {"n": len(plan.assignments), "values": f"{plan.n_values:,}"}
    html = template("plan.html.j2").render(
        t=texts,
        subtitle=texts("plan_subtitle", dists=dists, **size),
        answer=plan_answer(plan, texts),
        sentences=list(plan_sentences(plan, texts)),
        curve=Markup(plots.inline(curve, _describe_curve(plan, texts))),
        strip=Markup(plots.inline(strip, _describe_strip(plan, texts))),
        count_heads=count_heads(texts),
        counts=count_rows(plan, texts),
        heads=tensor_heads(texts),
        tensors=tensor_rows(plan, texts),
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
            bits=format_number(option.bits / plan.n_values, ".4g"),
        )
        for option in best
    ]
    return texts("plan_curve_alt", noise=f"{plan.noise:.3g}", points="; ".join(points))


def _describe_strip(plan: Plan, texts: Texts) -> str:
    counts = [
        texts("cheapest_count", format=name, n=len(group))
        for name, group in plan.counts[:ALT_FORMATS]
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
    n_values = max(plan.n_values, 1)
    _draw_front(panel, plan, texts)
    others = [option for option in uniform if option not in named]
    if others:
        points = _points(others, n_values)
        panel.plot(*points, "o", color=POINT_COLOUR, ms=4, label=texts("plan_others"))
    for option, marker in zip(named, MARKERS, strict=False):
        name = label(option.format, LABEL)
        panel.plot(*_points([option], n_values), marker, color=POINT_COLOUR, ms=6, label=name)
    if plan.noise:
        point = plan.bits / n_values, plan.noise
        panel.plot(*point, "*", color=INK, ms=13, label=texts("plan_here"))
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_xlabel(texts("axis_storage"))
    panel.set_ylabel(texts("plan_axis_noise"))
    if panel.get_legend_handles_labels()[0]:
        drawing.legend(loc="outside lower left")
    return drawing


def _points(options: Sequence[Option], n_values: int) -> tuple[list[float], list[float]]:
    return [option.bits / n_values for option in options], [option.noise for option in options]


def _draw_front(panel: Axes, plan: Plan, texts: Texts) -> None:
    """Draw the front as far as it has noise."""
    ends = [point.bits for point in plan.front if point.noise > 0]
    limit = FRONT_EXCESS * max([plan.bits, *(option.bits for option in plan.uniform)])
    if len(ends) > 1:
        bits = np.linspace(ends[0], min(ends[-1], limit), FRONT_POINTS)
        noise = [plan.noise_bound(size) for size in bits.tolist()]
        name = texts("plan_front")
        panel.plot(bits / plan.n_values, noise, color=LINE_COLOUR, lw=1.5, label=name)


def draw_strip(plan: Plan, texts: Texts) -> Figure:
    """Draw the bits per value of each tensor in the order of the checkpoint, coloured by format."""
    counts = plan.counts
    lines = 1 + min(len(counts), STRIP_FORMATS) // 3
    drawing = figure(STRIP_INCHES + LEGEND_LINE_INCHES * lines, width=STRIP_WIDTH_INCHES)
    panel = drawing.subplots()
    edges = np.arange(len(plan.assignments) + 1) + 0.5
    for number, (name, group) in enumerate(counts):
        keys = {part.tensor.key for part in group}
        heights = [
            part.bits_per_value if part.tensor.key in keys else math.nan
            for part in plan.assignments
        ]
        panel.stairs(
            heights,
            edges,
            fill=True,
            label=label(name, LABEL) if number < STRIP_FORMATS else None,
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
