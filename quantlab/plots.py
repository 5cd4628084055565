"""Pictures of a sweep."""

import io
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlab.record import Record
from quantlab.report import quality
from quantlab.tensor import label

INK, BAR, LINE = "#222222", "#56B4E9", "#D55E00"  # Okabe and Ito's colour-blind safe palette


def to_show(records: dict[str, Record]) -> list[str]:
    """Choose the runs of the histogram, one a mode, by what the records under their names say.

    Of several distributions it shows `hidden`, of several widths 8 bits; else those that come
    first.
    """
    left = _prefer(_prefer(records, "dist", "hidden"), "n_bits", 8)
    return list({one["mode"]: name for name, one in reversed(left.items())}.values())[::-1]


def error_histogram(chosen: list[Record]) -> bytes:
    """Return a PNG of |x - x_hat| under each mode, with half a step marked (lab 03, block F).

    `chosen` are the records of one run a mode. Of several tensors it shows the one that suffers
    most in the first.
    """
    name = _worst(chosen[0]["tensors"])
    tensors = {e["mode"]: e["tensors"][name] for e in chosen if name in e["tensors"]}
    figure = Figure(figsize=(1 + 3.6 * len(tensors), 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(tensors), sharey=True, squeeze=False)[0]
    for panel, mode in zip(panels, sorted(tensors, reverse=True), strict=True):
        _draw(panel, mode, tensors[mode])
    panels[0].set_ylabel("elements in a bin")
    highest = max(max(each["error_histogram"]["counts"]) for each in tensors.values())
    panels[0].set_ylim(0, highest * 1.45)
    title = f"{label(name)} in {chosen[0]['n_bits']} bits: {_finding(tensors)}"
    figure.suptitle(title, color=INK, fontsize=12, parse_math=False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _prefer(records: dict[str, Record], key: str, value: object) -> dict[str, Record]:
    """Keep the records with this value, or where there is none, with that of the first."""
    found = [one[key] for one in records.values()]
    wanted = value if value in found else found[0]
    return {name: one for name, one in records.items() if one[key] == wanted}


def _worst(tensors: dict[str, dict[str, Any]]) -> str:
    """Return the name of the tensor with the least SQNR."""
    return min(tensors, key=lambda name: quality(tensors[name]["measured"]["sqnr_db"]))


def _draw(panel: Axes, mode: str, tensor: dict[str, Any]) -> None:
    histogram = tensor["error_histogram"]
    counts, half_step = histogram["counts"], histogram["upper"]
    panel.stairs(counts, np.linspace(0, half_step, len(counts) + 1), fill=True, color=BAR)
    even = sum(counts) / len(counts)
    panel.axhline(even, color=INK, linestyle=":", label=f"spread evenly: {even:.0f} a bin")
    panel.axvline(half_step, color=LINE, linewidth=2, label=f"s/2 = {half_step:.4g}")
    panel.set_title(f"{mode}, s = {2 * half_step:.4g}", color=INK, fontsize=11)
    panel.set_xlabel("|x − x̂|, in units of x")
    panel.set_xlim(0, half_step * 1.08)
    panel.legend(loc="upper center", frameon=False, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _finding(tensors: dict[str, dict[str, Any]]) -> str:
    figures = [tensor["measured"] for tensor in tensors.values()]
    worst = max(each["bound_ratio"] for each in figures)
    even = all(abs(each["rmse_over_scale"] - 1 / math.sqrt(12)) < 0.01 for each in figures)
    spread = "spread evenly and " if even else ""
    return f"the errors {spread}" + (
        "end at s/2" if worst < 1.001 else f"reach {worst:.1f} times s/2"
    )
