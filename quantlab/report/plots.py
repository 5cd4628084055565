"""Pictures of a sweep, each as PNG and as SVG, the same bytes whenever they are drawn."""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from quantlab.records.record import Row
from quantlab.report.bar import Bar
from quantlab.report.choices import TensorChoice, Widths, format_points, storage_front
from quantlab.report.texts import Texts
from quantlab.stats.metrics import DB_A_BIT
from quantlab.text import label

Entry = dict[str, Any]  # what a record says of one tensor
Sides = tuple[tuple[tuple[int, int], str], tuple[tuple[int, int], str]]  # of even, odd numbers
Point = tuple[float, float, str]  # a format: bits per value, SQNR in dB or KL in bits, its name

INK, PAPER = "#222222", "#ffffff"
# Of Okabe and Ito's palette those with a contrast of 3 on white as on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
BARS, MARK = COLOURS[:2]
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P", "X", "p"), ("-", (0, (4, 1.5)))
UNIFORM_RMSE = 1 / math.sqrt(12)  # rmse in steps, of errors spread evenly over a step
MAX_BOUND_RATIO = 1.001  # what float32 may add to half a step
END_RATIO = 0.9  # of half a step: errors that end there end at it
HISTOGRAM_END = 1.08  # halves of a step that a histogram shows
MAX_CURVES = 8  # more cannot be told apart
WIDTH_INCHES = 3.8  # inches, at which a telephone shows a picture in its own size
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "figure.dpi": 160,
    "figure.facecolor": PAPER,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
LEGEND_ROW = {"ncols": 2, "borderpad": 0, "handlelength": 1.2, "columnspacing": 1.2}  # of a legend
LABEL_CHARS = 40  # characters that a line of a legend has room for
SVG = "http://www.w3.org/2000/svg"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
FRONT_NAMES = 12  # formats of the front that are named; a telephone has room for no more
BEATEN_COLOUR, FRONT_COLOUR = COLOURS[:2]
BITS_INCHES, STORAGE_INCHES, LEGEND_LINE_INCHES = 2.9, 3.6, 0.17  # heights
# Where numbers stand beside the points of a rising and of a falling front, in points of text.
RISING_SIDES: Sides = ((3, -10), "left"), ((-3, 3), "right")
FALLING_SIDES: Sides = ((-3, -10), "right"), ((3, 3), "left")
FIGURE_SPACE = "\u2007"  # as wide as a digit


def error_histogram(shown: Sequence[tuple[Row, Entry]], texts: Texts) -> Figure:
    """Draw |x - x_hat| of a tensor under each mode, with half a step marked (lab 03, block F)."""
    row, _ = shown[0]
    figures = [tensor["measured"] for _, tensor in shown]
    drawn = figure(3, width=1 + 3 * len(shown))
    panels = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (shown_row, tensor) in zip(panels, shown, strict=True):
        _errors(panel, tensor, texts)
        panel.set_title(_panel_title(shown_row, tensor, texts), pad=22)
    panels[0].set_ylabel(texts("axis_elements"))
    heading = texts("in_bits", name=label(row["tensor"]), bits=row["n_bits"])
    drawn.suptitle(f"{heading}: {finding(figures, texts)}", fontsize=11)
    return drawn


def _panel_title(row: Row, tensor: Entry, texts: Texts) -> str:
    """Return the mode, and the step where there is one."""
    if not has_one_step(tensor):
        return label(row["mode"])
    return texts("histogram_panel", mode=row["mode"], scale=f"{tensor['params']['scale']:.4g}")


def tensor_plot(tensor: Entry, texts: Texts) -> Figure:
    """Draw the errors of one tensor above, the codes it uses below, where they are known."""
    panels = 1 if tensor["codes"] is None else 2
    # Its words are of known sizes: a page has twelve of these, and a layout takes half their time.
    drawn = Figure(figsize=(WIDTH_INCHES, 2.1 * panels + 0.1))
    height = drawn.get_figheight()
    drawn.subplots_adjust(0.21, 0.42 / height, 0.98, 1 - 0.24 / height, hspace=0.48)
    above, *below = drawn.subplots(panels, squeeze=False)[:, 0]
    _errors(above, tensor, texts)
    above.set_ylabel(texts("axis_elements"))
    for panel in below:
        _codes(panel, tensor, texts)
    return drawn


