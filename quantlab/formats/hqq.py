"""Half-quadratic quantization (HQQ): zero points that are no whole numbers, found by iterating.

::

    scale = (2^n - 1) / (hi - lo), at most 2e4, 1 where hi - lo <= 1e-4;   zero = -lo scale
    20 times      q    = clip(rint(x scale + zero), 0, 2^n - 1)
                  d    = x - (q - zero) / scale;  e = sign(d) max(|d| - |d|^-0.3 / 10, 0)
                  zero = mean of q - (x - e) scale
    x_hat = (q - zero) / scale, with zero and 1 / scale in the type that is computed in

It stops early where the mean error of the whole tensor did not fall: that number of iterations is
all that its groups share. The 4-bit zero begins as a whole number. This is the default solver of
the package, ``optimize_weights_proximal_legacy`` on a CPU, which leaves ``kappa`` unused.
"""

from math import prod
from typing import Any

import numpy as np

from quantlab.formats.blocks import Shape, UnfitError
from quantlab.formats.element import FloatArray
from quantlab.formats.grouped import (
    GroupCodec,
    Groups,
    GroupValues,
    group_ends,
    require_option,
    round_to_type,
)
from quantlab.formats.scales import FLOAT_TYPES, Array64

GROUP_FACTOR = 8  # of a group's size
MAX_SCALE, MIN_RANGE = np.float32(2e4), np.float32(1e-4)
ITERATIONS, LP_NORM, BETA = 20, 0.7, 10
MIN_SHRUNK = 1 / BETA ** (1 / (2 - LP_NORM))  # smaller errors become 0
ROUNDED_ZERO_BITS = 4  # codes whose zero point begins as a whole number
BYTE_BITS, WORD_BITS, CODES_PER_WORD = 8, 32, 10  # 5 and 6 bits take bytes, of 3 ten share a word


class HalfQuadratic(GroupCodec):
    """Groups of the flat tensor with a scale and a zero point of `dtype`, the compute_dtype."""

    runtime, mode, widths = "HQQ", "hqq/affine", (1, 2, 3, 4, 5, 6, 8)

    def __init__(self, n_bits: int, group_size: int, dtype: str) -> None:
        super().__init__(n_bits)
        require_option("mode.dtype", dtype, tuple(FLOAT_TYPES), self.mode)
        if type(group_size) is not int or group_size < 1 or group_size % GROUP_FACTOR:
            raise ValueError(
                f"mode.group_size of mode={self.mode} must be a multiple of {GROUP_FACTOR}, "
                f"got {group_size!r}"
            )
        self.group_size, self.stored = group_size, FLOAT_TYPES[dtype]

    def group_width(self, shape: Shape) -> int:
        """Return the size of a group; raises UnfitError unless groups divide the flat tensor."""
        self.require_matrix(shape)
        width = int(self.group_size or 1)
        if prod(shape) % width:
            raise UnfitError(
                f"its {prod(shape)} values are no multiple of the {width} of a group, which "
                f"{self.runtime} refuses"
            )
        return width

    def count_bits(self, groups: Groups) -> int:
        """Return the size of codes as they are packed, scales and zero points."""
        if self.n_bits == 3:
            codes = WORD_BITS * groups.width * -(-groups.n_groups // CODES_PER_WORD)
        else:
            codes = groups.size * (BYTE_BITS if self.n_bits > 4 else self.n_bits)
        return codes + 2 * self.stored.bits * groups.n_groups

    def choose_constants(self, groups: Groups) -> int:
        """Return the number of iterations until the mean error of the tensor does not fall."""
        sums = np.zeros(ITERATIONS)
        for span in groups.chunks():
            *_, errors = self._solve(groups.read(*span), ITERATIONS)
            sums += errors
        means = (sums / groups.size).astype(np.float32)
        rises = np.flatnonzero(means[1:] >= means[:-1])
        return int(rises[0]) + 2 if rises.size else ITERATIONS

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct groups."""
        codes, scale, zero, _ = self._solve(groups.x, groups.constants)
        x_hat = codes - round_to_type(zero, self.stored)
        x_hat = round_to_type(x_hat, self.stored)
        x_hat *= round_to_type(np.float32(1) / scale, self.stored)
        return round_to_type(np.ascontiguousarray(x_hat.T), self.stored)

    def _solve(
        self, x: FloatArray, iterations: int
    ) -> tuple[FloatArray, FloatArray, FloatArray, Array64]:
        """Iterate on some groups, transposed: what belongs to a group then adds up quickly.

        Return codes ``(width, groups)``, scales and zeros of groups, sums of errors by iteration.
        """
        qmax = np.float32(2**self.n_bits - 1)
        lo, hi = (ends[:, 0] for ends in group_ends(x))
        wide = hi - lo > MIN_RANGE
        scale = np.ones_like(lo)
        np.divide(np.float32(1), hi - lo, out=scale, where=wide)
        scale = np.minimum(np.where(wide, scale * qmax, scale), MAX_SCALE)
        zero = -lo * scale
        if self.n_bits == ROUNDED_ZERO_BITS:
            zero = np.rint(zero)
        scaled = np.multiply(x.T, scale, order="C")
        total = scaled.sum(axis=0, dtype=np.float64)
        errors = np.zeros(iterations)
        limit = np.float32(MIN_SHRUNK) * scale
        for number in range(iterations):
            codes, distance = _quantize(scaled, zero, qmax)
            shrunk = _sum_shrunk(distance, scale, limit)
            np.abs(distance, out=distance)
            errors[number] = (distance.sum(axis=0) / scale).sum(dtype=np.float64)
            zero = ((codes.sum(axis=0) - total + shrunk) / len(codes)).astype(np.float32)
        return _quantize(scaled, zero, qmax)[0], scale, zero, errors


def _quantize(
    scaled: FloatArray, zero: FloatArray, qmax: np.float32
) -> tuple[FloatArray, FloatArray]:
    """Return codes, and how far they are from the values, in steps."""
    exact = scaled + zero
    codes = np.rint(exact)
    np.clip(codes, 0, qmax, out=codes)
    exact -= codes
    return codes, exact


def _sum_shrunk(distance: FloatArray, scale: FloatArray, limit: FloatArray) -> Any:
    """Return the sum of the shrunk errors of each group, in steps.

    Errors up to a `limit` become 0: of most weights all of them.
    """
    smallest = float(limit.min())
    if distance.max() <= smallest and distance.min() >= -smallest:
        return 0.0
    shrunk = np.abs(distance)
    shrunk /= scale
    power = np.log(shrunk)  # NumPy's power takes several times as long
    power *= np.float32(LP_NORM - 1)
    np.exp(power, out=power)
    power /= np.float32(BETA)
    shrunk -= power
    np.maximum(shrunk, 0, out=shrunk)
    return np.copysign(shrunk, distance, out=shrunk).sum(axis=0) * scale
