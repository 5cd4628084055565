"""bitsandbytes' 4-bit blocks and the rows of LLM.int8, by the rules of its kernels in PyTorch.

::

    nf4, fp4  q     = level nearest to clip(x (1 / absmax), -1, 1), the lower one at a midpoint
              x_hat = level[q] absmax, rounded to the type of the tensor
    int8      q     = rint(x (127 (1 / absmax))), of a row in float16
              x_hat = q absmax float32(1 / 127)

Blocks are of the flat tensor, and the last may be short. Nested, absmax less its mean over the
tensor is stored in 8 bits: of the dynamic map, times a float32 for each 256 of them.
"""

from math import prod

import numpy as np

from quantlab.formats.blocks import Shape
from quantlab.formats.element import FloatArray
from quantlab.formats.floats import NF4
from quantlab.formats.grouped import (
    GroupCodec,
    Groups,
    GroupValues,
    group_absmax,
    require_option,
    round_to_type,
)
from quantlab.formats.scales import FLOAT16, FLOAT32

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
MIN_ABSMAX = np.float32(1e-38)
FP4_MAGNITUDES = np.array([0.0625, 2, 3, 4, 6, 8, 12], np.float32) / np.float32(12)
LEVELS = {
    "nf4": NF4,
    "fp4": np.concatenate([-FP4_MAGNITUDES[::-1], np.zeros(1, np.float32), FP4_MAGNITUDES]),
}
NESTED_BITS, NESTED_BLOCK = 8, 256  # of the magnitudes of blocks
DYNAMIC_DECADES = 7
INT8_MAX = np.float32(127)


class BitsandbytesLevels(GroupCodec):
    """Blocks of levels times their largest magnitude, which is nested or float32.

    `levels` is nf4 or fp4.
    """

    runtime, widths, group_bits = "bitsandbytes", (4,), FLOAT32.bits

    def __init__(self, n_bits: int, levels: str, group_size: int, nested: bool) -> None:
        self.mode = f"bnb/{levels}"
        super().__init__(n_bits)
        require_option("mode.group_size", group_size, BLOCKS, self.mode)
        require_option("mode.nested", nested, (False, True), self.mode)
        self.group_size, self.nested = group_size, nested
        self.levels = LEVELS[levels]
        self.midpoints = (self.levels[1:] + self.levels[:-1]) / np.float32(2)

    def group_width(self, shape: Shape) -> int:
        """Return the size of a block of the flat tensor."""
        self.require_matrix(shape)
        return min(int(self.group_size or 1), prod(shape))

    def count_bits(self, groups: Groups) -> int:
        """Return the size of codes and magnitudes."""
        if not self.nested:
            return super().count_bits(groups)
        outer = -(-groups.n_groups // NESTED_BLOCK) + 1  # with the mean
        magnitudes = NESTED_BITS * groups.n_groups + FLOAT32.bits * outer
        return self.n_bits * groups.size + magnitudes

    def choose_constants(self, groups: Groups) -> FloatArray | None:
        """Return the magnitudes of blocks as they are stored nested."""
        if not self.nested:
            return None
        absmax = np.empty((groups.n_groups, 1), np.float32)
        for first, last in groups.chunks():
            absmax[first:last] = group_absmax(groups.read(first, last))
        return _nest(absmax)

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct blocks."""
        absmax = group_absmax(groups.x)
        bounded = np.maximum(absmax, MIN_ABSMAX)
        is_short = groups.x.shape[1] != self.group_size
        scaled = groups.x / bounded if is_short else groups.x * (np.float32(1) / bounded)
        q = np.zeros(scaled.shape, np.uint8)
        for midpoint in self.midpoints:
            q += scaled > midpoint
        x_hat = np.take(self.levels, q)
        x_hat *= absmax if groups.constants is None else groups.constants
        return round_to_type(x_hat, groups.dtype)


def _nest(absmax: FloatArray) -> FloatArray:
    """Quantize the magnitudes of all blocks, ``(blocks, 1)``, and return what comes back."""
    # Exact where torch sums float32 in an order that depends on the machine's vectors.
    mean = np.float32(absmax.mean(dtype=np.float64))
    levels = dynamic_map()
    midpoints = (levels[1:] + levels[:-1]) / np.float32(2)
    stored = np.subtract(absmax.reshape(-1), mean, dtype=np.float32)
    for start in range(0, stored.size, NESTED_BLOCK):
        block = stored[start : start + NESTED_BLOCK]
        outer = np.maximum(np.abs(block).max(), MIN_ABSMAX)
        scaled = block * (np.float32(1) / outer) if len(block) == NESTED_BLOCK else block / outer
        block[:] = levels[np.searchsorted(midpoints, scaled)] * outer
    stored += mean
    return stored[:, None]


def dynamic_map() -> FloatArray:
    """Return the 256 sorted numbers of the dynamic type: a decade has half the codes of the next.

    Those of a decade are the means of neighbours in ``torch.linspace(0.1, 1)``, which fuses product
    and sum: taken in float64 and rounded once.
    """
    numbers = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for decade in range(DYNAMIC_DECADES):
        n = 2**decade
        step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(n))
        index = np.arange(n + 1)
        rising = np.float64(np.float32(0.1)) + step * index
        ends = np.where(index < (n + 1) // 2, rising, 1 - step * (n - index)).astype(np.float32)
        means = (ends[1:] + ends[:-1]) / np.float32(2)
        means *= np.float32(10.0 ** (decade - DYNAMIC_DECADES + 1))
        numbers += [means, -means]
    return np.sort(np.concatenate(numbers))


class BitsandbytesInt8(GroupCodec):
    """A float32 scale a row of float16, symmetric; LLM.int8 without columns of outliers."""

    runtime, mode, widths = "bitsandbytes", "bnb/int8", (8,)
    dtype, group_bits = FLOAT16.name, FLOAT32.bits

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct rows; one of zeros comes back as zeros."""
        absmax = group_absmax(groups.x)
        # torch divides a number by a tensor so: by way of its reciprocal
        inverse = np.zeros_like(absmax)
        np.divide(np.float32(1), absmax, out=inverse, where=absmax > 0)
        q = groups.x * (inverse * INT8_MAX)
        np.rint(q, out=q)
        q *= absmax
        q *= np.float32(1) / INT8_MAX
        return q
