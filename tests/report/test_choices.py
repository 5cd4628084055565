import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quantlab.plans.plan import make_plan
from quantlab.plans.problem import Request
from quantlab.report.bar import Bar
from quantlab.report.choices import (
    FormatPoint,
    count_cheapest,
    find_choices,
    find_shrinkage,
    format_points,
    has_formats,
    pareto_front,
    row_name,
    storage_front,
    tensor_levels,
)
from quantlab.report.sentences import sentences
from quantlab.report.texts import Texts
from tests.report.samples import (
    FILE_ROWS,
    FORMAT_LEVELS,
    LEVELS,
    ROWS,
    SIZE,
    SQNR,
    choices_of,
    files_of,
    judged,
    row,
    some,
    storage_of,
    stored,
    stored_tensor,
    sweep,
    widths_of,
)

T = Texts("en")


def test_two_widths_of_a_mode_of_one_s_own_are_two_formats():
    rows = [
        stored("power_of_two", n, float(n), 6.0 * n, tensor="w")
        | {"format": f"power_of_two {n} bits"}
        for n in (4, 8)
    ]
    (choice,) = choices_of(rows)
    assert [result.name for result in choice.formats] == [
        "power_of_two 4 bits",
        "power_of_two 8 bits",
    ]
    assert choice.best.name == "power_of_two 8 bits"
    points = format_points(storage_of([*rows, stored("nf4", 4, 4.5, 20.0, tensor="w")]))
    assert [point.name for point in points] == ["power_of_two 4 bits", "nf4", "power_of_two 8 bits"]


def test_formats_of_one_name_stay_apart_by_their_settings():
    rows = [
        stored("symmetric", 8, 8.0, 40.0 - p, settings={"range.p": p}) | {"format": "sym 8 bits"}
        for p in (1, 2)
    ]
    (choice,) = choices_of(rows)
    assert len(choice.formats) == len(format_points([choice])) == 2


def test_each_row_is_judged_by_the_bar_of_its_run():
    rows = [stored("nf4", 4, 4.5, 25.0, tensor=name) for name in "ab"]
    rows[0] |= Bar(top_order=None, rel_err=None, sqnr_db=20.0).columns()
    rows[1] |= SQNR.columns()
    assert [choice.meets for choice in find_choices(rows, FORMAT_LEVELS)] == [True, False]


def test_a_tensor_that_float32_turned_to_zeros_meets_no_bar():
    zeros = {"x_min": 0.0, "x_max": 0.0, "max_err": 0.0, "rel_err": None}
    (choice,) = choices_of([stored("nf4", 4, 4.5, None, underflowed=3, **zeros)], bar=Bar())
    assert choice.best.missed == ["top_order", "rel_err", "sqnr_db"]
    (choice,) = choices_of([stored("nf4", 4, 4.5, None, underflowed=0, **zeros)])
    assert choice.meets  # zeros that are zeros


def test_the_cheapest_is_the_one_of_fewest_bits_that_meets_the_bar():
    (one,) = storage_of(some(), FORMAT_LEVELS, SQNR)
    best = one.cheapest
    assert (best.bits, best.sqnr_db, best.name) == (
        8.01,
        34.0,
        "sym 8 bits",
    )  # of as many bits the better
    assert [each.name for each in one.formats if each.meets] == [
        "sym 8 bits", "fp8_e4m3", "sym 8 bits, group 32",
    ]  # fmt: skip
    (none,) = storage_of(some(), FORMAT_LEVELS, Bar(sqnr_db=50.0))
    assert none.cheapest is None


def test_a_file_shrinks_to_the_least_format_in_which_all_tensors_meet_the_bar():
    def tensor(name, n, **change):
        return some(tensor=name, n_elements=n, dtype="bfloat16", **change)

    rows = judged(
        [*tensor("a", 64), *tensor("b", 32)], Bar(top_order=None, rel_err=None, sqnr_db=20.0)
    )
    shrinkage = find_shrinkage(rows)
    assert (shrinkage.spec.name, shrinkage.before) == ("nf4, group 32", 96 * 16)
    assert shrinkage.after == 96 * 4.5
    missing = [row for row in rows if (row["mode"], row["tensor"]) != ("nf4", "b")]
    assert find_shrinkage(missing).after == pytest.approx(96 * 8.01)
    assert find_shrinkage(judged(rows, Bar(top_order=None, rel_err=None, sqnr_db=50.0))) is None
    assert find_shrinkage([row | {"dtype": "int8"} for row in rows]) is None
    twice = [row | {"tensor": "a"} if row["tensor"] == "b" else row for row in rows]
    assert find_shrinkage([*twice, rows[-1] | {"sqnr_db": 0.0}]) is None


