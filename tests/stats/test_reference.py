import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.element import Quantized
from quantlab.formats.uniform import code_range
from quantlab.stats.reference import (
    CHUNK,
    CODE_BINS,
    ERROR_BINS,
    CodeCounts,
    ErrorHistogram,
    MeasureOptions,
    NumpyEngine,
    combine_moments,
    combine_sums,
    read_table,
    round_down,
    to_bins,
)
from quantlab.stats.survey import new_maxima

RNG = np.random.default_rng(0)
NO_SQUARES = np.empty((2, 0))


def sums(x, x_hat, rel_threshold, clipped=None, step=None):
    """Return the sums of a round trip, as NumPy adds them block by block."""
    engine, options = NumpyEngine(), new_options(x.size, rel_threshold)
    parts, moments, step = [], [], step or x.size
    for start in range(0, x.size, step):
        block = slice(start, start + step)
        mask = None if clipped is None else clipped[block]
        own = options._replace(maxima=options.maxima[:0], errors=options.errors[block])
        quantized, table = Quantized(None, x_hat[block], mask), engine.new_table(None)
        parts.append(engine.gather(0, x[block], quantized, own, table))
        moments.append(engine.survey(x[block], step, np.empty(1, np.float32))[2])
    assert np.array_equal(options.errors, np.abs(x_hat - x))
    return combine_sums(parts, combine_moments(x.size, moments))


def new_options(size, rel_threshold):
    return MeasureOptions(
        round_down(rel_threshold),
        *new_maxima(size),
        1,
        np.empty(size, np.float32),
        size,
        NO_SQUARES,
    )


def exact(x, x_hat, rel_threshold, clipped):
    """Return the sums by their definitions, each rounded once."""
    err = (x_hat - x).tolist()
    a, b = x.tolist(), x_hat.tolist()

    def add(terms):
        return float(sum(map(Fraction, terms), Fraction(0)))

    pairs = list(zip(map(Fraction, a), map(Fraction, b), strict=True))
    squares = [Fraction(e) ** 2 for e in err]
    beyond = clipped.tolist()
    return {
        "n": len(a),
        "zeros": a.count(0),
        "x": add(a),
        "sq_x": add(v * v for v, _ in pairs),
        "zeroed": sum(v != 0 and w == 0 for v, w in pairs),
        "rel_count": sum(abs(v) > rel_threshold for v in a),
        "clipped": sum(beyond),
        "max_err": max(map(abs, err)),
        "err": add(err),
        "abs_err": add(map(abs, err)),
        "sq_err": add(squares),
        "rel_err": math.fsum(
            abs(e) / abs(v) for e, v in zip(err, a, strict=True) if abs(v) > rel_threshold
        ),
        "x_err": add(v * (w - v) for v, w in pairs),
        "dot": add(v * w for v, w in pairs),
        "sq_x_hat": add(w * w for _, w in pairs),
        "zero_sq_err": add(
            s for s, (_, w), c in zip(squares, pairs, beyond, strict=True) if w == 0 and not c
        ),
        "clip_sq_err": add(s for s, c in zip(squares, beyond, strict=True) if c),
    }


@given(
    arrays(np.float32, 30, elements=st.floats(-9, 9, width=32)),
    arrays(np.float32, 30, elements=st.sampled_from([-2.0, -0.25, 0.0, 0.25, 7.5])),
    arrays(bool, 30),
    st.sampled_from([0, 1e-8, 0.25]),
)
def test_each_sum_is_that_of_its_definition(x, x_hat, clipped, rel_threshold):
    found = sums(x, x_hat, rel_threshold, clipped)._asdict()
    for key, value in exact(x, x_hat, rel_threshold, clipped).items():
        # A sum of signed terms cancels: it is held to the size of what was summed.
        size = 400 if key in ("err", "x", "x_err", "dot") else 0
        assert found[key] == pytest.approx(value, rel=1e-14, abs=1e-14 * size), key


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_full_chunks_are_added_as_exactly(size):
    x = RNG.standard_normal(size).astype(np.float32)
    x_hat = np.round(x, 1)
    found = sums(x, x_hat, 0.3)
    err, a = (x_hat - x).astype(np.longdouble), x.astype(np.longdouble)
    assert found.sq_err == pytest.approx(float(np.square(err).sum()), rel=1e-14)
    assert found.abs_err == pytest.approx(float(np.abs(err).sum()), rel=1e-14)
    ratio = (np.abs(err) / np.abs(a))[np.abs(x) > 0.3]
    assert found.rel_err == pytest.approx(float(ratio.sum()), rel=1e-14)
    assert found.sq_x == pytest.approx(float(np.square(a).sum()), rel=1e-14)
    assert found.x_err == pytest.approx(float((a * (x_hat - a)).sum()), abs=1e-13 * found.abs_err)
    assert found.rel_count == ratio.size


