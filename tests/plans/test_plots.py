import pytest

from quantlab.plans.choose import within_budget
from quantlab.plans.mixture import Mixture
from quantlab.plans.page import page
from quantlab.plans.plots import NAMED, noise_over_size, strip, unbeaten
from quantlab.plans.slots import Request, find_slots
from quantlab.report import plots
from quantlab.report.texts import LANGUAGES, Texts
from tests.plans.samples import original, row, sweep, two

T = Texts("en")


def plan(rows=None, budget=13_000, tensors=None, **asked):
    return within_budget(find_slots(sweep(rows or two(), tensors), Request(**asked)), budget)


def curve(made, t=T):
    with plots.plot_style():
        drawn = noise_over_size(made, t)
    return drawn, [text.get_text() for text in drawn.legends[0].get_texts()]


def test_formats_that_no_other_beats_are_kept():
    given = [Mixture("a", 1, 3.0), Mixture("b", 2, 3.0), Mixture("c", 3, 1.0), Mixture("d", 4, 2.0)]
    assert [each.name for each in unbeaten(given)] == ["a", "c"]


def test_the_curve_has_the_front_the_formats_and_the_plan():
    drawn, legend = curve(plan())
    assert legend == [
        T("plan_front"), "sym 4 bits, group 32", "sym 8 bits", "sym 8 bits, channel",
        T("plan_here"),
    ]  # fmt: skip
    (star,) = (line for line in drawn.axes[0].lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (plan().bits / 2000, plan().noise)
    front = drawn.axes[0].lines[0]
    assert list(front.get_ydata()) == sorted(front.get_ydata(), reverse=True)
    assert front.get_ydata()[0] == plan().front[0].noise


def test_of_many_formats_some_are_named():
    rows = [
        row(name, "mx/fp4", 4 + n / 4, 20.0 + n, mode=f"mx/{n}")
        for name in ("a", "b")
        for n in range(NAMED + 3)
    ]
    _, legend = curve(plan(rows, 14_000))
    assert len(legend) == NAMED + 3
    assert T("plan_others") in legend


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("budget", [9_000, 13_000, 64_000])
def test_every_budget_can_be_drawn_in_every_language(budget, lang):
    html = page(plan(budget=budget), "quantlab plan", "0" * 64, Texts(lang)).decode()
    assert f'lang="{lang}"' in html


def test_a_tensor_that_is_alone_or_of_no_values_can_be_drawn():
    rows = [each for each in two() if each["tensor"] == "a.weight"]
    empty = original("c", (0,), reason="empty")
    made = plan(rows, 8000, [original("a.weight"), empty])
    with plots.plot_style():
        bars = strip(made, T).axes[0].patches
    assert len(bars) == len(made.counts) == 2
    assert b"empty" in page(made, "quantlab plan", "0" * 64, T)


def test_a_bar_is_as_high_as_the_bits_of_its_tensor():
    made = plan(budget=12_750)
    with plots.plot_style():
        bars = strip(made, T).axes[0].patches
    heights = [list(each.get_data().values) for each in bars]
    assert [[h for h in row if h == h] for row in heights] == [[8.25], [4.5]]


@pytest.mark.parametrize("kept", ["float32", "sym 8 bits"])
def test_without_a_choice_there_is_still_a_page(kept):
    made = plan(budget=64_000, keep=[("*", kept)])
    assert b"</html>" in page(made, "quantlab plan", "0" * 64, T)
