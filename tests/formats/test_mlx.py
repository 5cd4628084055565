"""MLX's rules against what mlx itself gives back, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.formats.element import ContradictionError
from quantlab.formats.mlx import MlxAffine, MlxFp4
from tests.formats import oracle

VECTORS = oracle.vectors("mlx")
X = VECTORS["x"]
AFFINE = [key.split("-") for key in VECTORS if key.count("-") == 2]


@pytest.mark.parametrize(("dtype", "bits", "group"), AFFINE)
def test_affine_is_what_mlx_gives_back(dtype, bits, group):
    x_hat = oracle.reconstruct(MlxAffine(int(bits), int(group), dtype), X)
    oracle.assert_same_bits(x_hat, VECTORS[f"{dtype}-{bits}-{group}"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_mxfp4_is_what_mlx_gives_back(dtype):
    x_hat = oracle.reconstruct(MlxFp4(4), X, dtype)
    oracle.assert_same_bits(x_hat, VECTORS[f"{dtype}-mxfp4"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_have_the_type_of_the_tensor(dtype):
    codec = MlxAffine(4, 32)
    typed, same = oracle.typed(X, dtype), oracle.reconstruct(MlxAffine(4, 32, dtype), X)
    assert codec.open(typed).bits == X.size * (4 + 32 / 32)
    oracle.assert_same_bits(oracle.reconstruct(codec, X, dtype), same)
    assert codec.open(oracle.typed(X, "float32")).bits == X.size * (4 + 64 / 32)
    assert MlxFp4(4).open(typed).bits == X.size * (4 + 8 / 32)


@given(st.sampled_from(MlxAffine.widths), st.sampled_from([32, 64]), st.integers(0, 2**32))
def test_no_error_is_more_than_a_step(n_bits, group, seed):
    # 0 becomes a value, which may take the far end of a group beyond the codes by half a step
    x = np.random.default_rng(seed).standard_normal((2, 128)).astype(np.float32)
    groups = x.reshape(-1, group)
    ends = groups.max(1) - groups.min(1)
    error = np.abs(oracle.reconstruct(MlxAffine(n_bits, group), x) - x).reshape(-1, group)
    assert (error.max(1) <= ends / (2**n_bits - 1) * 1.5).all()


@pytest.mark.parametrize("n_bits", [1, 7, 9, None, 4.5])
def test_a_width_that_mlx_has_not_is_refused(n_bits):
    with pytest.raises(ContradictionError) as caught:
        MlxAffine(n_bits, 64)
    assert str(caught.value) == (
        f"n_bits must be 2, 3, 4, 5, 6 or 8, the widths of mode=mlx/affine, got {n_bits!r}"
    )


@pytest.mark.parametrize("group_size", [16, 256, None, "64", True])
def test_a_group_that_mlx_has_not_is_refused(group_size):
    with pytest.raises(ValueError, match=r"^mode.group_size of mode=mlx/affine must be one of 32"):
        MlxAffine(4, group_size)


def test_a_type_that_mlx_has_not_is_refused():
    with pytest.raises(ValueError, match=r"one of null, float32, float16, bfloat16, got 'int8'"):
        MlxAffine(4, 64, "int8")
