import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from quantlab.formats import blocks, quantizer, ranges
from quantlab.formats.blocks import Group, PerChannel, PerTensor
from quantlab.formats.element import Bounds, Element, Quantized, fit_scale, per_value
from quantlab.formats.floats import Float
from quantlab.formats.format import Format
from quantlab.formats.ranges import (
    AbsMax,
    BlockValues,
    Entropy,
    Mse,
    Percentile,
    find_entropy_slice,
)
from quantlab.formats.scales import FLOAT16, FLOAT32
from quantlab.formats.uniform import Asymmetric, Symmetric
from tests.formats import oracle

ALL = [name for name in oracle.ELEMENTS if name != "sym16"]
CHEAP = ["sym4", "asym4", "asym4_wide_int", "nf4", "fp4", "fp8_e4m3"]
values = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 60)),
    elements=st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1e-42, 3e38]),
)


@pytest.fixture
def tiny_limits(monkeypatch):
    """Make every limit so small that all code paths are taken by small arrays."""
    for name, limit in (("MAX_WHOLE_BLOCK", 0), ("PART", 16), ("BATCH", 32), ("SPAN", 64)):
        monkeypatch.setattr(blocks, name, limit)
    monkeypatch.setattr(ranges, "BATCH", 32)
    monkeypatch.setattr(quantizer, "PART", 16)


def chosen(range_, x, element, parts=1, scale_type=FLOAT32):
    """Return what a range chooses for rows that come in some parts."""
    pieces = np.array_split(x, min(parts, x.shape[1]), axis=1)
    rows = BlockValues(
        x.shape[1],
        lambda function, parts=slice(None): [function(piece) for piece in pieces[parts]],
        parts=len(pieces),
    )
    found = Bounds(x.min(1).astype(float), x.max(1).astype(float), np.full(len(x), np.inf))
    return range_.choose(found, rows, element, scale_type.store)


@given(values, st.floats(50.001, 100) | st.sampled_from([99.9, 100, 75]), st.integers(1, 3))
def test_percentiles_are_those_of_numpy_in_float64(x, p, parts):
    exact = x.astype(np.float64)
    bounds = chosen(Percentile(p=p), x, Symmetric(4), parts)
    assert np.array_equal(bounds.hi, np.percentile(np.abs(exact), p, axis=1))
    assert np.array_equal(bounds.lo, -bounds.hi)
    bounds = chosen(Percentile(p=p), x, Asymmetric(4), parts)
    assert np.array_equal(bounds.hi, np.percentile(exact, p, axis=1))
    assert np.array_equal(bounds.lo, np.percentile(exact, 100 - p, axis=1))


@given(values, st.floats(50.001, 100) | st.sampled_from([99.9, 100, 75]), st.integers(1, 3))
def test_percentiles_of_a_block_too_large_to_sort_are_the_same(x, p, parts):
    x = x.reshape(1, -1)
    for element in (Symmetric(4), Asymmetric(4)):
        sorted_ = chosen(Percentile(p=p), x, element, parts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranges, "BATCH", 0)
            selected = chosen(Percentile(p=p), x, element, parts)
        assert np.array_equal(selected.lo, sorted_.lo)
        assert np.array_equal(selected.hi, sorted_.hi)


def test_percentiles_of_many_values_too_large_to_sort():
    x = np.random.default_rng(0).standard_t(3, 200_001).astype(np.float32)
    x[:50_000] = 0.125  # many equals in one bucket
    exact = x.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "BATCH", 2**10)
        for p in (51, 62.5, 75.0, 99.9, 99.99999):
            bounds = chosen(Percentile(p=p), x[None], Asymmetric(8), 5)
            assert bounds.hi == np.percentile(exact, p)
            assert bounds.lo == np.percentile(exact, 100 - p)


def shapes_and_blocks():
    yield (90,), PerTensor()
    yield (3, 31), Group(16)
    yield (2, 3, 13), PerChannel(axis=1)
    yield (2, 3, 13), PerChannel()
    yield (), PerTensor()


@pytest.mark.parametrize("name", ALL)
def test_a_percentile_range_is_its_definition_for_every_element(name):
    ours, element = oracle.ELEMENTS[name]
    for seed, (shape, block) in enumerate(shapes_and_blocks()):
        x = np.asarray(oracle.awkward(np.random.default_rng(seed), shape))
        form = Format(ours, block, Percentile(p=90))
        oracle.check(form, x, element, oracle.stored_as("float32"), "percentile", 90)


