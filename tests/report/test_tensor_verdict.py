import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.report.bar import Bar
from quantlab.report.tensor_verdict import (
    NAME,
    read_verdict,
    tensor_levels,
    tensor_verdicts,
    verdict_json,
)
from tests.report.test_storage import GROUP, LEVELS, SQNR, some, stored
from tests.report.test_verdict import row

FIGURES = st.fixed_dictionaries(
    {
        "n_bits": st.integers(2, 8),
        "bits": st.integers(2, 40).map(lambda n: n / 4),
        "sqnr_db": st.one_of(st.none(), st.floats(20, 40)),
        "rel_err": st.floats(0.001, 0.02),
        "top_order_kept": st.booleans(),
    }
)


def made(tensor, figures):
    """A row of drawn figures; without an SQNR nothing was lost."""
    exact = {"max_err": 0.0, "rel_err": 0.0} if figures["sqnr_db"] is None else {}
    return stored("symmetric", tensor=tensor, **figures | exact)


ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), FIGURES),
    min_size=1,
    max_size=12,
    unique_by=lambda each: (each[0], each[1]["n_bits"]),
).map(lambda drawn: [made(*each) for each in drawn])


def judge(rows, levels=LEVELS, bar=SQNR):
    return tensor_verdicts(rows, levels, bar)


def test_the_cheapest_format_that_meets_the_bar_is_named():
    (one,) = judge(some())
    assert (one.meets, one.format, one.row["bits_per_value"]) == (True, "sym 8 bits", 8.01)
    assert judge(list(reversed(some()))) == [one]


def test_of_as_many_bits_the_better_is_taken_and_of_equals_the_first_by_name():
    worse, better = stored("log", 4, 4.5, 40.0), stored("nf4", 4, 4.5, 41.0)
    assert judge([worse, better])[0].format == "nf4"
    assert judge([better | {"sqnr_db": 40.0}, worse])[0].format == "log 4 bits"
    assert judge([worse, better | {"sqnr_db": None, "max_err": 0.0}])[0].format == "nf4"


def test_a_format_of_unknown_cost_is_taken_last():
    rows = [stored("log", 4, None, 60.0), stored("symmetric", 8, 8.0, 31.0)]
    assert judge(rows)[0].format == "sym 8 bits"
    assert judge(rows[:1])[0].meets


def test_the_nearest_misses_the_fewest_criteria_then_is_the_best():
    rows = [
        stored("log", 8, 8.0, 25.0, rel_err=0.5),
        stored("nf4", 4, 4.0, 20.0),
        stored("symmetric", 8, 9.0, 22.0),
        stored("symmetric", 7, 7.0, 22.0),
    ]
    (one,) = judge(rows, bar=Bar())
    assert (one.meets, one.missed, one.format) == (False, ["sqnr_db"], "sym 7 bits")


def test_without_an_sqnr_what_lost_something_misses_and_what_lost_nothing_meets():
    (lost,) = judge([stored("nf4", 4, 4.0, None, max_err=0.1)])
    (kept,) = judge([stored("nf4", 4, 4.0, None, max_err=0.0)])
    assert (lost.missed, kept.missed) == (["sqnr_db"], [])


def test_tensors_stand_apart_by_source_name_and_all_that_is_no_format():
    levels = ["dist", "mode", "n_bits", "tensor", "block", "range.p", "seed"]
    assert tensor_levels(levels) == ["dist", "tensor", "seed"]
    rows = [stored("nf4", 4, 4.0, 9.0, seed=n, dist=dist) for n in (1, 2) for dist in "ab"]
    rows = [each | {"range.p": None} for each in rows]
    found = judge(rows, levels)
    assert [(each.dist, each.settings) for each in found] == [
        (dist, {"seed": n}) for n in (1, 2) for dist in "ab"
    ]
    assert found[0].name == "verb_probs, seed=1"
    (odd,) = judge([stored("nf4", 4, 4.0, 9.0, tensor="w\n\x1b")])
    assert odd.name.isprintable()


@given(ROWS)
def test_no_row_beats_the_one_of_the_verdict(rows):
    bar = Bar()
    for each in judge(rows, bar=bar):
        own = [row for row in rows if row["tensor"] == each.tensor]
        good = [row["bits_per_value"] for row in own if not bar.missed(row)]
        assert each.meets == bool(good)
        assert each.missed == bar.missed(each.row)
        if good:
            assert each.row["bits_per_value"] == min(good)
        else:
            assert len(each.missed) == min(len(bar.missed(row)) for row in own)
    assert [each.tensor for each in judge(rows)] == list(dict.fromkeys(r["tensor"] for r in rows))


def test_the_file_says_all_of_it():
    rows = [*some(tensor="a"), stored("nf4", 4, 4.5, 20.0, tensor="b", **GROUP)]
    content = json.loads(verdict_json(judge(rows), SQNR, {}))
    assert content["bar"] == {"top_order": None, "rel_err": None, "sqnr_db": 30.0}
    assert (content["meets"], content["failures"]) == (False, {})
    assert content["tensors"] == [
        {
            "dist": "verb_probs", "tensor": "a", "meets": True, "missed": [],
            "format": "sym 8 bits", "mode": "symmetric", "n_bits": 8, "bits_per_value": 8.01,
            "sqnr_db": 34.0, "rel_err": 0.001,
        },
        {
            "dist": "verb_probs", "tensor": "b", "meets": False, "missed": ["sqnr_db"],
            "format": "nf4, group 32", "mode": "nf4", "n_bits": 4, "bits_per_value": 4.5,
            "sqnr_db": 20.0, "rel_err": 0.001,
        },
    ]  # fmt: skip


def test_a_run_that_failed_fails_the_whole():
    good = judge([row(8)], ["dist", "mode", "n_bits"])
    assert json.loads(verdict_json(good, SQNR, {}))["meets"] is True
    assert json.loads(verdict_json(good, SQNR, {"run": "no"}))["meets"] is False


def test_30_and_30_0_are_one_bar():
    assert verdict_json([], Bar(sqnr_db=30), {}) == verdict_json([], Bar(sqnr_db=30.0), {})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"bar": 1, "tensors": []}', '{"bar": {}, "tensors": {}}']
)
def test_what_is_no_verdict_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=r"verdict\.json does not exist: quantlab aggregate "):
        read_verdict(tmp_path)
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ValueError, match=r"verdict\.json is no verdict: quantlab aggregate .* aga"):
        read_verdict(tmp_path)
