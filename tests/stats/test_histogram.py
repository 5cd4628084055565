import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.stats.histogram import BINS, ErrorHistogram

errors = arrays(np.float32, st.integers(1, 200), elements=st.floats(0, 2, width=32))


def test_the_histogram_holds_every_element():
    found = ErrorHistogram(np.array([0, 0.1, 0.5, 0.5000001, 3], np.float32), 0.5).to_dict()
    assert len(found["counts"]) == BINS
    assert found["upper"] == 0.5
    assert sum(found["counts"]) == 3
    assert found["overflow"] == 2


@given(errors, st.floats(2**-10, 4, width=32))
def test_the_bins_are_numpys(x, scale):
    found = ErrorHistogram(x, scale / 2).to_dict()
    counts, _ = np.histogram(x.astype(np.float64), bins=BINS, range=(0, scale / 2))
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
    assert (len(found["counts"]), found["overflow"]) == (BINS, 1)
