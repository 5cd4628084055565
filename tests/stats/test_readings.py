"""Whether another reading of what is stored fits the original far better."""

import math

import numpy as np
import pytest

from quantlab.formats.format import Reconstruction
from quantlab.sources.tensor import Tensor
from quantlab.stats.readings import (
    COLUMN_SCALED,
    LENGTH,
    MIN_GAIN_DB,
    MIN_GAIN_REARRANGED_DB,
    MIN_SQNR_DB,
    STRETCHES,
    better_reading,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 50)).astype(np.float32)
NOISE = RNG.standard_normal(X.shape).astype(np.float32)


def at(sqnr_db, x=X, noise=NOISE):
    """Return values whose noise is so many dB below them."""
    rms = math.sqrt(float((x**2).sum(dtype=float) / (noise**2).sum(dtype=float)))
    return (x + noise * rms * 10 ** (-sqnr_db / 20)).astype(np.float32)


def read(values):
    flat = values.ravel()
    return lambda start, stop: flat[start:stop]


def better(declared, x=X, rearranged=(), **readings):
    stored = Reconstruction(
        read(declared),
        "codes",
        1,
        readings={name: read(each) for name, each in readings.items()},
        rearranged={name: read(each) for name, each in dict(rearranged).items()},
    )
    return better_reading(Tensor("x", x), stored)


def test_a_reading_that_is_far_better_is_found_with_both_figures():
    found = better(at(8), other=at(30), third=at(25))
    assert found.name == "other"
    assert found.sqnr_db == pytest.approx(30, abs=0.01)
    assert found.declared_db == pytest.approx(8, abs=0.01)


@pytest.mark.parametrize(("declared", "other"), [(20, 24.9), (20, 20), (30, 8), (-20, -10)])
def test_one_that_is_hardly_better_or_makes_no_sense_is_not(declared, other):
    assert better(at(declared), other=at(other)) is None


@pytest.mark.parametrize(
    ("declared", "other"), [(20, 20.1 + MIN_GAIN_DB), (-20, MIN_SQNR_DB + 0.1)]
)
def test_one_that_is_just_good_enough_is(declared, other):
    assert better(at(declared), other=at(other)).name == "other"


@pytest.mark.parametrize(
    ("declared", "other"), [(4, 3.9 + MIN_GAIN_REARRANGED_DB), (-20, MIN_SQNR_DB - 0.1)]
)
def test_values_in_other_places_must_be_better_by_more(declared, other):
    assert better(at(declared), rearranged={"turned": at(other)}) is None
    assert better(at(declared), rearranged={"turned": at(other + 0.2)}).name == "turned"


def test_a_square_may_be_transposed():
    square = X[:50]
    assert better(np.ascontiguousarray(square.T), x=square).name == "transposed"
    assert better(X.reshape(50, 64), x=X.reshape(64, 50)) is None


def test_a_scale_for_each_column_is_found():
    x = RNG.standard_normal((64, 50)).astype(np.float32)
    scales = np.exp(RNG.standard_normal(50)).astype(np.float32)
    found = better(at(25, x) * scales, x=x)
    assert (found.name, round(found.sqnr_db)) == (COLUMN_SCALED, 25)
    assert better(at(3, x), x=x) is None  # 50 scales explain little of 3,200 errors
    few = better(at(25, x)[:7] * scales, x=x[:7])
    assert few is None or few.name != COLUMN_SCALED


@pytest.mark.parametrize(("shift", "name"), [(1, "less 1"), (-1, "plus 1")])
def test_a_norm_that_is_greater_by_1_is_found(shift, name):
    x = X[:, 0] * np.float32(0.1)
    found = better(x + np.float32(shift), x=x)
    assert found.name.startswith(name)
    assert found.sqnr_db > 100
    assert better(X + np.float32(shift), x=X) is None  # a matrix is no norm


def test_without_another_reading_the_declared_one_stands():
    assert better(at(3)) is None
    assert better(X) is None


def test_another_scale_is_found_for_any_file():
    found = better(4 * at(30))
    assert (found.name, round(found.sqnr_db)) == ("with another scale", 30)
    assert better(1.05 * at(30)) is None  # 25 dB as it is
    assert better(-X).name == "with another scale"


def test_an_exact_reading_beats_any_other():
    found = better(at(3), other=X, third=at(80))
    assert (found.name, found.sqnr_db) == ("other", math.inf)


def test_values_in_other_places_are_tried_only_where_the_declared_fit_nothing():
    assert better(at(MIN_SQNR_DB + 1), rearranged={"turned": X}) is None
    assert better(at(MIN_SQNR_DB - 1), rearranged={"turned": X}).name == "turned"


@pytest.mark.parametrize("broken", [np.nan, np.inf, 3e38])
def test_a_reading_that_is_not_finite_is_never_better(broken):
    other = X.copy()
    other[0, 0] = broken
    assert better(at(3), other=other) is None
    assert better(other, other=at(30)).name == "other"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_tensor_has_an_answer(value):
    constant = np.full((4, 8), value, np.float32)
    assert better(constant, x=constant, other=constant + 1) is None
    assert better(np.zeros_like(constant), x=constant) is None


@pytest.mark.parametrize("size", [1, LENGTH, STRETCHES * LENGTH, STRETCHES * LENGTH + 1, 2**18 + 3])
def test_a_long_tensor_is_looked_at_in_stretches_from_end_to_end(size):
    spans = []
    x = np.ones(size, np.float32)

    def reading(start, stop):
        spans.append((start, stop))
        return x[start:stop]

    better_reading(Tensor("x", x), Reconstruction(reading, "codes", 1))
    assert spans == sorted(spans)
    assert (spans[0][0], spans[-1][1]) == (0, size)
    assert sum(stop - start for start, stop in spans) == min(size, STRETCHES * LENGTH)
    assert all(0 <= start < stop <= size for start, stop in spans)
