import itertools
import math

import pytest

from quantlab.plans.options import Option, Part, option, relative_error, total_bits


def test_options_sort_as_one_would_choose():
    best_first = [
        Option(4, 1.0, "a"), Option(4, 1.0, "b"), Option(4, 2.0, "a"), Option(5, 0.0, "a"),
    ]  # fmt: skip
    for order in itertools.permutations(best_first):
        assert sorted(order) == best_first


def test_tensors_together_cost_and_lose_the_sum():
    both = option(Part(4, 0.5, "nf4", {}), Part(6, 0.25, "nf4", {}))
    assert (both.bits, both.noise, both.format) == (10, 0.75, "nf4")
    assert option(Part(4, 0.0, "float32", None), Part(2, 0.0, "float16", None)).format == (
        "float32, float16"
    )
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
