"""What a tensor is like before any round trip."""

import math
from typing import NamedTuple

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.tensor import Tensor
from quantlab.stats import parallel
from quantlab.stats.sums import CHUNK, ROW

ROWS = 2**20  # rows whose maxima are kept, or hardly more


class Survey(NamedTuple):
    """The range of a tensor, and the maximum of each row.

    A row is `width` elements of the tensor read flat; `underflowed` counts the values that are not
    0, but are as float32.
    """

    lo: float
    hi: float
    width: int
    maxima: FloatArray
    underflowed: int

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(-self.lo, self.hi)


def survey(tensor: Tensor, threads: int) -> Survey:
    """Return the range and the maxima.

    Raises ValueError, naming the tensor, when it is empty or holds what is not a finite float32.
    """
    if not tensor.size:
        tensor.require_finite()
    width = min(CHUNK, max(ROW, 2 ** (tensor.size // ROWS).bit_length()))
    maxima = np.empty(-(-tensor.size // width), np.float32)

    def part(starts: range) -> tuple[float, int]:
        lo, underflowed = math.inf, 0
        for start in starts:
            block = tensor.block(start, start + parallel.BLOCK)
            rows = maxima[start // width : (start + parallel.BLOCK) // width]
            row_maxima(block, width, rows)
            least = float(block.min())
            if not (math.isfinite(least) and np.isfinite(rows).all()):
                tensor.require_finite()
            lo = min(lo, least)
            underflowed += tensor.underflows(start, block)
        return lo, underflowed

    parts = parallel.on_threads(part, tensor.size, threads)
    lo, underflowed = min(lo for lo, _ in parts), sum(count for _, count in parts)
    return Survey(lo, float(maxima.max()), width, maxima, underflowed)


def row_maxima(block: FloatArray, width: int, out: FloatArray) -> None:
    """Write the maximum of each `width` values of a flat block, of which the last may be fewer."""
    whole = block.size - block.size % width
    block[:whole].reshape(-1, width).max(axis=1, out=out[: whole // width])
    out[whole // width :] = block[whole:].max(initial=-math.inf)
