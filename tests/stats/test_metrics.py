import json
import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.blocks import Group, Layout
from quantlab.formats.floats import Float
from quantlab.formats.format import Format
from quantlab.formats.scales import TwoLevel
from quantlab.formats.uniform import Asymmetric, Symmetric, dequantize, quantize, value_range
from quantlab.sources.source import Hidden, TenseLogits, VerbProbs
from quantlab.stats.metrics import (
    METRICS,
    ColumnImportance,
    OutputPower,
    RowPowers,
    divergence,
    out_sqnr_db,
    require_threshold,
)
from quantlab.stats.reference import CHUNK, NumpyEngine, row_part
from tests.conftest import ROOT, measure
from tests.stats.test_reference import sums

DATA = ROOT / "tests" / "data" / "schema3"

SOURCES = [
    TenseLogits(42, None),
    VerbProbs(42, 600, 1.5),
    Hidden(42, 1024, 600),
    Hidden(1, 65536, 0),
]
MODES = [Symmetric(8), Asymmetric(8), Symmetric(3), Asymmetric(16), Asymmetric(8, "clip")]


def oracle(x, quantizer):
    """The definitions, in Python floats and exact sums."""
    params = quantizer.choose(*value_range(x))
    q = quantize(x, params, quantizer.n_bits)
    errors = [float(e) for e in dequantize(q, params) - x]  # taken in float32, as in the lab
    x, y = x.astype(float).tolist(), dequantize(q, params).astype(float).tolist()
    n, s = len(x), float(params.scale)
    relative = [abs(e) / abs(v) for e, v in zip(errors, x, strict=True) if abs(v) > 1e-8]
    energy = math.fsum(v * v for v in x)
    noise = math.fsum(e * e for e in errors)
    norms = math.sqrt(energy) * math.sqrt(math.fsum(v * v for v in y))
    ordered = sorted(map(abs, errors))

    def percentile(p):
        below = int(p * (n - 1))
        above = min(below + 1, n - 1)
        return ordered[below] + (p * (n - 1) - below) * (ordered[above] - ordered[below])

    shares = [count / n for count in Counter(q.tolist()).values()]
    return {
        "mae": math.fsum(map(abs, errors)) / n,
        "max_err": max(map(abs, errors)),
        "rel_err": math.fsum(relative) / len(relative),
        "cos_sim": math.fsum(a * b for a, b in zip(x, y, strict=True)) / norms,
        "n_codes": len(set(q.tolist())),
        "rmse": math.sqrt(noise / n),
        "sqnr_db": 10 * math.log10(energy / noise),
        "bias": math.fsum(errors) / n,
        "err_p50": percentile(0.5),
        "err_p95": percentile(0.95),
        "zeroed": sum(a != 0 and b == 0 for a, b in zip(x, y, strict=True)) / sum(map(bool, x)),
        "code_entropy": -math.fsum(p * math.log2(p) for p in shares),
        "rmse_over_scale": math.sqrt(noise / n) / s,
        "bound_ratio": max(map(abs, errors)) / (s / 2),
    }


@pytest.mark.parametrize("quantizer", MODES, ids=str)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{type(source).__name__}")
def test_every_figure_is_that_of_its_definition(source, quantizer):
    x = next(source.tensors()).array
    measured = measure(x, quantizer)["measured"]
    for key, exact in oracle(x, quantizer).items():
        # A bias is a small rest of large sums, so it is held to the size of what was summed.
        scale = measured["mae"] if key == "bias" else 0
        assert measured[key] == pytest.approx(exact, rel=1e-9, abs=1e-9 * scale), key
    assert measured["max_err"] == oracle(x, quantizer)["max_err"]
    assert measured["n_codes"] == oracle(x, quantizer)["n_codes"]


