import hashlib

import numpy as np
import pytest

from quantlab.measure import HISTOGRAM_BINS, error_histogram, measure
from quantlab.quant import Asymmetric, Symmetric


def test_a_bad_tensor_is_named():
    x = np.array([1, 2, np.nan, np.inf], np.float32)
    with pytest.raises(ValueError, match=r"tensor 'w' holds 2 NaN or Inf among its 4 .* \[2\]"):
        measure("w", x, Symmetric(8))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("quantizer", [Symmetric(2), Asymmetric(16)])
def test_any_shape_is_measured(shape, quantizer):
    x = np.full(shape, 0.75, np.float32)
    result = measure("x", x, quantizer)
    assert result["shape"] == list(shape)
    assert result["n_elements"] == x.size
    assert result["sha256"] == hashlib.sha256(x.tobytes()).hexdigest()


def test_a_view_is_measured_as_its_copy():
    x = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    assert measure("x", x.T[::2], Symmetric(8)) == measure("x", x.T[::2].copy(), Symmetric(8))


def test_more_than_one_block_is_one_tensor():
    x = np.tile(np.linspace(-1, 1, 1000, dtype=np.float32), 200)
    once, often = measure("x", x[:1000], Symmetric(8)), measure("x", x, Symmetric(8))
    for key in ("mae", "max_err", "rel_err", "cos_sim", "n_codes", "zeroed", "code_entropy"):
        assert often["measured"][key] == pytest.approx(once["measured"][key], rel=1e-12)


def test_the_histogram_holds_every_element():
    found = error_histogram(np.array([0, 0.1, 0.5, 0.5000001, 3]), scale=1.0)
    assert len(found["counts"]) == HISTOGRAM_BINS
    assert found["upper"] == 0.5
    assert sum(found["counts"]) == 3
    assert found["overflow"] == 2