@pytest.mark.parametrize("name", ALL)
def test_the_least_squares_range_is_the_best_of_eighty(name):
    ours, element = oracle.ELEMENTS[name]
    for seed, (shape, block) in enumerate(shapes_and_blocks()):
        x = np.asarray(oracle.awkward(np.random.default_rng(seed + 10), shape))
        oracle.check(Format(ours, block, Mse()), x, element, oracle.stored_as("float32"), "mse")


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("scale", ["float16", "bfloat16"])
@pytest.mark.parametrize("range_", [Mse(), Percentile(p=95)])
def test_ranges_are_chosen_for_the_scale_that_is_stored(name, scale, range_):
    ours, element = oracle.ELEMENTS[name]
    x = oracle.awkward(np.random.default_rng(5), (4, 33))
    form = Format(ours, Group(17, scale=scale), range_)
    oracle.check(form, x, element, oracle.stored_as(scale), range_.name, 95)


@pytest.mark.usefixtures("tiny_limits")
@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("range_", [AbsMax(), Mse(), Percentile(p=90)])
def test_ranges_do_not_depend_on_the_limits(name, range_):
    ours, element = oracle.ELEMENTS[name]
    for seed, (shape, block) in enumerate(shapes_and_blocks()):
        x = np.asarray(oracle.awkward(np.random.default_rng(seed + 20), shape))
        store = oracle.stored_as("float32")
        oracle.check(Format(ours, block, range_), x, element, store, range_.name, 90)


def test_of_equally_good_ranges_the_widest_is_taken():
    # Nothing but one magnitude: each range covers it exactly or worse.
    bounds = chosen(Mse(), np.float32([[0, 0, 0], [2, -2, 0]]), Symmetric(8))
    assert bounds.hi.tolist() == [0, 2]
    # With a step of 1 these come back whole, and with any narrower range one of them does not.
    bounds = chosen(Mse(), np.float32([[7, 1, -3, 0]]), Symmetric(4))
    assert (bounds.lo.tolist(), bounds.hi.tolist()) == ([-3], [7])


def test_the_narrowest_range_tried_is_a_hundredth_above_a_fifth():
    x = np.float32([[1] + [0.21] * 3000])
    bounds = chosen(Mse(), x, Symmetric(2))
    assert bounds.hi.tolist() == [1 - 79 / 100]
    assert bounds.lo.tolist() == [float(np.float32(0.21)) * (1 - 79 / 100)]


@given(values, st.sampled_from(ALL))
def test_least_squares_are_never_worse_than_the_whole_range(x, name):
    x = np.clip(x, -1e18, 1e18)
    ours, _ = oracle.ELEMENTS[name]
    block = PerChannel()
    squares = []
    for range_ in (Mse(), AbsMax()):
        _, x_hat, _, _ = oracle.round_trip(Format(ours, block, range_), x)
        error = (x_hat.reshape(x.shape) - x).astype(np.float64)
        squares.append(np.square(error).reshape(len(x), -1).sum(1))
    assert (squares[0] <= squares[1] * (1 + 1e-12)).all()


def float64_smoothing(counts, eps=1e-4):
    """Do what ONNX Runtime's `smooth_distribution` does, which rounds to float32."""
    if not counts.any():
        return None
    empty = counts == 0
    return np.where(empty, eps, counts - eps * empty.sum() / (~empty).sum())


def draw_values(rng, kind, n):
    x = {
        "normal": rng.standard_normal,
        "t": lambda n: rng.standard_t(3, n),
        "laplace": lambda n: rng.laplace(size=n),
        "one-sided": lambda n: np.maximum(rng.standard_normal(n), 0),
        "uniform": lambda n: rng.uniform(-1, 1, n),
        "skewed": lambda n: rng.exponential(size=n) ** 2,
        "zeros": np.zeros,
    }[kind](n)
    return x.astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "t", "laplace", "one-sided", "uniform", "skewed"])