@pytest.mark.parametrize("quantizer", [Symmetric(8), Asymmetric(16)], ids=str)
def test_one_minus_cos_does_not_cancel(quantizer):
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    params = quantizer.choose(*value_range(x))
    x_hat = dequantize(quantize(x, params, quantizer.n_bits), params)
    from fractions import Fraction

    a, b = ([Fraction(float(v)) for v in values] for values in (x, x_hat))
    dot, aa, bb = (
        sum(p * q for p, q in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b))
    )
    # 1 - cos = (1 - cos^2) / (1 + cos), the numerator exact
    exact = float((aa * bb - dot * dot) / (aa * bb)) / (1 + float(dot) / math.sqrt(aa * bb))
    assert measure(x, quantizer)["measured"]["one_minus_cos"] == pytest.approx(exact, rel=1e-6)


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.floats(-1, 1, width=32)),
    st.integers(-40, 40),
)
@example(np.full(7, -0.8460856, np.float32), 1)  # pow(v, 2) does not scale as v * v does
def test_a_power_of_two_changes_no_ratio(x, power):
    x = np.where(np.abs(x) < 1e-9, np.float32(0), x)
    x[0] = x[0] or 1
    before = measure(x, Asymmetric(6))["measured"]
    after = measure(x * np.float32(2.0**power), Asymmetric(6))["measured"]
    in_units = {"mae", "max_err", "rmse", "bias", "err_p50", "err_p95"}
    for key in before.keys() - {"rel_err", "kl"}:
        factor = 2.0**power if key in in_units else 1
        assert after[key] == (before[key] if before[key] is None else before[key] * factor), key


def test_blocks_add_up_to_the_whole():
    x = np.random.default_rng(3).standard_normal(10_000).astype(np.float32)
    x_hat = np.round(x, 1)
    whole = sums(x, x_hat, 1e-8)
    parts = sums(x, x_hat, 1e-8, step=999)
    assert parts.max_err == whole.max_err
    assert parts.n == whole.n
    assert parts == pytest.approx(whole, rel=1e-12)


def test_a_figure_that_does_not_exist_is_null_with_the_reason():
    zeros = measure(np.zeros(4, np.float32), Symmetric(8))
    assert zeros["measured"]["cos_sim"] is None
    assert zeros["reasons"]["cos_sim"] == "x is all zeros"
    assert zeros["measured"]["max_err"] == 0
    exact = measure(np.array([-7, 7, 3], np.float32), Symmetric(4))
    assert exact["measured"]["sqnr_db"] is None
    assert exact["reasons"]["sqnr_db"] == "the round trip is perfect"
    small = measure(np.array([1e-9], np.float32), Symmetric(8))
    assert small["measured"]["rel_err"] is None


