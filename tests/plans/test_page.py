import random
import re

import pytest

from quantlab.plans.mixture import Plan, plan_within_budget
from quantlab.plans.options import Original
from quantlab.plans.page import (
    CURVE_FORMATS,
    TERMINAL_FORMATS,
    draw_curve,
    draw_strip,
    format_table,
    plan_answer,
    plan_sentences,
    plan_summary,
    render_page,
    tensor_table,
)
from quantlab.plans.problem import Problem, Request, build_problem
from quantlab.plans.runtimes import find_runtime
from quantlab.records.older import UNSIZED
from quantlab.report import plots
from quantlab.report.bar import Bar
from quantlab.report.texts import LANGUAGES, Texts
from tests.plans.samples import assigned, make, option, original, row, sweep, two

T = Texts("en")


def crowd():
    """A plan of 1,000 tensors, each in one of 40 formats."""
    rng, tensors, slots, chosen = random.Random(0), [], [], []
    for n in range(1000):
        tensor = Original(
            "file/gguf", f"blk.{n // 9}.part_{n % 9}.weight", "float16", (10, 10), 1600
        )
        figures = {"sqnr_db": 20.0, "max_err": 1.0}
        options = [
            option(
                assigned(
                    f"format {k}", 200 + 30 * k, 4.0**-k * rng.uniform(0.5, 1), tensor, figures
                )
            )
            for k in range(40)
        ]
        tensors.append(tensor)
        slots.append(options)
        chosen.append(rng.choice(options))
    return Plan(Problem(tensors, slots), chosen, 10**9)


@pytest.mark.slow
def test_the_page_of_a_thousand_tensors_is_one_small_file():
    html = render_page(crowd(), "quantlab plan", "0" * 64, T).decode()
    assert len(html) < 1e6
    assert html.count("<tr><td>blk.") == 1000
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_same_plan_gives_the_same_bytes_in_each_language(lang):
    pages = {
        render_page(
            make(budget=13_000),
            "c",
            "0" * 64,
            Texts(lang),
        )
        for _ in range(2)
    }
    assert len(pages) == 1
    assert f'lang="{lang}"'.encode() in pages.pop()


def test_no_name_is_taken_for_markup():
    rows = [each | {"tensor": f"<i>{each['tensor']}"} for each in two()]
    made = plan_within_budget(build_problem(sweep(rows), Request()), 13_000)
    html = render_page(made, "quantlab plan <b>", "0" * 64, T).decode()
    assert "&lt;i&gt;a.weight" in html
    assert "<i>" not in html
    assert "<b>" not in html


def test_the_terminal_says_what_the_plan_is():
    out = original("c", (5,), sha256=None, n_bytes=40, reason="why")
    empty = original("d", (0,), dtype="I64", sha256=None, n_bytes=0, reason="it is empty")
    tensors = [original("a.weight"), original("b.weight"), out, empty]
    failed = sweep(two(), tensors, failures={"run": "why"})
    failed = failed._replace(incomplete={"one": "a sentence", "other": "a sentence"})
    made = plan_within_budget(build_problem(failed, Request()), 13_320)
    text = plan_summary(made, T)
    assert text.startswith("a.weight as sym 4 bits, group 32; b.weight as sym 8 bits, channel (")
    assert re.search(r"The noise is 8\.\d+ times less than that of sym 4 bits, group 32", text)
    assert "One run failed or left no record that can be read" in text
    assert text.count("a sentence") == 1
    assert "2 tensors were not measured and stay as they are stored, 40 B: c, d." in text
    assert re.search(r"^int64 +1 ", text, re.MULTILINE)  # as many as the sentence has
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_sentences_tell_kinds_of_loss_apart():
    none = make(budget=10**9)
    assert list(plan_sentences(none, T)) == ["Nothing is lost."]
    weights = Request(weights={"a.weight": 0.0, "b.weight": 0.0})
    some = plan_within_budget(build_problem(sweep(two()), weights), 13_000)
    assert list(plan_sentences(some, T)) == ["No tensor that loses anything has a weight above 0."]
    same = make(budget=9_000)
    first, least, more = plan_sentences(same, T)
    assert first.startswith("The noise is that of sym 4 bits, group 32 for all,")
    assert least == "No mixture of at most this size has less noise."
    assert more.startswith("One kB more would lower the noise by up to 9")


