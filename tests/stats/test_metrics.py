import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.uniform import Asymmetric, Symmetric, dequantize, quantize, value_range
from quantlab.sources.lab import Hidden, TenseLogits, VerbProbs
from quantlab.stats.metrics import METRICS, divergence, require_threshold
from tests.conftest import ROOT, measure
from tests.stats.test_sums import sums

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
