import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.stats.sums import (
    CHUNK,
    Scratch,
    moments,
    partial_sums,
    rounded_down,
    stretches,
    total,
    total_moments,
)

RNG = np.random.default_rng(0)


def sums(x, x_hat, rel_threshold, clipped=None, step=None):
    """Return the total over full chunks and a short one, or over shorter stretches."""
    blocks = stretches(x.size)
    if step:
        blocks = [slice(start, start + step) for start in range(0, x.size, step)]
    scratch, partials, columns = Scratch(x.size), [], []
    for each in blocks:
        err = x_hat[each] - x[each]
        beyond = None if clipped is None else clipped[each]
        columns.append(moments(x[each], scratch))
        partials.append(
            partial_sums(x[each], x_hat[each], (err, np.abs(err)), rel_threshold, scratch, beyond)
        )
    return total(partials, total_moments(x.size, columns))


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
    below = rounded_down(0.1)
    assert float(below) < 0.1 < float(np.nextafter(below, np.float32(1)))
    assert rounded_down(0.5) == 0.5
