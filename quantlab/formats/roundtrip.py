"""The round trip of block after block in memory allocated once.

Codes and values equal those of `quant` bit for bit, but for the sign of a zero.
"""

import numpy as np

from quantlab.formats.element import Codes, FloatArray, Trip, code_dtype, some
from quantlab.formats.uniform import (
    Params,
    code_range,
    dequantize,
    quantize,
    saturate,
    unclipped_codes,
)


class RoundTrip:
    """Quantizes and dequantizes flat blocks; what it returns is overwritten by the next block."""

    def __init__(self, params: Params, n_bits: int, saturating: bool, size: int) -> None:
        """Allocate for blocks of up to `size` values, of which some may saturate or none."""
        self.params, self.n_bits = params, n_bits
        self._saturating = saturating
        self._steps = np.empty(size, np.float32)
        self._shifted = np.empty(size, np.float32)
        self._codes: Codes = np.empty(size, code_dtype(n_bits))

    def __call__(self, x: FloatArray) -> Trip:
        """Return the codes of a block and the values they stand for."""
        if self._saturating:
            unclipped = unclipped_codes(x, self.params)
            codes = saturate(unclipped, self.n_bits)
            return Trip(codes, dequantize(codes, self.params), some(unclipped != codes))
        steps, codes = self._steps[: x.size], self._codes[: x.size]
        np.rint(np.divide(x, self.params.scale, out=steps), out=steps)
        shifted = steps
        if self.params.zero_point:
            zero_point = np.float32(self.params.zero_point)
            shifted = np.add(steps, zero_point, out=self._shifted[: x.size])
        np.copyto(codes, shifted, casting="unsafe")
        return Trip(codes, np.multiply(steps, self.params.scale, out=steps), None)


def saturates(params: Params, n_bits: int, lo: float, hi: float) -> bool:
    """Say whether a value from `lo` to `hi` can leave the code range or float32's.

    The map is monotone, so its ends tell. A zero point out of the code range counts too: it may
    dwarf the steps, and be rounded with them.
    """
    ends = np.array([lo, hi], np.float32)
    qmin, qmax = code_range(n_bits)
    unclipped = unclipped_codes(ends, params)
    inside = unclipped.min() >= qmin and unclipped.max() <= qmax
    with np.errstate(over="ignore"):
        unclamped = (unclipped - np.float32(params.zero_point)) * params.scale
    same = np.array_equal(unclamped, dequantize(quantize(ends, params, n_bits), params))
    return not (inside and same and qmin <= params.zero_point <= qmax)
