"""torchao's rules against what torchao itself gives back, bit for bit."""

import numpy as np
import pytest

from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.torchao import TorchaoInt4, TorchaoInt8, TorchaoIntx
from tests.formats import oracle

VECTORS = oracle.vectors("torchao")
X = VECTORS["x"]
INTX = [key.split("-")[1:] for key in VECTORS if key.startswith("intx-")]
DTYPES = "float32", "float16", "bfloat16"


@pytest.mark.parametrize("group", [32, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int4_is_what_tinygemm_gives_back(group, dtype):
    x_hat = oracle.reconstruct(TorchaoInt4(4, group), X, dtype)
    oracle.assert_same_bits(x_hat, VECTORS[f"int4-{group}"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_what_torchao_gives_back(dtype):
    x_hat = oracle.reconstruct(TorchaoInt8(8), X, dtype)
    oracle.assert_same_bits(x_hat, VECTORS[f"int8-{dtype}"])


@pytest.mark.parametrize(("dtype", "bits", "mapping", "group"), INTX)
def test_intx_is_what_torchao_gives_back(dtype, bits, mapping, group):
    size = None if group == "256" else int(group)  # a whole row
    x_hat = oracle.reconstruct(TorchaoIntx(int(bits), mapping, size, dtype), X)
    oracle.assert_same_bits(x_hat, VECTORS[f"intx-{dtype}-{bits}-{mapping}-{group}"])


def test_bits_are_counted_in_the_type_of_the_tensor():
    x = oracle.typed(X, "bfloat16")
    assert TorchaoInt4(4, 64).open(x).bits == X.size * (4 + 32 / 64)
    assert TorchaoInt8(8).open(x).bits == X.size * (8 + 32 / 256)
    assert TorchaoIntx(3, "symmetric", 32).open(x).bits == X.size * (3 + 16 / 32)
    assert TorchaoIntx(3, "asymmetric", 32).open(x).bits == X.size * (3 + 19 / 32)
    assert TorchaoIntx(3, "symmetric", None, "float32").open(x).bits == X.size * (3 + 32 / 256)


def test_what_torchao_has_not_is_refused():
    with pytest.raises(ContradictionError, match="must be 4, the width of mode=torchao/int4"):
        TorchaoInt4(8, 64)
    with pytest.raises(ContradictionError, match="must be 8, the width of mode=torchao/int8"):
        TorchaoInt8(4)
    with pytest.raises(ContradictionError, match="2, 3, 4, 5, 6, 7 or 8, the widths"):
        TorchaoIntx(9, "symmetric", 32)
    with pytest.raises(ValueError, match="of mode=torchao/int4 must be one of 32, 64, 128, 256"):
        TorchaoInt4(4, 16)
    with pytest.raises(ValueError, match="must be one of symmetric, asymmetric, got 'sym'"):
        TorchaoIntx(4, "sym", 32)
    with pytest.raises(ValueError, match="must be a whole number above 0, or null for rows, got 0"):
        TorchaoIntx(4, "symmetric", 0)
    with pytest.raises(UnfitError, match="rows of 256 values are no multiple of the 48 of a group"):
        TorchaoIntx(4, "symmetric", 48).open(oracle.typed(X))


def test_a_grid_of_its_own_comes_back_as_it_is():
    codes = np.arange(-8, 8, dtype=np.float32)
    x = np.tile(codes, (2, 2)) + np.float32(0)
    np.testing.assert_array_equal(oracle.reconstruct(TorchaoIntx(4, "asymmetric", 16), x), x)
