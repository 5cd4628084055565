import re
from itertools import combinations

import matplotlib as mpl
import pytest
from colorspacious import deltaE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.legend import Legend
from matplotlib.text import Annotation

from quantlab.records import record
from quantlab.report import plots
from quantlab.report.answers import kl_front, kl_points
from quantlab.report.bar import Bar
from quantlab.report.choices import FormatPoint, find_widths
from quantlab.report.plots import (
    FRONT_NAMES,
    choose_named,
    error_vs_storage,
    kl_vs_storage,
    luminance,
    shades,
)
from quantlab.report.tables import SHADES
from quantlab.report.texts import LANGUAGES, Texts
from tests.conftest import ROOT
from tests.report.samples import FORMAT_LEVELS as LEVELS
from tests.report.samples import (
    GROUP,
    SQNR,
    answer,
    many_answers,
    outputs_of,
    some,
    storage_of,
    stored,
    with_format,
)

T = Texts("en")
BOTH = {"light": "#fff", "dark": "#14171a"}


def contrast(one, other):
    darker, lighter = sorted(luminance(to_rgb(each)) for each in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.fixture
def lab(lab_sweep):
    return [record.read(path) for path in sorted(lab_sweep[0].glob("*/record.json"))]


def entry(one):
    """What a record of one tensor says of it."""
    (tensor,) = one["tensors"].values()
    return tensor


def test_the_grounds_are_those_of_the_page():
    style = (ROOT / "quantlab" / "report" / "templates" / "report.css").read_text()
    assert re.findall(r"--ground: (#\w+)", style) == list(BOTH.values())


@pytest.mark.parametrize("ground", BOTH.values(), ids=BOTH)
def test_every_colour_stands_out_from_the_page(ground):
    assert all(contrast(colour, ground) >= 3 for colour in plots.COLOURS)


@pytest.mark.parametrize("kind", [None, "deuteranomaly", "protanomaly", "tritanomaly"])
def test_colours_differ_for_every_eye(kind):
    """A distance of 10 in CAM02-UCS is ten times what is just noticed."""
    seen = {"name": "sRGB1+CVD", "cvd_type": kind, "severity": 100} if kind else "sRGB1"
    for one, other in combinations(plots.COLOURS, 2):
        assert deltaE(to_rgb(one), to_rgb(other), input_space=seen) > 10, (one, other)


def test_text_on_a_shade_is_legible():
    assert all(contrast(ground, ink) >= 4.5 for ground, ink in shades(SHADES))
    lightness = [luminance(to_rgb(ground)) for ground, _ in shades(SHADES)]
    assert lightness == sorted(lightness)


def test_a_picture_is_the_same_bytes_whatever_the_user_s_style(lab):
    def draw():
        with plots.plot_style():
            drawn = plots.tensor_plot(entry(lab[0]), T)
            return plots.png(drawn), plots.svg(drawn, salt="x")

    once = draw()
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert draw() == once


def test_an_inlined_picture_takes_the_page_s_ink_and_repeats_no_name(lab):
    with plots.plot_style():
        drawn = [
            plots.svg(plots.tensor_plot(entry(one), T), salt=str(number))
            for number, one in enumerate(lab[:2])
        ]
    shown = "".join(plots.inline(each, 'a "b" <c>') for each in drawn)
    names = re.findall(r'\bid="([^"]+)"', shown)
    assert names
    assert len(names) == len(set(names))
    assert set(re.findall(r"(?:href=\"|url\()#([\w.]+)", shown)) == set(names)
    assert plots.INK not in shown
    assert plots.PAPER not in shown
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in shown


def test_the_histogram_is_of_one_tensor_in_every_mode(lab):
    hidden = [({"tensor": "hidden", **one}, entry(one)) for one in lab if one["dist"] == "hidden"]
    with plots.plot_style():
        drawn = plots.error_histogram(hidden, T)
    assert [panel.get_title().split(",")[0] for panel in drawn.axes] == ["asymmetric", "symmetric"]
    heading = "hidden, 8 bits: the errors are uniform up to s/2"
    assert drawn.get_suptitle() == heading


def marks(panel):
    """Where the vertical lines of a panel stand, by what the legend calls them."""
    lines = zip(*panel.get_legend_handles_labels(), strict=True)
    return {label: line.get_xdata()[0] for line, label in lines if hasattr(line, "get_xdata")}


def test_half_a_step_and_the_code_of_zero_stand_where_they_are(lab):
    one = next(one for one in lab if one["dist"] == "tense_logits" and one["mode"] == "asymmetric")
    tensor = entry(one)
    with plots.plot_style():
        above, below = plots.tensor_plot(tensor, T).axes
    half = tensor["params"]["scale"] / 2
    assert marks(above)[f"s/2 = {half:.3g}"] == pytest.approx(half)
    assert marks(below)["the code of 0"] == tensor["params"]["zero_point"] == -128
    outside = tensor | {"params": tensor["params"] | {"zero_point": -158}}
    with plots.plot_style():
        low, _ = plots.tensor_plot(outside, T).axes[1].get_xlim()
    assert low < -158


def test_errors_beyond_half_a_step_are_drawn(lab):
    tensor = entry(lab[0])
    beyond = tensor | {"error_histogram": tensor["error_histogram"] | {"overflow": 7}}
    with plots.plot_style():
        for each, labels in ((tensor, 0), (beyond, 1)):
            found = plots.tensor_plot(each, T).axes[0].get_legend_handles_labels()[1]
            assert found.count("beyond it") == labels


def test_counts_of_a_large_tensor_stay_in_the_picture(lab):
    tensor = entry(lab[0])
    for counts in (tensor["error_histogram"]["counts"], tensor["codes"]["counts"]):
        counts[:] = [999_999] * len(counts)
    with plots.plot_style():
        picture = plots.tensor_plot(tensor, T)
        canvas = FigureCanvasAgg(picture)
        canvas.draw()
        box = picture.get_tightbbox(canvas.get_renderer())
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= picture.get_figwidth()
    assert box.y1 <= picture.get_figheight()


def test_no_word_leaves_the_picture(lab):
    long = "dist.path=/somewhere/far/away/" + "checkpoint" * 4
    rows = [row(long, n, 6.02 * n) for n in range(2, 17)]
    found = find_widths(rows, ["dist", "mode"])
    with plots.plot_style():
        shown = [(one | {"tensor": "x"}, entry(one)) for one in lab[:2]]
        drawn = [plots.error_vs_bits(found, [Bar()], T), plots.error_histogram(shown, T)]
        drawn += [plots.tensor_plot(entry(one), T) for one in lab]
        for picture in drawn:
            canvas = FigureCanvasAgg(picture)
            canvas.draw()
            renderer = canvas.get_renderer()
            for legend in picture.findobj(Legend):
                for text in legend.get_texts():
                    box = text.get_window_extent(renderer)
                    assert box.x0 <= box.x1 <= picture.bbox.x1, text.get_text()


@pytest.mark.parametrize(
    ("figures", "found"),
    [
        ([(1.0, 0.2887)], "even"),
        ([(1.0, 0.2887), (0.9, 0.1)], "end"),
        ([(0.7, 0.1)], "within"),
        ([(0.0, 0.0)], "none"),
        ([(27.0, 0.2887)], "beyond"),
        ([(None, None)], "largest"),
        ([(27.0, 0.2887), (None, None)], "largest"),
    ],
)
def test_what_the_errors_do(figures, found):
    each = [
        {"bound_ratio": ratio, "rmse_over_scale": rmse, "max_err": 0.25} for ratio, rmse in figures
    ]
    assert plots.error_spread(each) == found


def test_of_many_scales_only_a_perfect_round_trip_says_more_than_its_largest_error():
    figures = {"bound_ratio": None, "rmse_over_scale": None, "max_err": 0.0}
    assert plots.finding([figures], T) == "nothing is lost"
    assert plots.finding([figures, figures | {"max_err": 0.25}], T) == "the largest error is 0.25"


def of_many_scales(tensor):
    """The record of a tensor as it is when it has a scale a block."""
    none = dict.fromkeys(("bound_ratio", "rmse_over_scale"))
    largest = tensor["measured"]["max_err"]
    return tensor | {
        "params": tensor["params"] | {"scale": None, "zero_point": None},
        "measured": tensor["measured"] | none,
        "error_histogram": tensor["error_histogram"] | {"upper": largest, "overflow": 0},
    }


def test_many_scales_have_no_half_step_and_no_code_of_zero(lab):
    tensor = of_many_scales(entry(lab[0]))
    with plots.plot_style():
        picture = plots.tensor_plot(tensor, T)
        plots.png(picture)
    above, below = picture.axes
    largest = tensor["measured"]["max_err"]
    assert marks(above) == {f"largest error {largest:.3g}": largest}
    assert marks(below) == {}
    assert below.get_xlim() == (-129, 128)


def test_one_scale_of_uneven_steps_has_no_half_step_either(lab):
    tensor = entry(lab[0])
    uneven = tensor | {"measured": of_many_scales(tensor)["measured"]}
    assert plots.has_one_step(tensor)
    assert not plots.has_one_step(uneven)


def test_the_histogram_of_many_scales_names_the_mode_alone(lab):
    one, other = entry(lab[0]), of_many_scales(entry(lab[0]))
    shown = [({"tensor": "w", "mode": mode, "n_bits": 8}, each)
             for mode, each in (("symmetric", one), ("nf4", other))]  # fmt: skip
    with plots.plot_style():
        picture = plots.error_histogram(shown, T)
        plots.png(picture)
    assert [panel.get_title().split(",")[0] for panel in picture.axes] == ["symmetric", "nf4"]
    largest = one["measured"]["max_err"]
    assert picture.get_suptitle() == f"w, 8 bits: the largest error is {largest:.3g}"


def row(name, n_bits, sqnr_db):
    rest = {"top_order_kept": True, "rel_err": 0.1, "max_err": 0}
    named = {"dist": name, "mode": "symmetric", "tensor": name, "n_bits": n_bits}
    return with_format(named | rest | {"sqnr_db": sqnr_db})


def test_the_worst_lines_are_drawn_and_the_rest_is_a_band():
    rows = [row(f"_t{i}", n, 6.02 * n - i) for i in range(20) for n in (4, 8)]
    with plots.plot_style():
        drawn = plots.error_vs_bits(find_widths(rows, ["dist", "mode"]), [Bar()], T)
    (panel,), (legend,) = drawn.axes, drawn.legends
    worst = [f"_t{i}, symmetric" for i in range(19, 11, -1)]
    assert [text.get_text() for text in legend.get_texts()] == [
        *worst, "the middle half of all 20", "the bar, 30 dB", "6.02 dB a bit",
    ]  # fmt: skip
    assert panel.lines[0].get_ydata().tolist() == [6.02 * 4 - 19, 6.02 * 8 - 19]
    *_, theory = panel.lines
    (x0, x1), (y0, y1) = theory.get_data()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(6.0206, abs=1e-4)


def test_a_perfect_round_trip_is_no_point():
    rows = [row("a", 4, 20.0), row("a", 8, None), row("b", 4, None), row("b", 8, None)]
    with plots.plot_style():
        plots.png(plots.error_vs_bits(find_widths(rows, ["dist", "mode"]), [Bar()], T))
        none = find_widths(rows[2:], ["dist", "mode"])
        plots.png(plots.error_vs_bits(none, [Bar(sqnr_db=None)], T))


def crowd():
    """Formats as close to each other as real ones are."""
    return [
        stored(mode, n, n + extra, 5.5 * n + gain, **choice)
        for n in (2, 3, 4, 6, 8)
        for mode, gain in (("symmetric", 0.0), ("asymmetric", 1.1))
        for extra, choice, gain in (
            (0.004, {}, gain),
            (0.06, {"block": "channel", "scale_dtype": "float16"}, gain + 2),
            (0.5, GROUP | {"scale_dtype": "float16"}, gain + 4),
            (0.51, GROUP | {"scale_dtype": "float16", "range": "mse"}, gain + 3.8),
        )
    ]


def drawn(rows, bar=SQNR, levels=LEVELS, t=T):
    with plots.plot_style():
        return error_vs_storage(storage_of(rows, levels, bar), [bar], t)


def names(picture):
    return [each.get_text() for each in picture.findobj(Annotation)]


def legend(picture):
    return [text.get_text() for text in picture.legends[0].get_texts()]


def test_the_points_of_the_front_are_numbered_and_named_below():
    picture = drawn(some())
    assert names(picture) == ["1", "2", "3", "4"]
    assert legend(picture) == [
        "beaten by another format", "the front", "the bar, 30 dB", "6.02 dB a bit (Gaussian)",
        "1  sym 4 bits", "2  nf4, group 32", "3  sym 8 bits", "4  sym 8 bits, group 32",
    ]  # fmt: skip


def test_of_many_points_twelve_are_numbered():
    picture = drawn(crowd())
    assert names(picture) == [str(n) for n in range(1, FRONT_NAMES + 1)]
    named = [line.strip("\u2007") for line in legend(picture)[4:]]
    assert len(named) == FRONT_NAMES
    assert named[0] == "1  asym 2 bits"
    assert named[-1] == "12  asym 8 bits, group 32, float16"


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("rows", [some(), crowd()], ids=["few", "crowd"])
def test_no_word_leaves_the_picture_or_hides_another(rows, lang):
    with plots.plot_style():
        require_words_apart(drawn(rows, t=Texts(lang)))


def require_words_apart(picture):
    """Require that each annotation and word of the legend is inside and covers no other."""
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    texts = [*picture.findobj(Annotation), *picture.legends[0].get_texts()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    for n, box in enumerate(boxes):
        assert 0 <= box.x0 <= box.x1 <= picture.bbox.x1, texts[n].get_text()
        assert not any(box.overlaps(other) for other in boxes[:n]), texts[n].get_text()


def test_the_bound_rises_six_decibels_a_bit_from_nothing():
    picture = drawn(some())
    (line,) = [each for each in picture.axes[0].lines if each.get_linestyle() == ":"]
    assert line.get_ydata() == pytest.approx([6.0206 * bits for bits in line.get_xdata()], rel=1e-5)
    assert picture.axes[0].get_ylim()[0] < 10 < 44 < picture.axes[0].get_ylim()[1] < 60


def test_of_many_tensors_the_axis_says_that_they_are_medians():
    rows = [*some(tensor="a"), *some(tensor="b")]
    assert drawn(some()).axes[0].get_ylabel() == "SQNR, dB"
    assert drawn(rows, levels=[*LEVELS, "tensor"]).axes[0].get_ylabel() == "median SQNR, dB"


def test_the_same_rows_are_the_same_bytes():
    def both():
        with plots.plot_style():
            picture = error_vs_storage(storage_of(crowd(), LEVELS, SQNR), [SQNR], T)
            return plots.png(picture), plots.svg(picture, salt="x")

    assert both() == both()


def drawn_kl(rows, t=T, **limits):
    (output,) = outputs_of(rows, **limits)
    with plots.plot_style():
        return kl_vs_storage(kl_points(output), kl_front(output), [output.best.bar], t)


def test_the_kl_of_answers_is_drawn_on_a_logarithmic_axis_with_its_front():
    rows = [
        answer("sym 4 bits", 4.0, 0.1),
        answer("nf4", 4.5, 0.2),
        answer("sym 8 bits", 8.0, 0.001),
        answer("log 16 bits", 16.0, 0.0),
    ]
    picture = drawn_kl(rows, kl=0.01)
    assert picture.axes[0].get_yscale() == "log"
    assert names(picture) == ["1", "2"]
    assert legend(picture) == [
        "beaten by another format", "the front", "the bar, 0.01 bits", "1  sym 4 bits",
        "2  sym 8 bits",
    ]  # fmt: skip
    assert picture.axes[0].get_ylabel() == "KL of the answers, bits"


@pytest.mark.parametrize("kl", [[0.011, 0.0166], [0.02], [1e-9, 3.0]])
def test_some_heights_of_a_logarithmic_axis_have_numbers(kl):
    rows = [answer(f"sym {n} bits", float(n), figure) for n, figure in enumerate(kl, 2)]
    picture = drawn_kl(rows)
    with plots.plot_style():
        FigureCanvasAgg(picture).draw()
    low, high = picture.axes[0].get_ylim()
    ticks = picture.axes[0].yaxis.get_major_ticks()
    shown = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    assert len([text for text in shown if text]) >= 2
    assert all(float(text.replace("−", "-")) for text in shown)
    assert low < min(kl) <= max(kl) < high


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_word_leaves_the_picture_of_the_kl_or_hides_another(lang):
    picture = drawn_kl([row for row in many_answers() if not row["tensor"]], Texts(lang))
    with plots.plot_style():
        require_words_apart(picture)


def test_exact_formats_alone_leave_an_empty_picture():
    rows = [stored("log", n, float(n), None, max_err=0) for n in (8, 16)]
    picture = drawn(rows, Bar(sqnr_db=None))
    assert names(picture) == []


def test_a_format_with_underscores_and_dollars_is_named_as_it_is():
    rows = [stored("_a$b$", 4, 4.5, 20.0), stored("symmetric", 8, 8.0, 34.0)]
    assert legend(drawn(rows))[-2:] == ["1  _a$b$", "2  sym 8 bits"]


def test_of_a_long_front_some_are_named_and_its_ends():
    best = [FormatPoint(n, n, str(n)) for n in range(40)]
    assert len(choose_named(best)) == FRONT_NAMES
    assert (choose_named(best)[0], choose_named(best)[-1]) == (best[0], best[-1])
    assert choose_named(best[:3]) == best[:3]
