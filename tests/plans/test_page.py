import random
import re

import pytest

from quantlab.plans.choose import meeting, within_budget
from quantlab.plans.mixture import Plan
from quantlab.plans.options import Part, Slot, option
from quantlab.plans.originals import Original
from quantlab.plans.page import page
from quantlab.plans.sentences import answer, sentences
from quantlab.plans.slots import Request, Slots, find_slots
from quantlab.plans.summary import plan_summary
from quantlab.report.bar import Bar
from quantlab.report.texts import LANGUAGES, Texts
from tests.plans.samples import original, row, sweep, two

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
            option(Part(200 + 30 * k, 4.0**-k * rng.uniform(0.5, 1), f"format {k}", figures))
            for k in range(40)
        ]
        tensors.append(tensor)
        slots.append(Slot((tensor,), tuple(options)))
        chosen.append(rng.choice(options))
    return Plan(Slots(tensors, slots, [], []), chosen, 10**9)


def test_the_page_of_a_thousand_tensors_is_one_small_file():
    html = page(crowd(), "quantlab plan", "0" * 64, T).decode()
    assert len(html) < 1e6
    assert html.count("<tr><td>blk.") == 1000
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_same_plan_gives_the_same_bytes_in_each_language(lang):
    pages = {
        page(within_budget(find_slots(sweep(two()), Request()), 13_000), "c", "0" * 64, Texts(lang))
        for _ in range(2)
    }
    assert len(pages) == 1
    assert f'lang="{lang}"'.encode() in pages.pop()


def test_no_name_is_taken_for_markup():
    rows = [each | {"tensor": f"<i>{each['tensor']}"} for each in two()]
    made = within_budget(find_slots(sweep(rows), Request()), 13_000)
    html = page(made, "quantlab plan <b>", "0" * 64, T).decode()
    assert "&lt;i&gt;a.weight" in html
    assert "<i>" not in html
    assert "<b>" not in html


def test_the_terminal_says_what_the_plan_is():
    out = original("c", (5,), sha256=None, n_bytes=40, reason="why")
    tensors = [original("a.weight"), original("b.weight"), out]
    failed = sweep(two(), tensors, failures={"run": "why"})
    made = within_budget(find_slots(failed, Request()), 13_320)
    text = plan_summary(made, [], None, T)
    assert text.startswith("a.weight as sym 4 bits, group 32; b.weight as sym 8 bits, channel (")
    assert re.search(r"The noise is 8\.\d+ times less than that of sym 4 bits, group 32", text)
    assert "One run failed or left no record that can be read" in text
    assert "One tensor was not measured and stays as it is stored, 40 B: c." in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_sentences_tell_kinds_of_loss_apart():
    none = within_budget(find_slots(sweep(two()), Request()), 10**9)
    assert list(sentences(none, T)) == ["Nothing is lost."]
    weights = Request(weights={"a.weight": 0.0, "b.weight": 0.0})
    some = within_budget(find_slots(sweep(two()), weights), 13_000)
    assert list(sentences(some, T)) == ["No tensor that loses anything has a weight above 0."]
    same = within_budget(find_slots(sweep(two()), Request()), 9_000)
    first, least, more = sentences(same, T)
    assert first.startswith("The noise is that of sym 4 bits, group 32 for all,")
    assert least == "No mixture of at most this size has less noise."
    assert more.startswith("One kB more would lower the noise by up to 9")


def test_many_tensors_are_counted_and_the_bar_is_spoken_of():
    rows = [each | {"tensor": f"t{n}"} for n in range(7) for each in two()[3:]]
    made = meeting(find_slots(sweep(rows), Request()), Bar(sqnr_db=34.0))
    assert answer(made, T).startswith("7 tensors in one format: 32 bits per value")
    assert next(iter(sentences(made, T))).startswith(
        "Of 7 tensors no format tried meets the bar: t0, "
    )
    made = meeting(find_slots(sweep(rows), Request()), Bar(sqnr_db=30.0))
    assert list(sentences(made, T)) == [
        "One format for all that meets the bar takes 8.25 bits per value: sym 8 bits, channel."
    ]
    only = Request(keep=[("t0", "sym 8 bits")])
    made = meeting(find_slots(sweep(rows), only), Bar(sqnr_db=30.0))
    assert "What one tensor must have misses the bar: t0." in list(sentences(made, T))


def test_formats_that_the_runtime_has_not_are_named():
    from quantlab.plans.runtimes.registry import runtime

    rows = [*two(size=6400), row("a.weight", "nf4, group 64", 4.5, 20.0)]
    made = within_budget(find_slots(sweep(rows), Request(runtime=runtime("torchao"))), 64_000)
    said = "The runtime does not have, and the plan does not use: sym 8 bits; nf4, group 64."
    assert said in list(sentences(made, T))
