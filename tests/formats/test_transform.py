import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.linalg import hadamard

from quantlab.formats.blocks import UnfitError
from quantlab.formats.transform import Hadamard, multiply_hadamard

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@pytest.mark.parametrize("width", [2, 4, 8, 32, 512])
def test_rows_are_multiplied_by_the_matrix_of_sylvester(width):
    x = np.random.default_rng(0).integers(-100, 100, (300, width)).astype(np.float32)
    assert np.array_equal(multiply_hadamard(x), x @ hadamard(width).astype(np.float32))


@given(st.sampled_from([2, 16, 128]).flatmap(lambda n: arrays(np.float32, (3, n), elements=FLOATS)))
def test_it_is_undone_and_keeps_the_energy(x):
    transform = Hadamard()
    y = transform.forward(x, multiply_hadamard)
    x_hat = transform.backward(y, multiply_hadamard)
    norms = np.linalg.norm(x.astype(np.float64), axis=1)
    errors = np.linalg.norm(x_hat.astype(np.float64) - x, axis=1)
    assert (errors <= 1e-6 * norms).all()
    assert np.linalg.norm(y.astype(np.float64), axis=1) == pytest.approx(norms, rel=1e-6)


def test_an_outlier_is_spread_evenly():
    x = np.zeros((1, 64), np.float32)
    x[0, 5] = 8
    assert np.array_equal(np.abs(Hadamard().forward(x, multiply_hadamard)), np.ones((1, 64)))


def test_signs_are_those_of_the_seed():
    x = np.ones((1, 256), np.float32)
    same, other = (Hadamard(seed=seed).forward(x, multiply_hadamard) for seed in (0, 1))
    assert np.array_equal(same, Hadamard().forward(x, multiply_hadamard))
    assert not np.array_equal(same, other)


@pytest.mark.parametrize(("row", "width"), [(4096, 512), (96, 32), (1000, 8), (2, 2)])
def test_the_size_is_the_largest_power_of_two_that_divides_a_row(row, width):
    assert Hadamard().width(row) == width


@pytest.mark.parametrize(
    ("size", "row", "sentence"),
    [
        (None, 513, "no power of two divides its rows of 513 values"),
        (64, 513, "no power of two divides its rows of 513 values"),
        (
            64,
            96,
            "transform.size=64 does not divide its rows of 96 values: transform.size=32 does",
        ),
    ],
)
def test_a_row_that_it_does_not_divide_is_left_out(size, row, sentence):
    with pytest.raises(UnfitError, match=f"^{re.escape(sentence)}$"):
        Hadamard(size).width(row)


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 1}, {"size": 48}, {"size": 64.0}])
def test_a_size_that_is_no_power_of_two_is_refused(settings):
    with pytest.raises(ValueError, match=r"transform\.size must be a power of two, 2 or more"):
        Hadamard(**settings)


def test_a_seed_is_a_whole_number():
    with pytest.raises(ValueError, match=r"transform\.seed must be a whole number from 0 up"):
        Hadamard(seed=-1)
