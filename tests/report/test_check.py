from pathlib import Path

import pytest
from hypothesis import assume, given

from quantlab.plans.mixture import make_plan
from quantlab.plans.request import Request
from quantlab.records.table import Aggregated
from quantlab.report.bar import Bar
from quantlab.report.check import check
from quantlab.report.format_name import format_name
from quantlab.report.tensor_verdict import tensor_verdicts
from quantlab.report.texts import LANGUAGES, Texts
from tests.report.test_storage import LEVELS, SQNR, some, stored
from tests.report.test_tensor_verdict import ROWS

T = Texts("en")
SIZE = 4  # values; the bits of a row drawn are then whole


def sweep(rows, levels=LEVELS, failures=(), directory="sweep", **change):
    """What a sweep of some rows holds; of each source and name there is one tensor."""
    names = dict.fromkeys((each["dist"], each["tensor"]) for each in rows)
    known = {"dtype": "float32", "shape": [SIZE], "sha256": "0" * 64}
    tensors = [known | {"dist": dist, "name": name} | change for dist, name in names]
    return Aggregated(Path(directory), rows, list(levels), tensors, dict(failures), "0" * 64)


def missing(rows=(), **change):
    return [*rows, stored("nf4", 4, 4.5, 12.0, tensor="poor", **change)]


def test_a_sweep_that_meets_the_bar_is_one_line():
    assert check(sweep(some()), SQNR, T) == (
        True,
        ["check passed: the tensor meets the bar (SQNR ≥ 30 dB)"],
    )


def test_each_tensor_that_misses_is_a_line_and_the_last_sums_up():
    passed, lines = check(sweep(missing(some())), Bar(top_order=None), T)
    assert not passed
    assert lines == [
        "poor: no format tried meets the bar; in the nearest, nf4, the SQNR is 12 dB (limit 30 dB)",
        "check failed: 1 of 2 tensors miss the bar (rel_err ≤ 1%; SQNR ≥ 30 dB)",
    ]


def test_a_run_that_failed_fails_the_check():
    failures = {"a": "no disk", "b": "no disk", "c": "no tensor"}
    passed, lines = check(sweep(some(), failures=failures), SQNR, T)
    assert not passed
    assert lines[:2] == ["a and one more run failed: no disk", "c failed: no tensor"]
    assert lines[-1].startswith("check failed: 0 of 1 tensors miss the bar (SQNR ≥ 30 dB); 3 runs")
    assert not check(sweep([], failures={"a": "no"}), SQNR, T)[0]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_has_the_words(lang):
    t = Texts(lang)
    texts = [
        *check(sweep(some()), SQNR, t)[1],
        *check(sweep(missing(), failures={"a": "no"}), Bar(), t)[1],
    ]
    assert len(texts) == 4
    assert not any("{" in each for each in texts)


def named(row):
    """A row with the columns of its format."""
    return row | {"settings": None, "format": format_name(row)}


@given(ROWS)
def test_the_verdict_the_check_and_the_plan_agree_on_every_tensor(rows):
    bar = Bar()
    rows = [named(each | {"n_elements": SIZE}) for each in rows]
    assume(len({each["n_bits"] for each in rows}) > 1)
    found = sweep(rows)
    judged = {each.tensor: each for each in tensor_verdicts(found.rows, found.levels, bar)}
    plan = make_plan(found, Request(bar=bar))
    passed, lines = check(found, bar, T)
    failing = [name for name, each in judged.items() if not each.meets]
    assert passed == (not failing)
    assert [line.split(":")[0] for line in lines[:-1]] == failing
    assert plan.unmet == failing
    for each in plan.assignments:
        if each.row:
            assert each.format == judged[each.tensor.name].format
        else:
            assert each.tensor.name in failing  # 10 bits at most are less than those of float32


def test_they_agree_on_a_tensor_whose_every_format_lost_it_all():
    rows = [
        named(stored("symmetric", n, float(n), None, max_err=1.0, n_elements=SIZE)) for n in (4, 8)
    ]
    assert not check(sweep(rows), SQNR, T)[0]
    assert make_plan(sweep(rows), Request(bar=SQNR)).unmet == ["verb_probs"]
