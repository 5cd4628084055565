import numpy as np
import pytest

from quantlab.formats.uniform import code_range
from quantlab.stats.counts import BINS, FEW, CodeCounts, Counts, merge, to_bins


@pytest.mark.parametrize("sizes", [[5], [FEW + 1], [2**17, 2**17], [2**18, 999, FEW + 7]])
@pytest.mark.parametrize("n_bits", [2, 4, 7, 8, 9, 16])
def test_every_code_is_counted(n_bits, sizes):
    qmin, qmax = code_range(n_bits)
    dtype = np.int8 if n_bits <= 8 else np.int16
    rng = np.random.default_rng(n_bits)
    blocks = [rng.integers(qmin, qmax, size, endpoint=True).astype(dtype) for size in sizes]
    counters = [CodeCounts(n_bits), CodeCounts(n_bits)]
    for number, block in enumerate(blocks):
        counters[number % 2].add(block)
    found = merge([part for each in counters for part in each.parts()])
    codes, counts = np.unique(np.concatenate(blocks), return_counts=True)
    assert found.codes.tolist() == codes.tolist()
    assert found.counts.tolist() == counts.tolist()


@pytest.mark.parametrize("n_bits", [2, 6, 7, 8, 16])
def test_bins_hold_every_code_between_the_first_and_the_last_used(n_bits):
    qmin, qmax = code_range(n_bits)
    codes = np.array([qmin + 1, 0, qmax], np.int16)
    found = to_bins(Counts(codes, np.array([5, 7, 9])), n_bits)
    first, width, counts = found["first"], found["width"], found["counts"]
    assert width == max(1, 2**n_bits // BINS)
    assert len(counts) <= BINS
    for code, count in zip(codes.tolist(), [5, 7, 9], strict=True):
        assert counts[(code - first) // width] == count
    assert sum(counts) == 21
    assert counts[0]
    assert counts[-1]
