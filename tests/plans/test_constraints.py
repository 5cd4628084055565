import pytest

from quantlab.plans.constraints import parse_keep
from quantlab.plans.slots import Request, find_slots
from tests.plans.samples import original, row, sweep, two


def slots(**asked):
    return find_slots(sweep(two()), Request(**asked)).slots


def test_a_kept_format_is_all_there_is():
    first, second = slots(keep=[("a*", "SYM 8 bits")])
    assert [each.format for each in first.options] == ["sym 8 bits"]
    assert len(second.options) == 4
    first, _ = slots(keep=[("*", "sym 8 bits"), ("a*", "float32")])  # the last that matches
    assert [each.format for each in first.options] == ["float32"]


def test_a_format_may_be_named_by_the_type_that_is_stored():
    rows = [*two(), row("a.weight", "ggml/q4_k", 4.5, 20.0)]
    first, _ = find_slots(sweep(rows), Request(keep=[("a*", "Q4_K")])).slots
    assert [each.format for each in first.options] == ["ggml/q4_k"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"keep": [("a*", "nf4")]},
            "--keep a*=nf4: 'a.weight' has no such format, only float32; s",
        ),
        ({"keep": [("c*", "nf4")]}, "--keep c* matches none of the 2 tensors measured"),
        ({"same": ["A*"]}, "--same A* matches none of the 2 tensors measured"),
        ({"same": ["a*", "*weight"]}, "'a.weight' fits --same a* and --same *weight"),
        (
            {"same": ["*"], "keep": [("a*", "sym 8 bits"), ("b*", "float32")]},
            "the tensors of --same * have no format in common",
        ),
    ],
)
def test_a_demand_that_cannot_be_met_is_named(asked, said):
    with pytest.raises(ValueError, match="--") as caught:
        slots(**asked)
    assert said in str(caught.value)


def test_tensors_that_match_take_one_format_together():
    (both,) = slots(same=["*.weight"])
    assert [each.name for each in both.tensors] == ["a.weight", "b.weight"]
    stay, low, *_ = both.options
    assert (stay.bits, stay.format) == (64_000, "float32")
    assert (low.bits, low.noise) == (9000, pytest.approx(10**-1.9 + 10**-1.0))


def test_of_two_dtypes_to_stay_is_one_choice():
    tensors = [original("a.weight"), original("b.weight", dtype="float16")]
    (both,) = find_slots(sweep(two(), tensors), Request(same=["*"])).slots
    assert (both.options[0].format, both.options[0].bits) == ("float32, float16", 48_000)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a*=nf4", ("a*", "nf4")),
        ("a=b=nf4", ("a=b", "nf4")),
        ("a=sym 4 bits, range.p=99.0", ("a", "sym 4 bits, range.p=99.0")),
    ],
)
def test_a_demand_is_split_where_a_format_follows(text, pair):
    assert parse_keep(text, ["sym 4 bits, range.p=99.0"]) == pair
    with pytest.raises(ValueError, match="--keep takes PATTERN=FORMAT"):
        parse_keep("=nf4", [])