def test_a_value_at_the_threshold_has_no_relative_error():
    x = np.tile(np.float32([0.5, 0.75, 0, -0.5]), CHUNK // 2)
    found = sums(x, x + np.float32(0.25), 0.5)
    assert (found.rel_count, found.zeros) == (x.size / 4, x.size / 4)
    assert found.rel_err == pytest.approx(x.size / 4 / 3)


def test_the_threshold_is_compared_in_float64():
    x = np.full(8, 0.1, np.float32)  # above 0.1, which float32 rounds up
    assert sums(x, x, 0.1).rel_count == 8
    assert sums(x, x, 0.2).rel_count == 0
    below = np.float32(round_down(0.1))
    assert float(below) < 0.1 < float(np.nextafter(below, np.float32(1)))
    assert round_down(0.5) == 0.5


@pytest.mark.parametrize("sizes", [[5], [2**17, 2**17], [2**16 + 1, 999]])
@pytest.mark.parametrize("n_bits", [2, 4, 7, 8, 9, 16])
def test_every_code_is_counted(n_bits, sizes):
    qmin, qmax = code_range(n_bits)
    dtype = np.int8 if n_bits <= 8 else np.int16
    rng = np.random.default_rng(n_bits)
    blocks = [rng.integers(qmin, qmax, size, endpoint=True).astype(dtype) for size in sizes]
    engine, tables = NumpyEngine(), [NumpyEngine().new_table(n_bits) for _ in range(2)]
    for number, block in enumerate(blocks):
        x = np.zeros(block.size, np.float32)
        options = new_options(x.size, 0)
        engine.gather(0, x, Quantized(block, x, None), options, tables[number % 2])
    found = read_table(np.concatenate(tables))
    codes, counts = np.unique(np.concatenate(blocks), return_counts=True)
    assert found.codes.tolist() == codes.tolist()
    assert found.counts.tolist() == counts.tolist()


@pytest.mark.parametrize("n_bits", [2, 6, 7, 8, 16])
def test_bins_hold_every_code_between_the_first_and_the_last_used(n_bits):
    qmin, qmax = code_range(n_bits)
    codes = np.array([qmin + 1, 0, qmax], np.int16)
    found = to_bins(CodeCounts(codes, np.array([5, 7, 9])), n_bits)
    first, width, counts = found["first"], found["width"], found["counts"]
    assert width == max(1, 2**n_bits // CODE_BINS)
    assert len(counts) <= CODE_BINS
    for code, count in zip(codes.tolist(), [5, 7, 9], strict=True):
        assert counts[(code - first) // width] == count
    assert sum(counts) == 21
    assert counts[0]
    assert counts[-1]


errors = arrays(np.float32, st.integers(1, 200), elements=st.floats(0, 2, width=32))


def test_the_histogram_holds_every_element():
    found = ErrorHistogram(np.array([0, 0.1, 0.5, 0.5000001, 3], np.float32), 0.5).to_dict()
    assert len(found["counts"]) == ERROR_BINS
    assert found["upper"] == 0.5
    assert sum(found["counts"]) == 3
    assert found["overflow"] == 2


@given(errors, st.floats(2**-10, 4, width=32))
def test_the_bins_are_numpys(x, scale):
    found = ErrorHistogram(x, scale / 2).to_dict()
    counts, _ = np.histogram(x.astype(np.float64), bins=ERROR_BINS, range=(0, scale / 2))
    assert found["counts"] == counts.tolist()


@given(errors, st.floats(0, 1), st.floats(2**-10, 4, width=32))
def test_quantiles_are_numpys(x, share, scale):
    exact = np.quantile(x.astype(np.float64), share)
    assert ErrorHistogram(x, scale / 2).quantile(share) == pytest.approx(
        exact, rel=1e-12, abs=1e-12
    )


def test_an_error_on_the_edge_of_the_last_bin_lies_beyond():
    scale = 1.0
    found = ErrorHistogram(np.array([0.5 * 65 / 64, 0.1], np.float32), scale / 2).to_dict()
    assert (len(found["counts"]), found["overflow"]) == (ERROR_BINS, 1)