def _codes(panel: Axes, tensor: Entry, texts: Texts) -> None:
    """Draw how often each code occurs, and where there is one zero point mark it."""
    codes, params = tensor["codes"], tensor["params"]
    edges = codes["first"] - 0.5 + codes["width"] * np.arange(len(codes["counts"]) + 1)
    panel.stairs(codes["counts"], edges, fill=True, color=BARS)
    ends = [params["qmin"], params["qmax"]]
    if params["zero_point"] is not None:
        panel.axvline(params["zero_point"], color=MARK, linestyle=":", label=texts("zero_code"))
        ends.append(params["zero_point"])
    panel.set_xlim(min(ends) - 1, max(ends) + 1)
    panel.set_xlabel(texts("axis_code"))
    panel.set_ylabel(texts("axis_elements"))
    _place_legend(panel)


def error_vs_bits(tensors: Sequence[Widths], bars: Sequence[Bar], texts: Texts) -> Figure:
    """Draw the SQNR of each tensor and mode at each width, beside what theory gives a bit.

    `tensors` has the worst first; of more than `MAX_CURVES` those are drawn, and the middle half of
    all.
    """
    shown = tensors[:MAX_CURVES]
    drawn = figure(BITS_INCHES + LEGEND_LINE_INCHES * (len(shown) + 3))
    panel = drawn.subplots()
    decibels = _decibels_by_width(tensors)
    bits = sorted(decibels)
    for number, widths in enumerate(shown):
        _line(panel, widths, number)
    if len(tensors) > MAX_CURVES:
        quarters = [np.quantile(decibels[n] or [math.nan], [0.25, 0.75]) for n in bits]
        low, high = zip(*quarters, strict=True)
        middle = texts("bits_others", n=len(tensors))
        panel.fill_between(bits, low, high, color=INK, alpha=0.15, label=middle)
    _draw_bars(panel, bars, texts)
    _theory(panel, decibels[bits[0]], bits, texts)
    panel.set_xticks(bits)
    panel.set_xlabel(texts("axis_bits"))
    panel.set_ylabel(texts("axis_sqnr"))
    entries = drawn.legend(loc="outside lower left").get_texts()
    for entry, widths in zip(entries, shown, strict=False):
        entry.set_text(label(widths.name, LABEL_CHARS))  # a label from _ on would be left out
    return drawn


def _draw_bars(panel: Axes, bars: Sequence[Bar], texts: Texts) -> None:
    """Draw a line at each SQNR that some bar demands."""
    for limit in dict.fromkeys(bar.sqnr_db for bar in bars if bar.sqnr_db):
        text = texts("bits_bar", threshold=f"{limit:g}")
        panel.axhline(limit, color=INK, lw=1, ls="--", label=text)


def _line(panel: Axes, widths: Widths, number: int) -> None:
    panel.plot(
        [row["n_bits"] for row in widths.rows],
        [math.nan if row["sqnr_db"] is None else row["sqnr_db"] for row in widths.rows],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=DASHES[number // len(COLOURS)],
        markersize=4,
        label=str(number),
    )


def _theory(panel: Axes, start: Sequence[float], bits: Sequence[int], texts: Texts) -> None:
    """Draw a line that rises 6.02 dB a bit, from the middle of what the fewest bits gave."""
    if not start:
        return
    ends = [bits[0] - 0.5, bits[-1] + 0.5]
    height = [float(np.median(start)) + DB_A_BIT * (n - bits[0]) for n in ends]
    panel.plot(ends, height, color=INK, lw=1.2, ls=":", label=texts("bits_theory"))


def _decibels_by_width(tensors: Sequence[Widths]) -> dict[int, list[float]]:
    """Collect the SQNR of every tensor that has one at a width, by widths."""
    decibels: dict[int, list[float]] = {}
    for row in (row for widths in tensors for row in widths.rows):
        of_width = decibels.setdefault(row["n_bits"], [])
        if row["sqnr_db"] is not None:
            of_width.append(row["sqnr_db"])
    return decibels


def _errors(panel: Axes, tensor: Entry, texts: Texts) -> None:
    """Draw how often errors of each size occur; of one step also s/2, and how many go beyond it."""
    histogram = tensor["error_histogram"]
    counts, upper = histogram["counts"], histogram["upper"]
    panel.stairs(counts, np.linspace(0, upper, len(counts) + 1), fill=True, color=BARS)
    if has_one_step(tensor):
        even = sum(counts) / len(counts)
        panel.axhline(even, color=INK, linestyle=":", label=texts("even", n=f"{even:.3g}"))
        panel.axvline(upper, color=MARK, linewidth=2, label=texts("half_step", half=f"{upper:.3g}"))
    else:
        largest = tensor["measured"]["max_err"]
        text = texts("largest_error", largest=f"{largest:.3g}")
        panel.axvline(largest, color=MARK, linewidth=2, label=text)
    if histogram["overflow"]:
        beyond = [upper, upper * HISTOGRAM_END]
        panel.stairs([histogram["overflow"]], beyond, fill=True, color=MARK, label=texts("beyond"))
    panel.set_xlabel(texts("axis_error"))
    panel.set_xlim(0, upper * HISTOGRAM_END)
    panel.ticklabel_format(axis="x", scilimits=(-3, 4))
    _place_legend(panel)


def _place_legend(panel: Axes) -> None:
    """Put the legend where it hides nothing, and few enough ticks for a narrow panel."""
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), **LEGEND_ROW)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    panel.set_ylim(bottom=0)


