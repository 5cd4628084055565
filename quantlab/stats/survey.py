"""What a tensor is like before any round trip."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled, parallel
from quantlab.stats.compiled import Kernel
from quantlab.stats.rank import new_maxima, row_maxima
from quantlab.stats.sums import Array64, Moments, Scratch, moments, stretches, total_moments

KEPT = 2**23  # maxima in all that are kept for other runs of a process
_surveys: dict[Hashable, "Survey"] = {}
_room = KEPT


class Survey(NamedTuple):
    """The range of a tensor, its moments, and the maximum of each row.

    A row is `width` elements of the tensor read flat; `underflowed` counts the values that are not
    0, but are as float32.
    """

    lo: float
    hi: float
    width: int
    maxima: FloatArray
    underflowed: int
    moments: Moments

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(-self.lo, self.hi)


class Block(NamedTuple):
    """What one block adds: its least value, how many underflowed, and its moments by chunk."""

    lo: float
    underflowed: int
    moments: Array64


class Surveyor:
    """Looks at the blocks of one tensor, in any order and from any thread."""

    def __init__(self, tensor: Tensor, kernel: Kernel | None) -> None:
        """Begin with no block."""
        self.tensor, self.kernel = tensor, kernel
        self.width, self.maxima = new_maxima(tensor.size)

    def look(self, start: int, x: FloatArray) -> Block:
        """Look at the block that begins at `start`, and keep the maxima of its rows.

        Raises ValueError, naming the tensor, when it holds what is not a finite float32.
        """
        rows = self.maxima[start // self.width : -(-(start + x.size) // self.width)]
        if self.kernel:
            lo, hi, found = self.kernel.survey(x, self.width, rows)
        else:
            row_maxima(x, self.width, rows)
            lo, hi = float(x.min()), float(rows.max())
            found = _moments(x) if math.isfinite(hi - lo) else np.empty((3, 0))
        if not math.isfinite(hi - lo):
            self.tensor.require_finite()
        return Block(lo + 0.0, self.tensor.underflows(start, x), found)

    def total(self, blocks: list[Block]) -> Survey:
        """Return what all blocks add up to."""
        los, underflowed, columns = zip(*blocks, strict=True)
        return Survey(
            min(los),
            float(self.maxima.max()) + 0.0,  # not -0.0, which is equal
            self.width,
            self.maxima,
            sum(underflowed),
            total_moments(self.tensor.size, columns),
        )


def survey(tensor: Tensor, threads: int, kernel: Kernel | None = None) -> Survey:
    """Return what a tensor is like, known of the same state of its file or looked up.

    Raises ValueError, naming the tensor, when it holds what is not a finite float32.
    """
    known = cached(tensor)
    if known:
        return known
    surveyor = Surveyor(tensor, kernel)
    read = kernel.reader(tensor) if kernel else tensor.block

    def part(starts: Iterable[int], step: int) -> list[Block]:
        return [surveyor.look(start, read(start, start + step)) for start in starts]

    block = compiled.BLOCK if kernel else parallel.BLOCK
    least = parallel.BLOCKS * parallel.BLOCK
    blocks = parallel.on_threads(part, tensor.size, threads, least, block)
    return cache(tensor, surveyor.total([block for blocks in blocks for block in blocks]))


def cached(tensor: Tensor) -> Survey | None:
    """Return what is known of the tensor of this name in this state of a file."""
    return _surveys.get((tensor.state, tensor.name)) if tensor.state is not None else None


def cache(tensor: Tensor, found: Survey) -> Survey:
    """Keep and return what a tensor is like, as long as there is room."""
    global _room
    if tensor.state is not None and found.maxima.size <= _room:
        _room -= found.maxima.size
        _surveys[tensor.state, tensor.name] = found
    return found


def _moments(x: FloatArray) -> Array64:
    scratch = Scratch(x.size, rows=1)
    return np.concatenate([moments(x[each], scratch) for each in stretches(x.size)], axis=1)
