"""Pictures of a plan: noise over size, and the format of each tensor along the layers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlab.plans.mixture import Mixture, Plan
from quantlab.report.plots import COLOURS, INK, LABEL, figure
from quantlab.report.texts import Texts
from quantlab.text import label

HEIGHT, LINE = 3.4, 0.17  # inches, of a picture and of a line of its legend
WIDE = 11.0  # inches, of the strip along the layers
POINTS = 200  # of the front that are drawn
BEYOND = 1.1  # of the largest size, to which the front is drawn
NAMED = 8  # formats that are named
MARKERS = ("s", "^", "D", "v", "P", "X", "p", "<")
HATCHES = ("", "////", "xxxx", "----")
LINE_COLOUR, POINT_COLOUR = COLOURS[1], COLOURS[0]


def noise_over_size(plan: Plan, t: Texts) -> Figure:
    """Draw the noise of mixtures and of each uniform format over bits per value.

    Up to `NAMED` uniform formats are named, evenly among those that no other beats. What has no
    noise is not drawn, as the axis is logarithmic, nor is the front far beyond the plan and the
    uniform formats.
    """
    uniform = [each for each in plan.uniform if each.noise]
    best = unbeaten(uniform)
    named = [best[n] for n in np.linspace(0, len(best) - 1, min(NAMED, len(best))).astype(int)]
    drawn = figure(HEIGHT + LINE * (len(named) + 3))
    panel = drawn.subplots()
    n_values = max(plan.n_values, 1)
    _front(panel, plan, t)
    others = [each for each in uniform if each not in named]
    if others:
        places = _places(others, n_values)
        panel.plot(*places, "o", color=POINT_COLOUR, ms=4, label=t("plan_others"))
    for each, marker in zip(named, MARKERS, strict=False):
        text = label(each.name, LABEL)
        panel.plot(*_places([each], n_values), marker, color=POINT_COLOUR, ms=6, label=text)
    if plan.noise:
        here = plan.bits / n_values, plan.noise
        panel.plot(*here, "*", color=INK, ms=13, label=t("plan_here"))
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_xlabel(t("axis_storage"))
    panel.set_ylabel(t("plan_axis_noise"))
    if panel.get_legend_handles_labels()[0]:
        drawn.legend(loc="outside lower left")
    return drawn


def unbeaten(uniform: Sequence[Mixture]) -> list[Mixture]:
    """Return the uniform formats that no other beats in size and noise, the smallest first."""
    kept: list[Mixture] = []
    for each in uniform:
        if not kept or each.noise < kept[-1].noise:
            kept.append(each)
    return kept


def _places(uniform: Sequence[Mixture], n_values: int) -> tuple[list[float], list[float]]:
    return [each.bits / n_values for each in uniform], [each.noise for each in uniform]


def _front(panel: Axes, plan: Plan, t: Texts) -> None:
    """Draw the front as far as there is noise to draw."""
    ends = [step.bits for step in plan.front if step.noise > 0]
    far = BEYOND * max([plan.bits, *(each.bits for each in plan.uniform)])
    if len(ends) > 1:
        bits = np.linspace(ends[0], min(ends[-1], far), POINTS)
        noise = [plan.bound(each) for each in bits.tolist()]
        panel.plot(bits / plan.n_values, noise, color=LINE_COLOUR, lw=1.5, label=t("plan_front"))


def strip(plan: Plan, t: Texts) -> Figure:
    """Draw the bits per value of each tensor in the order of the checkpoint, coloured by format."""
    counts = plan.counts
    drawn = figure(2.6 + LINE * (1 + min(len(counts), 12) // 3), width=WIDE)
    panel = drawn.subplots()
    edges = np.arange(len(plan.tensors) + 1) + 0.5
    for n, (name, planned) in enumerate(counts):
        keys = {each.tensor.key for each in planned}
        heights = [
            each.bits_per_value if each.tensor.key in keys else math.nan for each in plan.tensors
        ]
        colour, hatch = COLOURS[n % len(COLOURS)], HATCHES[n // len(COLOURS) % len(HATCHES)]
        text = label(name, LABEL) if n < 12 else None
        look: dict[str, Any] = {"facecolor": colour, "edgecolor": INK, "hatch": hatch, "lw": 0}
        panel.stairs(heights, edges, fill=True, label=text, **look)
    panel.set_xlim(edges[0], edges[-1])
    panel.set_ylim(bottom=0)
    panel.set_xlabel(t("plan_axis_tensors"))
    panel.set_ylabel(t("axis_storage"))
    drawn.legend(loc="outside lower left", ncols=3)
    return drawn