def test_many_tensors_are_counted_and_the_bar_is_spoken_of():
    rows = [each | {"tensor": f"t{n}"} for n in range(7) for each in two()[3:]]
    made = make(rows, bar=Bar(sqnr_db=34.0))
    assert plan_answer(made, T).startswith("7 tensors in one format: 32 bits per value")
    assert next(iter(plan_sentences(made, T))).startswith(
        "Of 7 tensors no format tried meets the bar: t0, "
    )
    made = make(rows, bar=Bar(sqnr_db=30.0))
    assert list(plan_sentences(made, T)) == [
        "One format for all that meets the bar takes 8.25 bits per value: sym 8 bits, channel."
    ]
    made = make(rows, bar=Bar(sqnr_db=30.0), keep=[("t0", "sym 8 bits")])
    assert "What one tensor must have misses the bar: t0." in list(plan_sentences(made, T))


def test_formats_that_the_runtime_has_not_are_named():
    rows = [*two(size=6400), row("a.weight", "nf4, group 64", 4.5, 20.0)]
    tensors = [original(name, (100, 64)) for name in ("a.weight", "b.weight")]
    made = make(rows, 64_000, tensors, runtime=find_runtime("torchao"))
    said = "torchao does not have, and the plan does not use: sym 8 bits; nf4, group 64."
    assert said in list(plan_sentences(made, T))


def curve(made, t=T):
    with plots.plot_style():
        drawn = draw_curve(made, t)
    return drawn, [text.get_text() for text in drawn.legends[0].get_texts()]


