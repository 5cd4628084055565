import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.roundtrip import RoundTrip, saturates
from quantlab.formats.uniform import (
    FLOAT32,
    Asymmetric,
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
    codes, x_hat = trip(x)
    plain = quantize(x, params, n_bits)
    assert codes.dtype == plain.dtype
    assert codes.tolist() == plain.tolist()
    assert x_hat.tolist() == dequantize(plain, params).tolist()
    assert trip.clipped == np.count_nonzero(unclipped_codes(x, params) != plain)
