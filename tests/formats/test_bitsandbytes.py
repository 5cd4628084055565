"""bitsandbytes' rules against what bitsandbytes itself gives back, bit for bit."""

import numpy as np
import pytest

from quantlab.formats.bitsandbytes import (
    LEVELS,
    BitsandbytesInt8,
    BitsandbytesLevels,
    dynamic_map,
)
from quantlab.formats.element import ContradictionError
from tests.formats import oracle

VECTORS = oracle.vectors("bitsandbytes")
X = VECTORS["x"]
DTYPES = "float32", "float16", "bfloat16"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("kind", LEVELS)
def test_blocks_are_what_bitsandbytes_gives_back(kind, block, dtype):
    x_hat = oracle.reconstruct(BitsandbytesLevels(4, kind, block, nested=False), X, dtype)
    oracle.assert_same_bits(x_hat, VECTORS[f"{kind}-{dtype}-{block}"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LEVELS)
def test_nested_blocks_are_what_bitsandbytes_gives_back(kind, dtype):
    x_hat = oracle.reconstruct(BitsandbytesLevels(4, kind, 32, nested=True), X, dtype)
    expected = VECTORS[f"{kind}-{dtype}-nested"]
    if dtype == "float32":  # the mean is an ulp from that of torch, which sums in float32
        mean = np.abs(X).reshape(-1, 32).max(1).mean()
        np.testing.assert_allclose(x_hat, expected, rtol=2**-22, atol=np.spacing(mean))
    else:
        oracle.assert_same_bits(x_hat, expected)


def test_a_short_block_is_what_bitsandbytes_gives_back():
    x_hat = oracle.reconstruct(BitsandbytesLevels(4, "nf4", 64, nested=False), X[:, :101])
    oracle.assert_same_bits(x_hat, VECTORS["nf4-short"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_what_bitsandbytes_gives_back(dtype):
    oracle.assert_same_bits(oracle.reconstruct(BitsandbytesInt8(8), X, dtype), VECTORS["int8"])


def test_the_dynamic_map_is_that_of_bitsandbytes():
    oracle.assert_same_bits(dynamic_map(), VECTORS["dynamic"])


def test_bits_are_counted_with_nested_magnitudes_and_their_mean():
    x = oracle.typed(np.ones((2**9, 2**8), np.float32))
    blocks = x.size // 64
    assert BitsandbytesLevels(4, "nf4", 64, nested=False).open(x).bits == 4 * x.size + 32 * blocks
    nested = BitsandbytesLevels(4, "fp4", 64, nested=True).open(x).bits
    assert nested == 4 * x.size + 8 * blocks + 32 * (blocks // 256 + 1)
    assert BitsandbytesInt8(8).open(x).bits == 8 * x.size + 32 * 2**9


def test_values_of_a_grid_come_back_as_they_are():
    for kind, levels in LEVELS.items():
        x = np.resize(levels, (4, 64)).astype(np.float32) * np.float32(2)
        codec = BitsandbytesLevels(4, kind, 64, nested=False)
        np.testing.assert_array_equal(oracle.reconstruct(codec, x), x)


def test_what_bitsandbytes_has_not_is_refused():
    with pytest.raises(ContradictionError, match="must be 4, the width of mode=bnb/nf4"):
        BitsandbytesLevels(8, "nf4", 64, nested=False)
    with pytest.raises(ValueError, match=r"mode.group_size of mode=bnb/fp4 must be one of 32, 64"):
        BitsandbytesLevels(4, "fp4", 48, nested=False)
    with pytest.raises(ValueError, match=r"must be one of False, True, got 'yes'"):
        BitsandbytesLevels(4, "fp4", 64, nested="yes")
    with pytest.raises(ContradictionError, match="must be 8, the width of mode=bnb/int8"):
        BitsandbytesInt8(4)
