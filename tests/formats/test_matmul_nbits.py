"""MatMulNBits against what ONNX Runtime itself multiplies with, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.matmul_nbits import OnnxMatMulNBits
from tests.formats import oracle

VECTORS = oracle.vectors("onnxruntime")
X = VECTORS["x"]
FILES = [key.split("-") for key in VECTORS if key.count("-") == 3]


@pytest.mark.parametrize("along", ["rows", "columns"])
@pytest.mark.parametrize(("dtype", "bits", "block", "kind"), FILES)
def test_blocks_are_what_onnx_runtime_multiplies_with(dtype, bits, block, kind, along):
    codec = OnnxMatMulNBits(int(bits), int(block), symmetric=kind == "sym", dtype=dtype)
    if along == "rows":
        x_hat = oracle.reconstruct(codec, X)
    else:
        weight = replace(oracle.typed(X.T.copy()), input_axis=0)
        x_hat = codec.open(weight).read(0, X.size).reshape(weight.shape).T
    oracle.assert_same_bits(x_hat, VECTORS[f"{dtype}-{bits}-{block}-{kind}"])


@settings(max_examples=30)
@given(st.sampled_from([(70, 33), (64, 2), (1, 5, 40)]), st.sampled_from([0, 1]), st.data())
def test_nothing_depends_on_how_a_matrix_is_cut(shape, axis, data):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    tensor = replace(oracle.typed(x), input_axis=axis + len(shape) - 2)
    codec = OnnxMatMulNBits(4, 16, symmetric=False)
    read, whole = codec.open(tensor).read, codec.open(tensor).read(0, x.size)
    start = data.draw(st.integers(0, x.size - 1))
    stop = data.draw(st.integers(start + 1, x.size))
    np.testing.assert_array_equal(read(start, stop), whole[start:stop])


@given(st.sampled_from(OnnxMatMulNBits.widths), st.booleans(), st.integers(0, 2**32))
def test_an_error_is_half_a_step_but_for_the_end_of_a_symmetric_block(n_bits, symmetric, seed):
    x = np.random.default_rng(seed).standard_normal((8, 64)).astype(np.float32)
    x_hat = oracle.reconstruct(OnnxMatMulNBits(n_bits, 64, symmetric), x)
    furthest, ends = np.abs(x).max(1), np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)
    step = furthest / 2 ** (n_bits - 1) if symmetric else ends / (2**n_bits - 1)
    # the end of the codes opposite of the furthest value is one step nearer to 0
    most = step if symmetric else step / 2
    # a zero point that is rounded shifts the codes by up to half a step
    most = most if symmetric else step
    assert (np.abs(x - x_hat).max(1) <= most * 1.0001).all()


def test_bits_count_whole_blocks_and_whole_bytes_of_zero_points():
    x = oracle.typed(np.ones((6, 70), np.float32))  # three blocks of 32 a row
    assert OnnxMatMulNBits(4, 32, symmetric=True).open(x).bits == 6 * 3 * (32 * 4 + 32)
    assert OnnxMatMulNBits(4, 32, symmetric=False).open(x).bits == 6 * (3 * (32 * 4 + 32) + 16)
    assert OnnxMatMulNBits(2, 32, symmetric=True, dtype="float16").open(x).bits == 6 * 3 * (64 + 16)


def test_what_is_no_matrix_is_left_out():
    codec = OnnxMatMulNBits(4, 32, symmetric=True)
    for shape in ((64,), (2, 3, 64)):
        with pytest.raises(UnfitError, match="it is no matrix"):
            codec.open(oracle.typed(np.ones(shape, np.float32)))
    tensor = replace(oracle.typed(np.ones((1, 3, 64), np.float32)), input_axis=0)
    with pytest.raises(UnfitError, match="inputs lie along axis 0, which is none of a matrix"):
        codec.open(tensor)


def test_what_onnx_runtime_has_not_is_refused():
    with pytest.raises(ContradictionError, match="2, 4 or 8, the widths of mode=onnx/matmulnbits"):
        OnnxMatMulNBits(5, 32, symmetric=True)
    with pytest.raises(
        ValueError, match=f"must be one of {', '.join(map(str, OnnxMatMulNBits.sizes))}, got 48"
    ):
        OnnxMatMulNBits(4, 48, symmetric=True)
    with pytest.raises(ValueError, match="must be one of False, True, got 1"):
        OnnxMatMulNBits(4, 32, symmetric=1)