def has_one_step(tensor: Entry) -> bool:
    """Test if all codes of a tensor are one step apart, so that s/2 means something."""
    return None not in (tensor["params"]["scale"], tensor["measured"]["bound_ratio"])


def finding(figures: Sequence[Mapping[str, Any]], texts: Texts) -> str:
    """Describe the spread of the errors of one or more modes."""
    ratio = max(measured["bound_ratio"] or 0 for measured in figures)
    spread, words = error_spread(figures), {"ratio": f"{ratio:.2g}"}
    if spread == "largest":
        words = {"largest": f"{max(measured['max_err'] for measured in figures):.3g}"}
    return texts(f"finding_{spread}", **words)


def error_spread(figures: Sequence[Mapping[str, Any]]) -> str:
    """Classify the spread of the errors of one or more modes.

    There are "none", or they are "even" up to s/2, "end" near it, stay "within" it or go "beyond".
    Where some mode has more than one step, only the "largest" can be said.
    """
    if any(measured["bound_ratio"] is None for measured in figures):
        return "largest" if any(measured["max_err"] for measured in figures) else "none"
    ratio = max(measured["bound_ratio"] for measured in figures)
    if ratio > MAX_BOUND_RATIO:
        return "beyond"
    if all(abs(measured["rmse_over_scale"] - UNIFORM_RMSE) < 0.01 for measured in figures):
        return "even"
    return "end" if ratio > END_RATIO else "within" if ratio else "none"


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw in the style here and nothing else, whatever the user's own is."""
    with mpl.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in a tensor's name
        yield


def figure(height: float, width: float = WIDTH_INCHES) -> Figure:
    """Return an empty figure, its size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def png(drawn: Figure) -> bytes:
    """Return a figure as PNG."""
    content = io.BytesIO()
    layout = drawn.get_layout_engine()
    if layout:  # once, not at each of the two passes of each format
        layout.execute(drawn)
        drawn.set_layout_engine()
    drawn.savefig(content, format="png")
    return content.getvalue()


def svg(drawn: Figure, salt: str) -> bytes:
    """Return a figure as SVG; `salt` makes what it refers to by name its own."""
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        drawn.savefig(content, format="svg", metadata=NO_METADATA)
    return content.getvalue()


def inline(drawn: bytes, alt: str) -> str:
    """Return an SVG to stand in a page: in the page's colours, and with no name used twice."""
    for prefix, namespace in {"": SVG, "xlink": "http://www.w3.org/1999/xlink"}.items():
        ElementTree.register_namespace(prefix, namespace)
    root = ElementTree.fromstring(drawn)
    referred = set(re.findall(rb"#([\w.]+)", drawn))
    for element in root.iter():
        if element.get("id", "").encode() not in referred:
            element.attrib.pop("id", None)
    root.attrib |= {"role": "img", "aria-label": alt}
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(INK, "currentColor").replace(PAPER, "none")