def test_a_file_that_shrinks_alike_in_two_formats_is_named_by_the_first():
    rows = judged(some(tensor="a", n_elements=64, dtype="float32"), SQNR)
    others = [row | {"settings": '{"x": 1}'} for row in rows]
    assert find_shrinkage([*rows, *others]) == find_shrinkage(rows)


def test_what_was_hardly_compared_has_no_size():
    row = stored_tensor("a", 60.0, dtype="Q4_K") | {"dtype": "float32", "coverage": 0.5}
    bar = Bar(top_order=None, rel_err=None, sqnr_db=30.0, coverage=0.9)
    assert find_shrinkage(judged([row], bar)) is None
    assert find_shrinkage(judged([row | {"coverage": 0.95}], bar)).n_tensors == 1


def test_of_equals_the_first_by_name_is_taken():
    rows = [stored("log", 4, 4.5, 40.0), stored("fp4", 4, 4.5, 40.0)]
    (one,) = storage_of(rows, FORMAT_LEVELS, SQNR)
    assert one.cheapest.name == "fp4"
    assert [each.name for each in storage_front(format_points([one]))] == ["fp4"]


def test_all_of_the_bar_decides_and_not_the_sqnr_alone():
    rows = [stored("nf4", 4, 4.5, 40.0, top_merged=1), stored("log", 8, 8.1, 35.0)]
    (one,) = storage_of(rows, FORMAT_LEVELS, Bar())
    assert one.cheapest.name == "log 8 bits"


def test_tensors_stand_apart_by_all_that_is_no_format_the_dearest_first():
    rows = [each | {"seed": seed} for seed in (1, 2) for each in some()]
    rows += [each | {"seed": 3} for each in some()[:1] + some()[3:4]]
    found = storage_of(rows, [*FORMAT_LEVELS, "seed"], SQNR)
    assert [each.name for each in found] == [
        "verb_probs, seed=3", "verb_probs, seed=1", "verb_probs, seed=2",
    ]  # fmt: skip
    assert [len(each.formats) for each in found] == [2, 5, 5]


def test_there_is_nothing_to_choose_among_plain_widths():
    plain = [
        stored(mode, n, n + 0.1, 6.0 * n) for mode in ("symmetric", "asymmetric") for n in (4, 8)
    ]
    assert storage_of(plain, FORMAT_LEVELS, SQNR) == []
    assert storage_of([stored("nf4", 4, 4.5, 20.0)], FORMAT_LEVELS, SQNR) == []
    assert storage_of([row(4), row(8)], LEVELS, SQNR) == []
    assert len(storage_of([*plain, stored("nf4", 4, 4.5, 20.0)], FORMAT_LEVELS, SQNR)) == 1


def test_a_row_of_an_older_version_does_not_say_what_it_costs():
    rows = [*some(), row(6), stored("log", 6, None, 33.0)]
    (one,) = storage_of(rows, FORMAT_LEVELS, SQNR)
    assert len(one.formats) == 5


def test_an_exact_round_trip_is_beaten_by_none():
    rows = [*some(), stored("log", 16, 16.0, None, max_err=0)]
    (one,) = storage_of(rows, FORMAT_LEVELS, SQNR)
    best = storage_front(format_points([one]))[-1]
    assert (best.name, best.sqnr_db, best.is_exact) == ("log 16 bits", math.inf, True)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(items):
    front = pareto_front(items, lambda item: item)
    for item in items:
        beaten = any(
            other[0] <= item[0] and other[1] <= item[1] and other != item for other in items
        )
        assert beaten == (item not in front)
    assert [bits for bits, _ in front] == sorted({bits for bits, _ in front})


