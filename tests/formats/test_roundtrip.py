import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.roundtrip import RoundTrip, saturates
from quantlab.formats.uniform import (
    FLOAT32,
    Asymmetric,
    Params,
    Symmetric,
    dequantize,
    quantize,
    unclipped_codes,
    value_range,
)

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize("policy", [None, "widen", "clip", "wide_int"])
@given(
    arrays(np.float32, st.integers(1, 30), elements=st.one_of(finite, st.floats(-9, 9, width=32))),
    st.integers(2, 16),
)
@example(np.array([FLOAT32.min, FLOAT32.max], np.float32), 8)  # x_hat would overflow
@example(np.array([1e9, 1e9 + 64], np.float32), 8)  # wide_int: a zero point of nine digits
@example(np.array([-154.5, 100.5], np.float32), 8)  # a tie at both ends: one code too many
def test_it_equals_the_plain_functions_bit_for_bit(policy, x, n_bits):
    quantizer = Asymmetric(n_bits, policy) if policy else Symmetric(n_bits)
    params = quantizer.choose(*value_range(x))
    trip = RoundTrip(params, n_bits, saturates(params, n_bits, *value_range(x)), x.size)
    codes, x_hat, clipped = trip(x)
    plain = quantize(x, params, n_bits)
    assert codes.dtype == plain.dtype
    assert codes.tolist() == plain.tolist()
    assert x_hat.tolist() == dequantize(plain, params).tolist()
    beyond = unclipped_codes(x, params) != plain
    assert beyond.tolist() == clipped.tolist() if beyond.any() else clipped is None


@pytest.mark.parametrize(
    ("quantizer", "lo", "hi", "saturating"),
    [
        (Symmetric(8), -1, 1, False),
        (Asymmetric(8), 0, 255, False),  # both ends of the code range are used
        (Asymmetric(8), -255, 0, False),
        (Asymmetric(8), -1, 3, False),
        (Asymmetric(8, "clip"), 5, 6, True),
        (Asymmetric(8, "wide_int"), 5, 6, True),
        (Asymmetric(8), float(FLOAT32.min), float(FLOAT32.max), True),
    ],
)
def test_only_what_can_saturate_is_said_to(quantizer, lo, hi, saturating):
    assert saturates(quantizer.choose(lo, hi), quantizer.n_bits, lo, hi) == saturating


def test_what_lies_beyond_the_code_range_is_said_of_each_value():
    trip = RoundTrip(Params(np.float32(1), 0), 4, saturating=True, size=3)
    assert trip(np.float32([9, -9, 1])).clipped.tolist() == [True, True, False]
    assert trip(np.float32([7, -8, 0])).clipped is None
