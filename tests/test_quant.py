import numpy as np

from quantlab.formats.uniform import FLOAT32
from quantlab.quant import (
    choose_scale_asymmetric,
    choose_scale_symmetric,
    dequantize_asym,
    dequantize_int8_to_fp32,
    quantize_asym,
    quantize_fp32_to_int8,
)


def f32(*values):
    return np.array(values, dtype=np.float32)


def test_no_floor_under_the_scale():
    assert choose_scale_symmetric(f32(5e-6)) == np.float32(5e-6 / 127)
    assert choose_scale_symmetric(f32(127 * FLOAT32.tiny)) == FLOAT32.tiny


def test_the_range_does_not_overflow():
    s, z = choose_scale_asymmetric(f32(FLOAT32.min, FLOAT32.max))
    assert s == np.float32(2 * float(FLOAT32.max) / 255)
    assert z == 0


def test_the_labs_calls_give_float32_and_int8():
    x = f32(-1.0, 0.25, 2.0)
    s = choose_scale_symmetric(x)
    q = quantize_fp32_to_int8(x, s)
    assert q.dtype == np.int8
    assert dequantize_int8_to_fp32(q, s).dtype == np.float32
    s, z = choose_scale_asymmetric(x)
    q = quantize_asym(x, s, z)
    assert q.dtype == np.int8
    assert dequantize_asym(q, s, np.int32(z)).dtype == np.float32  # float64 in the lab's own code


def test_halves_round_to_even():
    assert quantize_fp32_to_int8(f32(0.5, 1.5, 2.5, -0.5), 1.0).tolist() == [0, 2, 2, 0]