def test_the_curve_has_the_front_the_formats_and_the_plan():
    drawn, legend = curve(make())
    assert legend == [
        T("plan_front"), "sym 4 bits, group 32", "sym 8 bits", "sym 8 bits, channel",
        T("plan_here"),
    ]  # fmt: skip
    (star,) = (line for line in drawn.axes[0].lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (
        make().total.bits / 2000,
        make().total.noise,
    )
    front = drawn.axes[0].lines[0]
    assert list(front.get_ydata()) == sorted(front.get_ydata(), reverse=True)
    assert front.get_ydata()[0] == make().front[0].noise


def test_of_many_formats_some_are_named():
    rows = [
        row(name, "mx/fp4", 4 + n / 4, 20.0 + n, mode=f"mx/{n}")
        for name in ("a", "b")
        for n in range(CURVE_FORMATS + 3)
    ]
    _, legend = curve(make(rows, 14_000))
    assert len(legend) == CURVE_FORMATS + 3
    assert T("plan_others") in legend


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("budget", [9_000, 13_000, 64_000])
def test_every_budget_can_be_drawn_in_every_language(budget, lang):
    html = render_page(make(budget=budget), "quantlab plan", "0" * 64, Texts(lang)).decode()
    assert f'lang="{lang}"' in html


def test_a_tensor_that_is_alone_or_of_no_values_can_be_drawn():
    rows = [each for each in two() if each["tensor"] == "a.weight"]
    empty = original("c", (0,), reason="empty")
    made = make(rows, 8000, [original("a.weight"), empty])
    with plots.plot_style():
        bars = draw_strip(made, T).axes[0].patches
    assert len(bars) == len(made.formats) == 2
    assert b"empty" in render_page(made, "quantlab plan", "0" * 64, T)


def test_a_bar_is_as_high_as_the_bits_of_its_tensor():
    made = make(budget=12_750)
    with plots.plot_style():
        bars = draw_strip(made, T).axes[0].patches
    heights = [list(each.get_data().values) for each in bars]
    assert [[h for h in row if h == h] for row in heights] == [[8.25], [4.5]]


@pytest.mark.parametrize("kept", ["float32", "sym 8 bits"])
def test_without_a_choice_there_is_still_a_page(kept):
    made = make(budget=64_000, keep=[("*", kept)])
    assert b"</html>" in render_page(made, "quantlab plan", "0" * 64, T)


def everything():
    """Plans that between them have every sentence."""
    rows = [*two(out_sqnr_db=30.0), row("c", "ggml/q4_k", 4.5, 20.0)]
    old = original("d", sha256=None, reason="why", **{**UNSIZED, "dtype": "unknown"})
    out = original("e", sha256=None, n_bytes=9, reason="why")
    tensors = [*map(original, ["a.weight", "b.weight", "c"]), old, out]
    found = sweep(rows, tensors, failures={"run": "no"})
    asked = Request(by="out_sqnr_db", runtime=find_runtime("torchao"))
    yield plan_within_budget(build_problem(found, asked), 60_000)
    yield plan_within_budget(
        build_problem(found, Request(weights=dict.fromkeys(["a.weight"], 0.0))), 10**6
    )
    for budget in (9_000, 13_000, 64_000):
        yield make(budget=budget)
    for bar in (Bar(sqnr_db=35.0), Bar(sqnr_db=20.0)):
        for keep in ((), [("b*", "sym 4 bits, group 32")]):
            yield make(keep=keep, bar=bar)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_has_the_words(lang):
    t, said = Texts(lang), set()
    for made in everything():
        text = plan_summary(made, t)
        assert "{" not in text
        assert plan_answer(made, t) in text
        said |= set(plan_sentences(made, t))
    assert len(said) > 12


def test_a_row_says_what_a_tensor_costs_and_adds():
    out = original("c", (5,), sha256=None, n_bytes=20, reason="int32 is no float", dtype="int32")
    made = make(tensors=[*map(original, ["a.weight", "b.weight"]), out], budget=13_000)
    assert tensor_table(made, T).rows == [
        ["a.weight", "sym 4 bits, group 32", "4.5", "562 B", "19.00", "96.2%", "–"],
        ["b.weight", "sym 8 bits, channel", "8.25", "1.03 kB", "33.00", "3.83%", "–"],
        ["c", "int32", "32", "20 B", "exact", "0%", "int32 is no float"],
    ]
    assert format_table(made, T).rows[2] == ["sym 4 bits, group 32", "1", "4.5", "562 B", "96.2%"]


def test_names_play_no_tricks_on_a_terminal():
    rows = [each | {"tensor": each["tensor"] + "\x1b[31m\n"} for each in two()]
    text = plan_summary(make(rows), T)
    assert "\x1b" not in text
    assert r"a.weight\x1b[31m\n as sym 4 bits, group 32; " in text


def test_a_terminal_is_given_no_more_formats_than_it_bears():
    rows = [
        each | {"tensor": f"t{n}", "mode": f"mode{n}", "format": f"mode{n}"}
        for n in range(TERMINAL_FORMATS + 9)
        for each in two()
    ]
    made = make(rows, budget=4500 * (TERMINAL_FORMATS + 9) + 9000)
    lines = plan_summary(made, T).splitlines()
    assert sum(line.startswith("mode") for line in lines) == TERMINAL_FORMATS


def test_one_format_for_all_has_never_less_noise_than_the_plan():
    rows = [*two(), row("c", "sym 8 bits", 8, 30.0)]
    for kept in ("sym 4 bits, group 32", "sym 8 bits"):
        for budget in range(21_000, 70_000, 7_000):
            made = make(rows, budget=budget, keep=[("b*", kept)])
            best = made.best_uniform
            assert best is None or best.noise >= made.total.noise * (1 - 1e-9)


def test_the_gap_of_tensors_that_go_together_is_no_rounding():
    rows = [
        row(f"t{n}", form, bits, sqnr_db + n / 7)
        for n in range(9)
        for form, bits, sqnr_db in (("sym 4 bits, group 32", 4.5, 19.0), ("sym 8 bits", 8.0, 36.0))
    ]
    made = make(rows, 9 * 4500, same=["t*"])
    assert T("plan_least") in list(plan_sentences(made, T))
    assert not any("e-" in each for each in plan_sentences(made, T))