def test_kl_is_for_probability_vectors_that_keep_their_support():
    p = np.array([0.5, 0.25, 0.125, 0.125], np.float32)
    x_hat = np.array(measure_x_hat(p, Symmetric(4)))
    q = x_hat / x_hat.sum()
    exact = math.fsum(a * math.log2(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert measure(p, Symmetric(4))["measured"]["kl"] == pytest.approx(exact, rel=1e-9)
    flushed = measure(np.array([0.999, 0.001], np.float32), Symmetric(4))
    assert flushed["measured"]["kl"] is None
    assert flushed["reasons"]["kl"] == "x_hat is 0 at 1 elements where x is not"
    assert measure(p - 1, Symmetric(4))["reasons"]["kl"] == "x is no probability vector"


def test_a_long_probability_vector_with_zeros_has_its_kl():
    p = np.tile(np.float32([3, 1, 2, 2]), 2**15)
    p[:8] = 0
    p /= p.sum(dtype=np.float64)
    x, q = p[8:].astype(float), measure_x_hat(p, Asymmetric(16))[8:]
    exact = math.fsum(x * np.log2(x / q)) / x.sum() + math.log2(q.sum() / x.sum())
    assert measure(p, Asymmetric(16))["measured"]["kl"] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("path", sorted((DATA / "lab").glob("*/record.json")), ids=str)
def test_recorded_figures_come_out_to_the_last_digit(path):
    for name, kept in json.loads(path.read_bytes())["tensors"].items():
        source = next(each for each in SOURCES if next(each.tensors()).name == name)
        result = measure(next(source.tensors()).array, Asymmetric(6), name)
        assert result["measured"].pop("worst_row_sqnr_db") == result["measured"]["sqnr_db"]
        assert result["measured"].items() <= kept["measured"].items()
        assert {
            key: result[key] for key in ("rank", "codes", "error_histogram")
        }.items() <= kept.items()


def measure_x_hat(x, quantizer):
    params = quantizer.choose(*value_range(x))
    return dequantize(quantize(x, params, quantizer.n_bits), params).astype(float)


def test_clipped_counts_what_saturates():
    x = np.array([1.2, 4.7, 3.1, 0.5, 2.9], np.float32)
    assert measure(x, Asymmetric(8, "clip"))["measured"]["clipped"] == 0.2
    assert measure(x, Asymmetric(8))["measured"]["clipped"] == 0


def test_names_are_columns():
    names = [metric.__name__ for metric in METRICS]
    assert names[:5] == ["mae", "max_err", "rel_err", "cos_sim", "n_codes"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("threshold", [-1, "x", math.nan, None])
def test_a_bad_threshold_is_named(threshold):
    with pytest.raises(ValueError, match=r"^metrics.rel_threshold must be"):
        require_threshold(threshold)


def test_the_least_threshold_is_zero():
    require_threshold(0)
    require_threshold(0.5)


def test_all_zeros_have_reasons_and_nothing_else():
    zeros = measure(np.zeros(4, np.float32), Symmetric(8))
    assert zeros["reasons"] == {
        "rel_err": "no |x| is above the threshold",
        "cos_sim": "x is all zeros",
        "sqnr_db": "the round trip is perfect",
        "zeroed": "x is all zeros",
        "one_minus_cos": "x is all zeros",
        "kl": "x is no probability vector",
    }
    flushed = measure(np.array([0, 0, 1e-40], np.float32), Symmetric(8))  # far below its step of 1
    assert flushed["reasons"]["cos_sim"] == "x_hat is all zeros"
    assert flushed["measured"]["zeroed"] == 1


def test_kl_is_taken_of_shares_that_add_up_to_one():
    p = np.array([0.5, 0.25, 0.125, 0.125], np.float32) * np.float32(1 + 8e-6)
    q = measure_x_hat(p, Symmetric(4))
    p_share, q_share = p.astype(float) / p.sum(dtype=float), q / q.sum()
    exact = math.fsum(p_share * np.log2(p_share / q_share))
    assert measure(p, Symmetric(4))["measured"]["kl"] == pytest.approx(exact, rel=1e-9)
    assert measure(p * 2, Symmetric(4))["measured"]["kl"] is None


def test_the_divergence_leaves_zeros_out():
    x, x_hat = np.float32([0, 0.5, 0.25, 0.1]), np.float32([0.5, 0, 0.125, 0.3])
    exact = 0.25 + float(x[3]) * math.log2(float(x[3]) / float(x_hat[3]))
    assert divergence(x, x_hat) == pytest.approx(exact, rel=1e-15)


def test_a_cosine_is_at_most_one():
    x = np.array([0.1, 0.7, 0.3], np.float32)
    assert all(measure(x * n, Symmetric(16))["measured"]["cos_sim"] <= 1 for n in range(1, 50))


FORM = Format(Symmetric(4))
SHAPES = [(1, 1), (5, 7), (300, 1000), (3, 40, 50), (2, 70, 1000)]


def drawn(shape, matrices=1, seed=0):
    """Weights, what they come back as, and the importance of the columns of each matrix."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, shape).astype(np.float32)
    x_hat = (x + rng.normal(0, 0.1, shape)).astype(np.float32)
    importance = rng.lognormal(0, 3, (matrices, shape[-1])).astype(np.float32)
    return x, x_hat, importance


def exact_powers(x, x_hat, importance):
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
    signal, noise = exact_powers(x, x_hat, importance)
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
def test_threads_and_stretches_change_no_output_error(shape, monkeypatch):
    x, _, importance = drawn(shape, shape[0] if len(shape) == 3 else 1)
    monkeypatch.setattr(NumpyEngine, "min_share", CHUNK)
    found = set()
    for threads, block in ((1, 1), (1, 3), (2, 1), (3, 2)):
        monkeypatch.setattr(NumpyEngine, "block_size", block * CHUNK)
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


def test_an_output_error_that_does_not_exist_is_null_with_the_reason():
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


def row_decibels(x, x_hat, width):
    """The SQNR of each row that has one, from exact sums."""
    error = x_hat - x
    rows = [slice(start, start + width) for start in range(0, x.size, width)]
    powers = [[math.fsum(float(v) ** 2 for v in y[row]) for row in rows] for y in (x, error)]
    return [10 * math.log10(a / b) for a, b in zip(*powers, strict=True) if a and b]


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ((40, 999), 999),
        ((3, CHUNK + 5), CHUNK + 5),  # rows that no chunk holds
        ((2 * CHUNK // 64, 64), 64),  # chunks that begin with a row
        ((9, 5, 3, 3), 45),  # a kernel's row of three values says nothing
        ((7, 4, 25), 25),
    ],
)
def test_the_worst_row_is_that_of_the_definition(shape, width):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    x[-1] /= 50
    measured = measure(x, Symmetric(8))["measured"]
    x_hat = measure_x_hat(x.ravel(), Symmetric(8))
    exact = min(row_decibels(x.ravel(), x_hat, width))
    assert measured["worst_row_sqnr_db"] == pytest.approx(exact, rel=1e-12)


def test_the_worst_expert_of_a_stack_is_named():
    x = np.random.default_rng(3).standard_normal((4, 30, 50)).astype(np.float32)
    x[2] /= 50
    measured = measure(x, Symmetric(8))["measured"]
    exact = row_decibels(x.ravel(), measure_x_hat(x.ravel(), Symmetric(8)), 1500)
    assert measured["worst_matrix"] == exact.index(min(exact)) == 2
    assert measured["worst_matrix_sqnr_db"] == pytest.approx(min(exact), rel=1e-12)
    assert "worst_matrix" not in measure(x[0], Symmetric(8))["measured"]


@pytest.mark.parametrize("shape", [(64, 64), (4096,)])
def test_an_outlier_does_not_hide_that_the_other_blocks_became_0(shape):
    x = np.full(shape, 1e-4, np.float32)
    x.flat[0] = 1000
    form = Format(Float(4, 2, 1, 6.0), Group(size=16), scale=TwoLevel())
    measured = measure(x, form)["measured"]
    assert measured["sqnr_db"] > 100
    assert measured["worst_row_sqnr_db"] == 0


def test_rows_without_signal_or_without_noise_have_no_sqnr():
    x = np.zeros((3, 16), np.float32)
    assert measure(x, Symmetric(8))["measured"]["worst_row_sqnr_db"] is None
    x[1] = 127
    assert measure(x, Symmetric(8))["measured"]["worst_row_sqnr_db"] is None
    x[2] = 0.7
    assert measure(x, Symmetric(8))["measured"]["worst_row_sqnr_db"] > 7


def test_a_vector_in_one_block_is_one_row():
    x = np.random.default_rng(3).standard_normal(100).astype(np.float32)
    measured = measure(x, Symmetric(4))["measured"]
    assert measured["worst_row_sqnr_db"] == measured["sqnr_db"]
    assert RowPowers((1000,), Layout(1000, 1000, 48)).width == 288
    assert RowPowers((1000,), Layout(1000, 1000, 300)).width == 300


@given(st.integers(1, 3 * CHUNK), st.integers(1, 2 * CHUNK))
def test_parts_of_rows_are_numbered_one_by_one(size, width):
    begins = sorted({*range(0, size, width), *range(0, size, CHUNK)})
    numbers = row_part(np.array(begins), width)
    assert len(set(numbers.tolist())) == len(begins)
    assert (np.diff(numbers) > 0).all()