@pytest.mark.parametrize(
    ("n", "bins", "levels"), [(30, 257, 16), (3000, 257, 16), (9000, 513, 64), (20_000, 513, 256)]
)
def test_the_entropy_range_is_the_one_of_onnx_runtime(kind, n, bins, levels, monkeypatch):
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    monkeypatch.setattr(calibrate, "smooth_distribution", float64_smoothing)
    monkeypatch.setattr(calibrate, "entropy", entropy)
    x = draw_values(np.random.default_rng(n), kind, n)
    counts, edges = np.histogram(x, bins, (-np.abs(x).max(), np.abs(x).max()))
    collector = object.__new__(calibrate.HistogramCollector)
    ends = np.float64(-np.inf), np.float64(np.inf)
    _, threshold = collector.get_entropy_threshold((counts, edges, *ends), levels)
    assert edges[bins // 2 + 1 + find_entropy_slice(counts, levels)] == threshold


@pytest.mark.parametrize("kind", ["normal", "t", "one-sided", "zeros"])
@pytest.mark.parametrize("element", [Symmetric(4), Asymmetric(8)])
def test_an_entropy_range_lies_in_its_block_and_depends_on_no_part(kind, element, monkeypatch):
    x = draw_values(np.random.default_rng(0), kind, 4000).reshape(1, -1)
    together, in_parts = (chosen(Entropy(), x, element, parts) for parts in (1, 7))
    monkeypatch.setattr(ranges, "BATCH", 64)
    too_large = chosen(Entropy(), x, element, 7)
    assert together.lo == in_parts.lo == too_large.lo >= x.min()
    assert together.hi == in_parts.hi == too_large.hi <= x.max()


def test_an_entropy_range_leaves_out_a_lone_outlier():
    x = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    x[1, 7] = 100
    bounds = chosen(Entropy(), x, Symmetric(8))
    assert bounds.hi[0] > 2
    assert 2 < bounds.hi[1] < 15


@pytest.mark.parametrize("n_bits", [12, 16])
def test_with_as_many_codes_as_bins_the_entropy_range_is_the_whole(n_bits):
    x = np.random.default_rng(0).standard_t(3, (1, 500)).astype(np.float32)
    bounds = chosen(Entropy(), x, Symmetric(n_bits))
    assert (bounds.lo, bounds.hi) == (x.min(), x.max())


@pytest.mark.parametrize("p", [101, 50, 49.9, -1, float("nan"), "99", True, None])
def test_a_bad_percentile_is_named(p):
    message = rf"^range\.p must be a number above 50, up to 100, got {p!r}$"
    with pytest.raises(ValueError, match=message):
        Percentile(p=p)


def brute_force(x, element):
    """Return the best of eighty ranges for each row, by the squared errors of all."""
    absmax, tried = np.abs(x).max(axis=1).astype(float), 1 - np.arange(80) / 100
    losses = []
    for factor in tried:
        ends = factor * absmax
        params = element.fit(Bounds(-ends, ends, np.inf), FLOAT32.store).params
        error = element.round_trip(x, per_value(params)).x_hat.astype(float) - x
        losses.append(np.square(error).sum(axis=1))
    return tried[np.argmin(losses, axis=0)] * absmax


class Mixed(Element):
    """Even steps, fewer of them for blocks that reach far: its ends do not grow with the scale."""

    n_bits = 4

    def fit(self, bounds, store):
        return fit_scale(bounds.absmax / 7, store)

    def round_trip(self, x, params):
        most = np.where(params.scale > 0.2, 3, 7)
        codes = np.clip(np.rint(x / params.scale), -most, most)
        return Quantized(codes.astype(np.int8), (codes * params.scale).astype(np.float32), None)


@pytest.mark.parametrize("element", [Mixed(), Symmetric(3), Float(8, 5, 2, 57344.0)])
def test_no_range_is_given_up_that_could_win(element):
    x = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    best = chosen(Mse(), x, element)
    np.testing.assert_allclose(np.maximum(-best.lo, best.hi), brute_force(x, element), rtol=1e-12)


@pytest.mark.parametrize("element", [Asymmetric(8), Symmetric(4)])
def test_scales_that_vanish_are_searched_in_silence(element):
    x = np.random.default_rng(0).normal(0, 1e-9, (4, 64)).astype(np.float32)
    assert chosen(Mse(), x, element, scale_type=FLOAT16).hi.shape == (4,)
