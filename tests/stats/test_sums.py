import numpy as np
import pytest

from quantlab.stats.sums import CHUNK, exact_sums, fast_sums, total

RNG = np.random.default_rng(0)


def sums(x, x_hat, rel_threshold, *, fast):
    if not fast:
        chunks = (slice(start, start + CHUNK) for start in range(0, x.size, CHUNK))
        return total(exact_sums(x[chunk], x_hat[chunk], rel_threshold) for chunk in chunks)
    scratch = np.empty((3, x.size), np.float32)
    np.abs(np.subtract(x_hat, x, out=scratch[0]), out=scratch[1])
    return total([fast_sums(x, x_hat, scratch, rel_threshold, positive=bool((x >= 0).all()))])


@pytest.mark.parametrize("fast", [False, True])
def test_a_value_at_the_threshold_has_no_relative_error(fast):
    x = np.tile(np.float32([0.5, 0.75, 0, -0.5]), CHUNK // 2)
    x_hat = x + np.float32(0.25)
    found = sums(x, x_hat, 0.5, fast=fast)
    assert (found.rel_count, found.zeros) == (x.size / 4, x.size / 4)
    assert found.rel_err == pytest.approx(x.size / 4 / 3)


def test_the_threshold_is_compared_in_float64():
    x = np.full(8, 0.1, np.float32)  # above 0.1, which float32 rounds up
    assert sums(x, x, 0.1, fast=False).rel_count == 8
    assert sums(x, x, 0.2, fast=False).rel_count == 0


@pytest.mark.parametrize("shift", [0, 4])
def test_fast_sums_are_the_exact_ones_to_1e_7(shift):
    x = RNG.standard_normal(3 * CHUNK).astype(np.float32) + np.float32(shift)
    x = np.abs(x) if shift else x
    x_hat = np.round(x, 1)
    fast, exact = (sums(x, x_hat, 0.3, fast=each) for each in (True, False))
    for key in ("n", "zeros", "rel_count", "max_err"):
        assert getattr(fast, key) == getattr(exact, key)
    for key in ("abs_err", "sq_err", "rel_err", "sq_x", "dot"):
        assert getattr(fast, key) == pytest.approx(getattr(exact, key), rel=1e-7), key
    for key in ("err", "x_err"):  # signed terms cancel: held to the size of what was summed
        assert getattr(fast, key) == pytest.approx(getattr(exact, key), abs=1e-7 * exact.abs_err)
    assert np.isnan(fast.x) if not shift else fast.x == pytest.approx(exact.x, rel=1e-12)