def test_a_front_leaves_out_what_is_infinitely_worse():
    assert pareto_front([(4, math.inf), (5, -math.inf), (6, -math.inf)], lambda item: item) == [
        (5, -math.inf)
    ]


def test_of_many_tensors_a_format_is_where_its_medians_are():
    rows = [
        stored("nf4", 4, bits, sqnr, tensor=str(n))
        for n, (bits, sqnr) in enumerate([(4.5, 20.0), (4.6, 10.0), (4.7, 30.0)])
    ]
    rows.append(stored("log", 4, 4.2, 9.0, tensor="0"))
    found = storage_of(rows, [*FORMAT_LEVELS, "tensor"], SQNR)
    assert format_points(found) == [
        FormatPoint(4.2, 9.0, "log 4 bits"), FormatPoint(4.6, 20.0, "nf4"),
    ]  # fmt: skip


def test_a_source_counts_what_its_tensors_need():
    rows = [each for name in "abc" for each in some(dist="file", tensor=name)]
    rows += [each | {"sqnr_db": 31.0} for each in some(dist="file", tensor="d")]
    rows += [each | {"sqnr_db": 1.0} for each in some(dist="other", tensor="e")]
    found = storage_of(rows, [*FORMAT_LEVELS, "tensor"], SQNR)
    assert [choice.source for choice in found] == ["other", *["file"] * 4]
    assert count_cheapest(found[:1]) == []
    assert count_cheapest(found[1:]) == [("sym 8 bits", 3), ("sym 4 bits", 1)]


@given(st.dictionaries(st.integers(2, 16), st.booleans(), min_size=1))
def test_the_fewest_bits_are_the_least_width_that_meets_the_bar(meets):
    (one,) = widths_of([row(n, rel_err=0.001 if good else 0.5) for n, good in meets.items()])
    assert one.bits == min((n for n, good in meets.items() if good), default=None)
    (said,) = sentences([one], LEVELS, T)
    failing = [n for n, good in sorted(meets.items()) if one.bits and n > one.bits and not good]
    assert ("the wider" in said) == bool(failing)
    assert ("none of the widths tried" in said or "do not meet" in said) == (one.bits is None)


def test_each_criterion_has_its_own_fewest_bits():
    (one,) = widths_of([row(4, top_merged=1, rel_err=0.5), row(6, rel_err=0.5), row(8)])
    assert one.bits == 8
    assert [one.fewest_bits([key]) for key in one.bar.criteria] == [6, 8, 4]


def test_the_worst_come_first():
    good, fair, poor = row(8, mode="a"), row(8, mode="b", rel_err=0.02), row(8, mode="c")
    found = widths_of([good, fair | {"sqnr_db": 40.0}, poor | {"sqnr_db": 10.0}])
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


def test_the_cheapest_format_that_meets_the_bar_is_named():
    (one,) = choices_of(some())
    assert (one.meets, one.best.name, one.best.row["bits_per_value"]) == (True, "sym 8 bits", 8.01)
    assert choices_of(list(reversed(some()))) == [one]


def test_of_as_many_bits_the_better_is_taken_and_of_equals_the_first_by_name():
    worse, better = stored("log", 4, 4.5, 40.0), stored("nf4", 4, 4.5, 41.0)
    assert choices_of([worse, better])[0].best.name == "nf4"
    assert choices_of([better | {"sqnr_db": 40.0}, worse])[0].best.name == "log 4 bits"
    assert choices_of([worse, better | {"sqnr_db": None, "max_err": 0.0}])[0].best.name == "nf4"


def test_a_format_of_unknown_cost_is_taken_last():
    rows = [stored("log", 4, None, 60.0), stored("symmetric", 8, 8.0, 31.0)]
    assert choices_of(rows)[0].best.name == "sym 8 bits"
    assert choices_of(rows[:1])[0].meets


