"""The six functions of lab 03, block A, under the address that notebooks have: ``quantlab.quant``.

``x_hat = float32(q - z) * s`` with ``q = clip(rint(x / s) + z, qmin, qmax)``; the map and the rules
that choose `s` and `z` are those of `formats.uniform`. Everything is per tensor, in float32.
"""

import numpy as np
from numpy.typing import ArrayLike

from quantlab.formats.element import Codes, FloatArray
from quantlab.formats.uniform import (
    Asymmetric,
    Params,
    Symmetric,
    code_range,
    dequantize,
    quantize,
    value_range,
)

__all__ = [
    "Asymmetric",
    "Params",
    "Symmetric",
    "choose_scale_asymmetric",
    "choose_scale_symmetric",
    "code_range",
    "dequantize",
    "dequantize_asym",
    "dequantize_int8_to_fp32",
    "quantize",
    "quantize_asym",
    "quantize_fp32_to_int8",
    "value_range",
]


def choose_scale_symmetric(x: ArrayLike, n_bits: int = 8) -> np.float32:
    """Choose the step that maps the largest magnitude of `x` to ``qmax``.

    Raises ValueError when `x` is empty or not finite, or `n_bits` is out of range.

    Examples
    --------
    >>> choose_scale_symmetric(np.array([-3.5, 1.0], np.float32), n_bits=4)
    np.float32(0.5)
    """
    return Symmetric(n_bits).choose(*value_range(x)).scale


def quantize_fp32_to_int8(x: ArrayLike, s: float | np.float32, n_bits: int = 8) -> Codes:
    """Round `x` to whole steps of `s`, halves to even, saturating at the code range.

    Examples
    --------
    >>> quantize_fp32_to_int8(np.array([0.25, 0.75, 99.0], np.float32), 0.5)
    array([  0,   2, 127], dtype=int8)
    """
    return quantize_asym(x, s, 0, n_bits)


def dequantize_int8_to_fp32(q: Codes, s: float | np.float32) -> FloatArray:
    """Return the float32 values of symmetric codes, of the shape of `q`.

    Examples
    --------
    >>> dequantize_int8_to_fp32(np.array([0, 2, 127], np.int8), 0.5)
    array([ 0. ,  1. , 63.5], dtype=float32)
    """
    return dequantize_asym(q, s, 0)


def choose_scale_asymmetric(x: ArrayLike, n_bits: int = 8) -> tuple[np.float32, int]:
    """Choose step and zero point so that the codes span `x` and 0.

    Raises ValueError when `x` is empty or not finite, or `n_bits` is out of range.

    Examples
    --------
    >>> choose_scale_asymmetric(np.array([-1.0, 6.5], np.float32), n_bits=4)
    (np.float32(0.5), -6)
    """
    params = Asymmetric(n_bits).choose(*value_range(x))
    return params.scale, params.zero_point


def quantize_asym(x: ArrayLike, s: float | np.float32, z: int, n_bits: int = 8) -> Codes:
    """Round `x` to whole steps of `s`, halves to even, then add `z` and saturate.

    Examples
    --------
    >>> quantize_asym(np.array([-1.0, 0.0, 6.5], np.float32), 0.5, -6, n_bits=4)
    array([-8, -6,  7], dtype=int8)
    """
    return quantize(x, Params(np.float32(s), z), n_bits)


def dequantize_asym(q: Codes, s: float | np.float32, z: int) -> FloatArray:
    """Return the float32 values of asymmetric codes, of the shape of `q`.

    Examples
    --------
    >>> dequantize_asym(np.array([-8, -6, 7], np.int8), 0.5, -6)
    array([-1. ,  0. ,  6.5], dtype=float32)
    """
    return dequantize(q, Params(np.float32(s), z))
