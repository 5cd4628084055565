"""The picture of error against storage: a point for each format, the best of them named."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from quantlab.report.bar import Bar
from quantlab.report.label_places import Box, around, place_labels
from quantlab.report.plots import COLOURS, DB_A_BIT, INK, LABEL, figure
from quantlab.report.storage import Offer, TensorFormats, front, medians
from quantlab.report.texts import Texts
from quantlab.text import label

NAMED = 12  # formats of the front that are named; a telephone has room for no more
BEATEN, BEST = COLOURS[:2]
HEIGHT, LINE = 3.6, 0.17  # inches, of the picture and of a line of its legend
POINT, STROKE, STEPS = 3.0, 1.0, 100  # half the size of points and lines, and boxes along a line
FIGURE_SPACE = "\u2007"  # as wide as a digit


def error_vs_storage(found: Sequence[TensorFormats], bar: Bar, t: Texts) -> Figure:
    """Draw the SQNR of each format over its bits a value, of many tensors the medians.

    What no other format beats is named at its point, or where there is no room for it numbered and
    named below. A Gaussian source needs the bits of the dotted line (Shannon's bound); an exact
    round trip is not drawn.
    """
    offers = [offer for offer in medians(found) if not offer.is_exact]
    named = chosen(front(offers))
    names = [label(offer.name, LABEL) for offer in named]
    axis = t("axis_sqnr" if len(found) == 1 else "axis_sqnr_median")
    drawn = _draw(offers, [], axis, bar, t)
    if _write(drawn.axes[0], named, names, offers, bar):
        return drawn
    numbers = [str(n) for n in range(1, len(named) + 1)]
    widest = len(numbers[-1])
    lines = [f"{n:{FIGURE_SPACE}>{widest}}  {name}" for n, name in zip(numbers, names, strict=True)]
    drawn = _draw(offers, lines, axis, bar, t)
    for kept_free in (offers, named, ()):
        if _write(drawn.axes[0], named, numbers, kept_free, bar):
            break
    return drawn


def chosen(best: Sequence[Offer]) -> list[Offer]:
    """Return the offers of a front that are named: of many some, evenly, its ends among them."""
    places = np.linspace(0, len(best) - 1, min(NAMED, len(best))).round().astype(int)
    return [best[n] for n in places.tolist()]


def _draw(offers: Sequence[Offer], lines: Sequence[str], axis: str, bar: Bar, t: Texts) -> Figure:
    """Draw points and lines, and write what is beside them and below."""
    drawn = figure(HEIGHT + LINE * len(lines))
    panel = drawn.subplots()
    _points(panel, offers, t)
    _lines(panel, bar, t)
    panel.set_xlabel(t("axis_storage"))
    panel.set_ylabel(axis)
    for line in lines:
        panel.plot([], [], " ", label=line)
    drawn.legend(loc="outside lower left")
    drawn.draw_without_rendering()  # where the points stand is known from here on
    return drawn


def _points(panel: Axes, offers: Sequence[Offer], t: Texts) -> None:
    """Draw the front as steps: what the best SQNR is for as many bits."""
    best = front(offers)
    beaten = [offer for offer in offers if offer not in best]
    if beaten:
        panel.scatter(*_coordinates(beaten), s=14, color=BEATEN, label=t("storage_beaten"))
    steps = panel.plot(*_coordinates(best), "o-", color=BEST, ms=5, lw=1.2)
    steps[0].set(drawstyle="steps-post", label=t("storage_front"))


def _coordinates(offers: Sequence[Offer]) -> tuple[list[float], list[float]]:
    return [offer.bits for offer in offers], [offer.sqnr_db for offer in offers]


def _lines(panel: Axes, bar: Bar, t: Texts) -> None:
    """Draw the bar, then the bound as far as the points and the bar reach."""
    if bar.sqnr_db:
        asked = t("bits_bar", threshold=f"{bar.sqnr_db:g}")
        panel.axhline(bar.sqnr_db, color=INK, lw=1, ls="--", label=asked)
    panel.margins(0.12, 0.15)
    ends, height = panel.get_xlim(), panel.get_ylim()
    bound = [DB_A_BIT * bits for bits in ends]
    panel.plot(ends, bound, color=INK, lw=1.2, ls=":", label=t("storage_bound"))
    panel.set_xlim(*ends)
    panel.set_ylim(*height)


def _write(
    panel: Axes,
    named: Sequence[Offer],
    texts: Sequence[str],
    kept_free: Sequence[Offer],
    bar: Bar,
) -> bool:
    """Write texts at the points of some offers; return whether there was room for all."""
    points = _on_paper(panel, _coordinates(named))
    low, high = _on_paper(panel, (panel.get_xlim(), panel.get_ylim()))
    apart = [around(*place, POINT) for place in _on_paper(panel, _coordinates(kept_free))]
    strokes = _strokes(panel, front(kept_free), bar)
    placed = place_labels(texts, points, Box(*low, *high), apart=apart, rather=strokes)
    for text, (x, y), offer, box in zip(texts, points, named, placed or (), strict=False):
        side, end = ("right", box.right) if box.right < x else ("left", box.left)
        offset = (end - x, box.bottom - y + 1)
        place = (offer.bits, offer.sqnr_db)
        note = panel.annotate(text, place, offset, textcoords="offset points", ha=side)
        note.set_in_layout(False)
    return placed is not None


def _strokes(panel: Axes, best: Sequence[Offer], bar: Bar) -> list[Box]:
    """Return boxes along the bound, the bar and the steps down from each point of the front."""
    bits, height = np.linspace(*panel.get_xlim(), STEPS), np.linspace(*panel.get_ylim(), STEPS)
    lines = [(bits, DB_A_BIT * bits)]
    lines += [(bits, np.full(STEPS, bar.sqnr_db))] if bar.sqnr_db else []
    for before, after in pairwise(best):
        rising = height[(before.sqnr_db < height) & (height < after.sqnr_db)]
        lines.append((np.full(rising.size, after.bits), rising))
    return [around(*place, STROKE) for line in lines for place in _on_paper(panel, line)]


def _on_paper(panel: Axes, places: tuple[ArrayLike, ArrayLike]) -> list[tuple[float, float]]:
    """Return where bits and SQNR are on the paper, in points of 1/72 inch."""
    on_screen = panel.transData.transform(np.column_stack(places))
    points: list[tuple[float, float]] = (on_screen * 72 / panel.figure.dpi).tolist()
    return points
