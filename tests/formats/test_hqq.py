"""HQQ against what the package itself gives back, within the rounding of sums of float32."""

import numpy as np
import pytest

from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.hqq import HalfQuadratic
from tests.formats import oracle

VECTORS = oracle.vectors("hqq")
X = VECTORS["x"]
KEYS = [key for key in VECTORS if key.count("-") == 2 and key[-4:] != "zero"]


@pytest.mark.parametrize("key", KEYS)
def test_groups_are_what_hqq_gives_back(key):
    dtype, bits, group = key.split("-")
    codec = HalfQuadratic(int(bits), int(group), "float32" if dtype == "large" else dtype)
    x = X * np.float32(8) if dtype == "large" else X
    x_hat, expected = oracle.reconstruct(codec, x), VECTORS[key]
    # zero points are means, which sums of another order end a few ulps from
    ulp = {"float16": 2**-10, "bfloat16": 2**-7}.get(dtype, 2**-20)
    zeros = np.repeat(np.abs(VECTORS[f"{key}-zero"]), int(group), axis=1).reshape(x.shape)
    step = np.ptp(x.reshape(-1, int(group)), axis=1) / (2 ** int(bits) - 1)
    step = np.repeat(np.maximum(step, 2e-4), int(group)).reshape(x.shape)
    assert (np.abs(x_hat - expected) <= ulp * (np.abs(expected) + (zeros + 1) * step)).all()
    if dtype != "float32" and dtype != "large":
        assert (x_hat == expected).mean() > 0.99


def test_zero_points_serve_the_error_that_hqq_minimizes():
    x = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    x_hat = oracle.reconstruct(HalfQuadratic(3, 64, "float32"), x)
    groups = x.reshape(-1, 64)
    lo, step = groups.min(1, keepdims=True), np.ptp(groups, axis=1, keepdims=True) / 7
    first = (np.rint((groups - lo) / step) * step + lo).reshape(x.shape)
    assert np.abs(x - x_hat).mean() < 0.97 * np.abs(x - first).mean()


@pytest.mark.parametrize(("n_bits", "codes"), [(1, 1), (2, 2), (3, 3.2), (4, 4), (5, 8), (8, 8)])
def test_bits_are_those_of_packed_codes(n_bits, codes):
    x = oracle.typed(np.ones((40, 64), np.float32))
    assert HalfQuadratic(n_bits, 64, "float16").open(x).bits == x.size * codes + 40 * 32


def test_what_hqq_has_not_is_refused():
    with pytest.raises(
        ContradictionError, match="must be 1, 2, 3, 4, 5, 6 or 8, the widths of mode=hqq"
    ):
        HalfQuadratic(7, 64, "float16")
    with pytest.raises(ValueError, match="must be a multiple of 8, got 60"):
        HalfQuadratic(4, 60, "float16")
    with pytest.raises(ValueError, match="must be one of float32, float16, bfloat16, got None"):
        HalfQuadratic(4, 64, None)
    with pytest.raises(UnfitError, match="its 99 values are no multiple of the 64 of a group"):
        HalfQuadratic(4, 64, "float16").open(oracle.typed(np.ones((3, 33), np.float32)))
