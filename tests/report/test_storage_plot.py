import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

from quantlab.report import plots
from quantlab.report.bar import Bar
from quantlab.report.storage import Offer, tensor_formats
from quantlab.report.storage_plot import NAMED, chosen, error_vs_storage
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.test_storage import GROUP, LEVELS, SQNR, some, stored

T = Texts("en")


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
        return error_vs_storage(tensor_formats(rows, levels, bar), bar, t)


def names(picture):
    return [each.get_text() for each in picture.findobj(Annotation)]


def legend(picture):
    return [text.get_text() for text in picture.legends[0].get_texts()]


def test_few_formats_are_named_at_their_points():
    picture = drawn(some())
    assert names(picture) == ["sym 4 bits", "nf4, group 32", "sym 8 bits", "sym 8 bits, group 32"]
    assert legend(picture) == [
        "beaten by another format", "the front", "the bar, 30 dB", "6.02 dB a bit (Gaussian)",
    ]  # fmt: skip


def test_many_are_numbered_and_named_below():
    picture = drawn(crowd())
    assert names(picture) == [str(n) for n in range(1, NAMED + 1)]
    named = [line.strip("\u2007") for line in legend(picture)[4:]]
    assert len(named) == NAMED
    assert named[0] == "1  asym 2 bits"
    assert named[-1] == "12  asym 8 bits, group 32, float16"


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("rows", [some(), crowd()], ids=["few", "crowd"])
def test_no_word_leaves_the_picture_or_hides_another(rows, lang):
    with plots.plot_style():
        picture = drawn(rows, t=Texts(lang))
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
            picture = error_vs_storage(tensor_formats(crowd(), LEVELS, SQNR), SQNR, T)
            return plots.png(picture), plots.svg(picture, salt="x")

    assert both() == both()


def test_exact_formats_alone_leave_an_empty_picture():
    rows = [stored("log", n, float(n), None, max_err=0) for n in (8, 16)]
    picture = drawn(rows, Bar(sqnr_db=None))
    assert names(picture) == []


def test_a_format_with_underscores_and_dollars_is_named_as_it_is():
    rows = [stored("_a$b$", 4, 4.5, 20.0), stored("symmetric", 8, 8.0, 34.0)]
    assert names(drawn(rows)) == ["_a$b$", "sym 8 bits"]


def test_of_a_long_front_some_are_named_and_its_ends():
    best = [Offer(n, -n, str(n)) for n in range(40)]
    assert len(chosen(best)) == NAMED
    assert (chosen(best)[0], chosen(best)[-1]) == (best[0], best[-1])
    assert chosen(best[:3]) == best[:3]