def test_the_nearest_misses_the_fewest_criteria_then_is_the_best():
    rows = [
        stored("log", 8, 8.0, 25.0, rel_err=0.5),
        stored("nf4", 4, 4.0, 20.0),
        stored("symmetric", 8, 9.0, 22.0),
        stored("symmetric", 7, 7.0, 22.0),
    ]
    (one,) = choices_of(rows, bar=Bar())
    assert (one.meets, one.best.missed, one.best.name) == (False, ["sqnr_db"], "sym 7 bits")


def test_without_an_sqnr_what_lost_something_misses_and_what_lost_nothing_meets():
    (lost,) = choices_of([stored("nf4", 4, 4.0, None, max_err=0.1)])
    (kept,) = choices_of([stored("nf4", 4, 4.0, None, max_err=0.0)])
    assert (lost.best.missed, kept.best.missed) == (["sqnr_db"], [])


def test_tensors_stand_apart_by_source_name_and_all_that_is_no_format():
    levels = ["dist", "mode", "n_bits", "tensor", "block", "range.p", "seed"]
    assert tensor_levels(levels) == ["dist", "tensor", "seed"]
    rows = [stored("nf4", 4, 4.0, 9.0, seed=n, dist=dist) for n in (1, 2) for dist in "ab"]
    rows = [each | {"range.p": None} for each in rows]
    found = choices_of(rows, levels)
    assert [(each.dist, each.settings) for each in found] == [
        (dist, {"seed": n}) for n in (1, 2) for dist in "ab"
    ]
    assert found[0].name == "verb_probs, seed=1"
    (odd,) = choices_of([stored("nf4", 4, 4.0, 9.0, tensor="w\n\x1b")])
    assert odd.name.isprintable()


@given(ROWS)
def test_no_row_beats_the_one_of_the_verdict(rows):
    bar = Bar()
    for each in choices_of(rows, bar=bar):
        own = [row for row in rows if row["tensor"] == each.tensor]
        good = [row["bits_per_value"] for row in own if not bar.missed(row)]
        assert each.meets == bool(good)
        assert each.best.missed == bar.missed(each.best.row)
        if good:
            assert each.best.row["bits_per_value"] == min(good)
        else:
            assert len(each.best.missed) == min(len(bar.missed(row)) for row in own)
    assert [each.tensor for each in choices_of(rows)] == list(
        dict.fromkeys(r["tensor"] for r in rows)
    )


def test_formats_are_there_where_a_row_is_not_plain_and_has_a_cost():
    assert not has_formats([stored("symmetric", 4, 4.0, 9.0), row(4, mode="nf4")])
    assert has_formats([row(4), stored("nf4", 4, 4.5, 9.0)])


@given(ROWS)
def test_the_choice_and_the_plan_agree_on_every_tensor(rows):
    rows = judged(row | {"n_elements": SIZE} for row in rows)
    assume(len({row["n_bits"] for row in rows}) > 1)
    choices = {choice.tensor: choice for choice in find_choices(rows, FORMAT_LEVELS)}
    plan = make_plan(sweep(rows), Request(bar=Bar()))
    failing = [name for name, choice in choices.items() if not choice.meets]
    assert plan.unmet == failing
    for assignment in plan.assignments:
        if assignment.row:
            assert assignment.format == choices[assignment.tensor.name].best.name
        else:
            assert assignment.tensor.name in failing  # 10 bits at most are less than float32 has


def test_they_agree_on_a_tensor_whose_every_format_lost_it_all():
    rows = [stored("symmetric", n, float(n), None, max_err=1.0, n_elements=SIZE) for n in (4, 8)]
    assert not choices_of(rows)[0].meets
    assert make_plan(sweep(rows), Request(bar=SQNR)).unmet == ["verb_probs"]


def test_sizes_are_those_of_all_values_and_not_of_tensors():
    (file,) = files_of(FILE_ROWS)
    assert file.n_bytes == (4500 + 4500 + 6562.5 + 256) / 8
    assert file.bits_per_value == pytest.approx(15818.5 / 3008)
    assert [each["tensor"] for each in file.rows] == ["b", "a", "c", "norm"]  # the worst first


def test_only_rows_of_files_count():
    plain = row(8)
    assert files_of([plain, row(4, stored_file=None)]) == []
    (file,) = files_of([plain, *FILE_ROWS])
    assert len(file.rows) == 4
