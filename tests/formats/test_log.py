import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.blocks import Group, PerChannel, PerTensor
from quantlab.formats.format import Format
from quantlab.formats.log import Log
from quantlab.formats.uniform import code_range
from quantlab.sources.lab import VerbProbs
from tests.formats import oracle

wide = st.floats(-oracle.FLT_MAX, oracle.FLT_MAX, width=32)
values = arrays(np.float32, st.integers(1, 40), elements=wide | st.floats(-1, 1, width=32))
widths = st.integers(3, 16)


def check_block(x, codes, x_hat, n_bits):
    """Require one block to be what its definition says."""
    magnitudes = [abs(v) for v in x if v]
    if not magnitudes:
        assert not any(x_hat)
        return
    a, m = max(magnitudes), min(magnitudes)
    one_sign = min(x) >= 0 or max(x) <= 0
    n_codes = 2**n_bits - 1 if one_sign else 2 ** (n_bits - 1) - 1
    d = oracle.f32(math.log2(a / m) / (n_codes - 1))
    for v, code, got in zip(x, codes, x_hat, strict=True):
        if not v:
            assert got == 0
            continue
        position = math.log2(a / abs(v)) / d if d else 0.0
        near = {round(position - 1e-7), round(position + 1e-7), round(position)}
        allowed = [min(max(k, 0), n_codes - 1) for k in near]  # two at a tie, the logarithm's ulp
        answers = [math.copysign(a * 2.0 ** (-k * d), v) for k in allowed]
        assert any(abs(got - answer) <= abs(answer) * 2.0**-23 + 2.0**-149 for answer in answers)
        assert code != zero_code(x, n_bits)


def zero_code(x, n_bits):
    qmin, qmax = code_range(n_bits)
    return qmin if min(x) >= 0 else qmax if max(x) <= 0 else 0


@given(values, widths)
def test_it_is_its_definition(x, n_bits):
    codes, x_hat, clipped, scales = oracle.round_trip(Format(Log(n_bits)), x)
    check_block(x.tolist(), codes.tolist(), x_hat.tolist(), n_bits)
    assert scales.largest == np.abs(x).max()
    assert not clipped.any()


@pytest.mark.parametrize("block", [PerTensor(), PerChannel(axis=-1), PerChannel(), Group(7)])
@pytest.mark.parametrize("shape", [(), (50,), (5, 23), (3, 4, 9)])
def test_blocks_have_parameters_of_their_own(block, shape):
    x = np.asarray(oracle.awkward(np.random.default_rng(1), shape))
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(5), block), x)
    flat = x.ravel()
    for members in oracle.blocks_of(shape, block):
        check_block(flat[members].tolist(), codes[members].tolist(), x_hat[members].tolist(), 5)


@given(values, widths)
def test_laws_of_the_logarithmic_grid(x, n_bits):
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(n_bits)), x)
    qmin, qmax = code_range(n_bits)
    assert codes.dtype == (np.int8 if n_bits <= 8 else np.int16)
    assert qmin <= codes.min() <= codes.max() <= qmax
    assert np.array_equal(np.sign(x), np.sign(x_hat)) or (np.abs(x[x != 0]).min() < 2.0**-140)
    assert np.array_equal(codes == zero_code(x.tolist(), n_bits), x == 0) or not x.any()
    order = np.argsort(x, kind="stable")
    assert (np.diff(codes[order].astype(int)) >= 0).all()
    assert (np.diff(x_hat[order].astype(float)) >= 0).all()
    greatest = np.abs(x) == np.abs(x).max()
    assert np.array_equal(x_hat[greatest], x[greatest])
    for code in np.unique(codes):
        assert np.unique(x_hat[codes == code]).size == 1


@given(arrays(np.float32, st.integers(2, 40), elements=st.floats(2.0**-20, 1, width=32)), widths)
def test_the_relative_error_is_half_a_step_at_most(x, n_bits):
    _, x_hat, _, _ = oracle.round_trip(Format(Log(n_bits)), x)
    octaves = math.log2(x.max() / x.min()) / (2**n_bits - 2)
    ratio = np.abs(np.log2(x_hat.astype(float) / x))
    assert ratio.max() <= octaves / 2 + 20 * 2.0**-24 + 2.0**-22


@given(values, widths, st.integers(-30, 30))
def test_a_power_of_two_scales_what_comes_back(x, n_bits, power):
    assume(np.abs(x).max() < 2.0**90)
    assume(not x.any() or np.abs(x[x != 0]).min() > 2.0**-90)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(n_bits)), x)
    again, scaled, _, _ = oracle.round_trip(Format(Log(n_bits)), np.ldexp(x, power))
    assert np.array_equal(codes, again)
    assert np.array_equal(scaled, np.ldexp(x_hat, power))


def test_eight_bits_of_the_labs_verb_probs():
    x = next(VerbProbs(42, 600, 1.5).tensors()).array
    _, x_hat, _, _ = oracle.round_trip(Format(Log(8)), x)
    error = x_hat.astype(float) - x
    shown = np.abs(x) > 1e-8
    assert np.mean(np.abs(error[shown]) / x[shown]) == pytest.approx(0.0085, abs=5e-5)
    assert x_hat.all()
    ratio = np.square(x.astype(float)).sum() / np.square(error).sum()
    assert 10 * np.log10(ratio) == pytest.approx(40.1, abs=0.05)


def test_one_sign_has_all_the_codes():
    x = np.exp2(-np.arange(7)).astype(np.float32)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(3)), x)
    assert codes.tolist() == [3, 2, 1, 0, -1, -2, -3]
    assert np.array_equal(x_hat, x)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(3)), -x)
    assert codes.tolist() == [-4, -3, -2, -1, 0, 1, 2]
    assert np.array_equal(x_hat, -x)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(3)), np.float32([4, -2, 1, 0]))
    assert codes.tolist() == [3, -2, 1, 0]
    assert x_hat.tolist() == [4, -2, 1, 0]


@pytest.mark.parametrize("n_bits", [1, 2])
def test_two_bits_are_too_few(n_bits):
    with pytest.raises(ValueError, match=rf"^n_bits must be .*, got {n_bits}$"):
        Log(n_bits)
    with pytest.raises(ValueError, match=r"^n_bits must be from 3 to 16 with mode=log, got 2$"):
        Log(2)