def error_vs_storage(choices: Sequence[TensorChoice], bars: Sequence[Bar], texts: Texts) -> Figure:
    """Draw the SQNR of each format over its bits a value, of many tensors the medians.

    Points of the front are numbered, and the legend names them. A Gaussian source needs the bits of
    the dotted line (Shannon's bound); an exact round trip is not drawn.
    """
    points = [point for point in format_points(choices) if not point.is_exact]
    best = storage_front(points)
    named = choose_named(best)
    drawn = figure(STORAGE_INCHES + LEGEND_LINE_INCHES * len(named))
    panel = drawn.subplots()
    _points(panel, points, best, texts)
    _lines(panel, bars, texts)
    panel.set_xlabel(texts("axis_storage"))
    panel.set_ylabel(texts("axis_sqnr" if len(choices) == 1 else "axis_sqnr_median"))
    _name_points(panel, named, RISING_SIDES)
    drawn.legend(loc="outside lower left")
    return drawn


def kl_vs_storage(
    points: Sequence[Point], front: Sequence[Point], bars: Sequence[Bar], texts: Texts
) -> Figure:
    """Draw the KL of an output's answers in each format over its bits a value, and the front."""
    named = choose_named(front)
    drawn = figure(STORAGE_INCHES + LEGEND_LINE_INCHES * len(named))
    panel = drawn.subplots()
    _points(panel, points, front, texts)
    for limit in dict.fromkeys(bar.kl for bar in bars if bar.kl):
        text = texts("kl_bar", threshold=f"{limit:g}")
        panel.axhline(limit, color=INK, lw=1, ls="--", label=text)
    panel.margins(0.12, 0.15)
    _set_log_axis(panel)
    panel.set_xlabel(texts("axis_storage"))
    panel.set_ylabel(texts("axis_kl"))
    _name_points(panel, named, FALLING_SIDES)
    drawn.legend(loc="outside lower left")
    return drawn


def _set_log_axis(panel: Axes) -> None:
    """Make the heights logarithmic, at least a decade, so that some ticks have numbers."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    if high < 10 * low:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(10), middle * math.sqrt(10)
        panel.set_ylim(low, high)
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    panel.yaxis.set_major_locator(LogLocator(subs=subs))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _name_points(panel: Axes, named: Sequence[Point], sides: Sides) -> None:
    """Write numbers beside points, and their names in the legend."""
    digits = len(str(len(named)))
    for number, (bits, height, name) in enumerate(named, 1):
        offset, side = sides[number % 2]  # neighbours stay legible
        panel.annotate(str(number), (bits, height), offset, textcoords="offset points", ha=side)
        line = f"{number:{FIGURE_SPACE}>{digits}}  {label(name, LABEL_CHARS)}"
        panel.plot([], [], " ", label=line)


def choose_named(front: Sequence[Point]) -> list[Point]:
    """Return the offers of a front that are named: of many some, evenly, its ends among them."""
    places = np.linspace(0, len(front) - 1, min(FRONT_NAMES, len(front))).round().astype(int)
    return [front[n] for n in places.tolist()]


def _points(panel: Axes, points: Sequence[Point], front: Sequence[Point], texts: Texts) -> None:
    """Draw the front as steps: the best that there is for as many bits."""
    beaten = [point for point in points if point not in front]
    if beaten:
        panel.scatter(
            *_coordinates(beaten), s=14, color=BEATEN_COLOUR, label=texts("storage_beaten")
        )
    steps = panel.plot(*_coordinates(front), "o-", color=FRONT_COLOUR, ms=5, lw=1.2)
    steps[0].set(drawstyle="steps-post", label=texts("storage_front"))


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [bits for bits, _, _ in points], [height for _, height, _ in points]


def _lines(panel: Axes, bars: Sequence[Bar], texts: Texts) -> None:
    """Draw the bar, then the bound as far as the points and the bar reach."""
    _draw_bars(panel, bars, texts)
    panel.margins(0.12, 0.15)
    ends, height = panel.get_xlim(), panel.get_ylim()
    bound = [DB_A_BIT * bits for bits in ends]
    panel.plot(ends, bound, color=INK, lw=1.2, ls=":", label=texts("storage_bound"))
    panel.set_xlim(*ends)
    panel.set_ylim(*height)


def shades(count: int) -> list[tuple[str, str]]:
    """List the colours of some shades, dark to light, each with that of text on it."""
    colours = mpl.colormaps["cividis"].resampled(count)(range(count))
    return [
        (mpl.colors.to_hex(colour), "#000" if luminance(colour[:3]) > 0.18 else "#fff")
        for colour in colours
    ]


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
