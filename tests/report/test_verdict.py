from hypothesis import given
from hypothesis import strategies as st

from quantlab.report.bar import Bar
from quantlab.report.sentences import sentences
from quantlab.report.texts import Texts
from quantlab.report.verdict import row_name, verdicts

T = Texts("en")
LEVELS = ["dist", "mode", "n_bits"]


def row(n_bits, **change):
    """The figures of a width that meets the bar, but for what is changed."""
    figures = {
        "dist": "verb_probs",
        "mode": "symmetric",
        "tensor": "verb_probs",
        "n_bits": n_bits,
        "top_k": 10,
        "top_merged": 0,
        "top_swapped": 0,
        "top_worst": 1.0,
        "top_best": 1.0,
        "rel_err": 0.001,
        "sqnr_db": 50.0,
        "max_err": 0.1,
        "zeroed": 0.0,
    } | change
    lost = figures["top_merged"] or figures["top_swapped"] or figures["top_worst"] < 1
    return {"top_order_kept": not lost} | figures


def judge(*rows, levels=LEVELS, bar=None):
    return verdicts(rows, levels, bar or Bar())


@given(st.dictionaries(st.integers(2, 16), st.booleans(), min_size=1))
def test_the_fewest_bits_are_the_least_width_that_meets_the_bar(meets):
    (one,) = judge(*(row(n, rel_err=0.001 if good else 0.5) for n, good in meets.items()))
    assert one.bits == min((n for n, good in meets.items() if good), default=None)
    (said,) = sentences([one], LEVELS, T)
    failing = [n for n, good in sorted(meets.items()) if one.bits and n > one.bits and not good]
    assert ("the wider" in said) == bool(failing)
    assert ("none of the widths tried" in said or "do not meet" in said) == (one.bits is None)


def test_each_criterion_has_its_own_fewest_bits():
    (one,) = judge(row(4, top_merged=1, rel_err=0.5), row(6, rel_err=0.5), row(8))
    assert one.bits == 8
    assert [one.fewest([key]) for key in one.bar.criteria] == [6, 8, 4]


def test_the_worst_come_first():
    good, fair, poor = row(8, mode="a"), row(8, mode="b", rel_err=0.02), row(8, mode="c")
    found = judge(good, fair | {"sqnr_db": 40.0}, poor | {"sqnr_db": 10.0})
    assert [each.rows[0]["mode"] for each in found] == ["c", "b", "a"]


def test_a_name_says_what_was_swept():
    one = row(8, seed=3) | {"mode.zero_point": "clip", "dist.batch": None, "tensor": "w"}
    levels = ["dist", "mode", "n_bits", "dist.batch", "mode.zero_point", "seed"]
    assert row_name(one, levels) == "w, symmetric, dist.batch=null, mode.zero_point=clip, seed=3"
    assert row_name(one, LEVELS, run=True) == "verb_probs, symmetric"


def test_a_name_says_how_a_format_differs_where_formats_differ():
    one = row(4, tensor="w", mode="symmetric", block="group", block_size=32, seed=3)
    one |= {"scale_dtype": "float16", "range": "absmax"}
    levels = [*LEVELS, "block", "block_size", "scale_dtype", "range", "seed"]
    assert row_name(one, levels) == "w, symmetric, group 32, float16, seed=3"
    assert row_name(one | {"block": "tensor", "block_size": None}, levels) == (
        "w, symmetric, float16, seed=3"
    )
    assert row_name(one, [*LEVELS, "block_size"], run=True) == "verb_probs, symmetric, group 32"
