import math

from hypothesis import given
from hypothesis import strategies as st

from quantlab.report.bar import Bar
from quantlab.report.findings import Findings
from quantlab.report.storage import Offer, choices, front, medians, tensor_formats
from quantlab.report.verdict import verdicts
from tests.report.test_verdict import row

LEVELS = ["dist", "mode", "n_bits", "block", "block_size"]
SQNR = Bar(top_order=None, rel_err=None)
GROUP = {"block": "group", "block_size": 32}


def stored(mode, n_bits, bits, sqnr_db, **change):
    """A row of a sweep of formats."""
    plain = {"block": "tensor", "block_size": None, "scale_dtype": "float32", "range": "absmax"}
    return row(
        n_bits, **{"mode": mode, "bits_per_value": bits, "sqnr_db": sqnr_db, **plain} | change
    )


def some(**change):
    return [
        stored("symmetric", 4, 4.01, 10.0, **change),
        stored("symmetric", 8, 8.01, 34.0, **change),
        stored("symmetric", 8, 9.0, 44.0, **GROUP, **change),
        stored("nf4", 4, 4.5, 20.0, **GROUP, **change),
        stored("fp8_e4m3", 8, 8.01, 31.5, **change),
    ]


def findings_of(rows, levels=LEVELS, bar=SQNR):
    """What there is to report of rows."""
    rest = {
        "mae": 0.1, "cos_sim": 0.9, "n_codes": 16, "scale": None, "zero_point": None,
        "n_elements": 600, "bits_above_bound": 1.0, "clip_share": 0.0, "zero_share": 0.1,
        "round_share": 0.9,
    }  # fmt: skip
    full = [rest | each for each in rows]
    found = verdicts(full, levels, bar)
    nothing = {"details": [], "histogram": [], "failures": {}, "skipped": {}, "unmeasured": []}
    return Findings(full, levels, found, bar, **nothing, provenance={})


def test_the_cheapest_is_the_one_of_fewest_bits_that_meets_the_bar():
    (one,) = tensor_formats(some(), LEVELS, SQNR)
    assert one.cheapest == Offer(8.01, -34.0, "sym 8 bits")  # of as many bits the better
    assert [each.name for each in one.meeting] == [
        "sym 8 bits", "fp8_e4m3", "sym 8 bits, group 32",
    ]  # fmt: skip
    (none,) = tensor_formats(some(), LEVELS, Bar(sqnr_db=50.0))
    assert none.cheapest is None


def test_of_equals_the_first_by_name_is_taken():
    rows = [stored("log", 4, 4.5, 40.0), stored("fp4", 4, 4.5, 40.0)]
    (one,) = tensor_formats(rows, LEVELS, SQNR)
    assert one.cheapest.name == "fp4"
    assert [each.name for each in front(one.offers)] == ["fp4"]


def test_all_of_the_bar_decides_and_not_the_sqnr_alone():
    rows = [stored("nf4", 4, 4.5, 40.0, top_merged=1), stored("log", 8, 8.1, 35.0)]
    (one,) = tensor_formats(rows, LEVELS, Bar())
    assert one.cheapest.name == "log 8 bits"


def test_tensors_stand_apart_by_all_that_is_no_format_the_dearest_first():
    rows = [each | {"seed": seed} for seed in (1, 2) for each in some()]
    rows += [each | {"seed": 3} for each in some()[:1] + some()[3:4]]
    found = tensor_formats(rows, [*LEVELS, "seed"], SQNR)
    assert [each.name for each in found] == [
        "verb_probs, seed=3", "verb_probs, seed=1", "verb_probs, seed=2",
    ]  # fmt: skip
    assert [len(each.offers) for each in found] == [2, 5, 5]


def test_there_is_nothing_to_choose_among_plain_widths():
    plain = [
        stored(mode, n, n + 0.1, 6.0 * n) for mode in ("symmetric", "asymmetric") for n in (4, 8)
    ]
    assert tensor_formats(plain, LEVELS, SQNR) == []
    assert tensor_formats([stored("nf4", 4, 4.5, 20.0)], LEVELS, SQNR) == []
    assert tensor_formats([row(4), row(8)], ["dist", "mode", "n_bits"], SQNR) == []
    assert len(tensor_formats([*plain, stored("nf4", 4, 4.5, 20.0)], LEVELS, SQNR)) == 1


def test_a_row_of_an_older_version_does_not_say_what_it_costs():
    rows = [*some(), row(6), stored("log", 6, None, 33.0)]
    (one,) = tensor_formats(rows, LEVELS, SQNR)
    assert len(one.offers) == 5


def test_an_exact_round_trip_is_beaten_by_none():
    rows = [*some(), stored("log", 16, 16.0, None, max_err=0)]
    (one,) = tensor_formats(rows, LEVELS, SQNR)
    best = front(one.offers)[-1]
    assert (best.name, best.sqnr_db, best.is_exact) == ("log 16 bits", math.inf, True)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(places):
    offers = [Offer(bits, loss, str(n)) for n, (bits, loss) in enumerate(places)]
    best = front(offers)
    for offer in offers:
        beaten = any(
            other.bits <= offer.bits and other.loss <= offer.loss and other[:2] != offer[:2]
            for other in offers
        )
        assert beaten == (offer[:2] not in [each[:2] for each in best])
    assert [each.bits for each in best] == sorted({each.bits for each in best})


def test_of_many_tensors_a_format_is_where_its_medians_are():
    rows = [
        stored("nf4", 4, bits, sqnr, tensor=str(n))
        for n, (bits, sqnr) in enumerate([(4.5, 20.0), (4.6, 10.0), (4.7, 30.0)])
    ]
    rows.append(stored("log", 4, 4.2, 9.0, tensor="0"))
    found = tensor_formats(rows, [*LEVELS, "tensor"], SQNR)
    assert medians(found) == [Offer(4.2, -9.0, "log 4 bits"), Offer(4.6, -20.0, "nf4")]


def test_a_source_counts_what_its_tensors_need():
    rows = [each for name in "abc" for each in some(dist="file", tensor=name)]
    rows += [each | {"sqnr_db": 31.0} for each in some(dist="file", tensor="d")]
    rows += [each | {"sqnr_db": 1.0} for each in some(dist="other", tensor="e")]
    found = list(choices(tensor_formats(rows, [*LEVELS, "tensor"], SQNR)))
    assert found == [
        ("other", 1, 0, []),
        ("file", 4, 4, [("sym 8 bits", 3), ("sym 4 bits", 1)]),
    ]
