import itertools
import math

import pytest

from quantlab.plans.options import Option, float_width, read_originals, relative_error, total_bits
from tests.plans.samples import assigned, option, original, stored, sweep, two


def test_options_sort_as_one_would_choose():
    best_first = [
        Option(4, 1.0, "a"), Option(4, 1.0, "b"), Option(4, 2.0, "a"), Option(5, 0.0, "a"),
    ]  # fmt: skip
    for order in itertools.permutations(best_first):
        assert sorted(order) == best_first


def test_tensors_together_cost_and_lose_the_sum():
    both = option(assigned("nf4", 4, 0.5), assigned("nf4", 6, 0.25))
    assert (both.bits, both.noise, both.format) == (10, 0.75, "nf4")
    assert option(stored(4), stored(2, "float16")).format == ("float32, float16")
    assert (total_bits([both, both]), both.noise) == (20, 0.75)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"sqnr_db": 20.0, "max_err": 1.0}, 0.01),
        ({"sqnr_db": -10.0, "max_err": 1.0}, 10.0),
        ({"sqnr_db": None, "max_err": 0.0}, 0.0),
        ({"sqnr_db": None, "max_err": 1.0}, math.inf),
        ({"max_err": 1.0}, math.inf),
    ],
)
def test_noise_is_the_relative_squared_error(row, error):
    assert relative_error(row, "sqnr_db") == pytest.approx(error)
    assert relative_error({"out_sqnr_db": 30.0, **row}, "out_sqnr_db") == pytest.approx(1e-3)


def test_the_size_is_that_of_the_dtype_or_of_the_file():
    tensors = [
        original("a", (3, 4), dtype="bfloat16"),
        original("b", (3, 4), dtype="int64", n_bytes=96, reason="int64 is no float"),
        original("c", (), dtype="float64"),
        original("d", (0, 4)),
    ]
    found = read_originals(sweep(two(), tensors))
    assert [each.bits for each in found] == [192, 768, 64, 0]
    assert [each.size for each in found] == [12, 12, 1, 0]
    assert [each.reason for each in found] == [None, "int64 is no float", None, None]


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", ""])
def test_only_floats_say_their_width(dtype):
    assert float_width("float4_e2m1fn") == 4
    with pytest.raises(ValueError, match="is no floating-point dtype"):
        float_width(dtype)


def test_two_sources_may_have_a_tensor_of_one_name():
    tensors = [original("w", dist="x"), original("w", dist="y")]
    assert [each.key for each in read_originals(sweep(two(), tensors))] == [("x", "w"), ("y", "w")]


def test_two_tensors_of_one_source_and_name_are_refused():
    tensors = [original("w", sha256=digit * 64) for digit in "123"]
    with pytest.raises(
        ValueError, match="holds 3 tensors 'w' of file/safetensors: a plan is of on"
    ):
        read_originals(sweep(two(), tensors))


def test_a_sweep_without_tensors_has_none():
    assert read_originals(sweep([])) == []
