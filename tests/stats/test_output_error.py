"""The error of a layer's output against exact sums of its definition."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.stats import parallel
from quantlab.stats.output_error import ColumnImportance, OutputPower, out_sqnr_db
from quantlab.stats.sums import CHUNK
from tests.conftest import measure

FORM = Format(Symmetric(4))
SHAPES = [(1, 1), (5, 7), (300, 1000), (3, 40, 50), (2, 70, 1000)]


def drawn(shape, matrices=1, seed=0):
    """Weights, what they come back as, and the importance of the columns of each matrix."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, shape).astype(np.float32)
    x_hat = (x + rng.normal(0, 0.1, shape)).astype(np.float32)
    importance = rng.lognormal(0, 3, (matrices, shape[-1])).astype(np.float32)
    return x, x_hat, importance


def exact(x, x_hat, importance):
    """The same in fractions, which round nothing."""
    weights = np.repeat(importance, x.size // importance.size, axis=0).reshape(x.shape)
    signal = noise = Fraction(0)
    for w, back, power in zip(x.ravel(), x_hat.ravel(), weights.ravel(), strict=True):
        signal += Fraction(float(power)) * Fraction(float(w)) ** 2
        noise += Fraction(float(power)) * Fraction(float(back - w)) ** 2
    return float(signal), float(noise)


def summed(x, x_hat, importance, cuts=()):
    columns, ends = ColumnImportance(importance, x.size), [0, *cuts, x.size]
    powers = []
    for start, stop in pairwise(ends):
        powers += columns.powers(start, x.ravel()[start:stop], x_hat.ravel()[start:stop])
    return powers


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if math.prod(shape) <= 6000])
def test_powers_are_those_of_the_definition(shape, experts):
    matrices = shape[0] if experts and len(shape) == 3 else 1
    x, x_hat, importance = drawn(shape, matrices)
    powers = summed(x, x_hat, importance)
    found = [math.fsum(each) for each in zip(*powers, strict=True)]
    signal, noise = exact(x, x_hat, importance)
    assert found == pytest.approx([signal, noise], rel=1e-13)
    assert out_sqnr_db(powers) == pytest.approx(10 * math.log10(signal / noise), rel=1e-12)


@pytest.mark.parametrize("matrices", [1, 2])
def test_long_tensors_have_the_sums_of_float64(matrices):
    x, x_hat, importance = drawn((2, 70, 1000), matrices)
    weights = np.repeat(importance.astype(float), 140 // matrices, axis=0).ravel()
    err = (x_hat - x).ravel().astype(float)
    noise = math.fsum((weights * err * err).tolist())
    signal = math.fsum((weights * x.ravel().astype(float) ** 2).tolist())
    expected = 10 * math.log10(signal / noise)
    assert out_sqnr_db(summed(x, x_hat, importance)) == pytest.approx(expected, rel=1e-12)


@given(st.sets(st.integers(1, 3)))
def test_blocks_of_whole_chunks_leave_the_same_powers(cuts):
    x, x_hat, importance = drawn((300, 1000))
    cut = summed(x, x_hat, importance, [n * CHUNK for n in sorted(cuts)])
    assert cut == summed(x, x_hat, importance)


@pytest.mark.parametrize("shape", SHAPES)
def test_threads_and_stretches_change_nothing(shape, monkeypatch):
    x, _, importance = drawn(shape, shape[0] if len(shape) == 3 else 1)
    monkeypatch.setattr(parallel, "BLOCKS", 1)
    found = set()
    for threads, block in ((1, 1), (1, 3), (2, 1), (3, 2)):
        monkeypatch.setattr(parallel, "BLOCK", block * CHUNK)
        result = measure(x, FORM, threads=threads, importance=importance)
        found.add(result["measured"]["out_sqnr_db"])
    assert len(found) == 1


@pytest.mark.parametrize("shape", [(64, 50), (3, 40, 50)])
def test_columns_of_equal_importance_give_the_sqnr(shape):
    x, _, _ = drawn(shape)
    for value in (1e-9, 1.0, 3e7):
        importance = np.full((1, shape[-1]), value, np.float32)
        measured = measure(x, FORM, importance=importance)["measured"]
        assert measured["out_sqnr_db"] == pytest.approx(measured["sqnr_db"], abs=1e-9)


def test_only_columns_of_importance_count():
    x = np.float32([[1, 100], [1, 100]])
    powers = ColumnImportance(np.float32([[2, 0]]), 4).powers(0, x.ravel(), x.ravel() * 2)
    assert powers == [OutputPower(4.0, 4.0)]


def test_each_expert_weighs_its_own_columns():
    x = np.ones(8, np.float32)
    x_hat = x + np.repeat(np.float32([0.5, 0]), 4)
    importance = np.float32([[1, 3], [0, 100]])
    assert summed(x, x_hat, importance) == [OutputPower(8.0 + 200.0, 2.0)]


def test_a_figure_that_does_not_exist_is_null_with_the_reason():
    exact_trip = measure(np.zeros((2, 2), np.float32), FORM, importance=np.ones((1, 2), np.float32))
    assert exact_trip["measured"]["out_sqnr_db"] is None
    assert exact_trip["reasons"]["out_sqnr_db"] == "there is no noise, or no signal"
    assert "out_sqnr_db" not in measure(np.ones((2, 2), np.float32), FORM)["measured"]


@pytest.mark.parametrize("powers", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_there_is_no_ratio_without_noise_or_signal(powers):
    assert out_sqnr_db([OutputPower(*powers)]) is None


def test_extreme_weights_overflow_nothing():
    x = np.full(4, 3e38, np.float32)
    (power,) = ColumnImportance(np.full((1, 4), 3e38, np.float32), 4).powers(0, x, x / 2)
    assert 10 * math.log10(power.signal / power.noise) == pytest.approx(6.02, abs=0.01)
