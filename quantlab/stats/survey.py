"""The range, moments and row maxima of a tensor, before any round trip."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np

from quantlab.formats.element import Bounds, FloatArray
from quantlab.sources.tensor import Tensor
from quantlab.stats import parallel
from quantlab.stats.reference import CHUNK, ChunkSums, Moments, NumpyEngine, combine_moments

ROW_WIDTH = 2**10  # values whose maximum is kept, at the least
MAX_ROWS = 2**20  # maxima that are kept, or hardly more
CACHED_MAXIMA = 2**23  # in all, for other runs of a process
_surveys: dict[Hashable, "Survey"] = {}
_room = CACHED_MAXIMA


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

    @property
    def bounds(self) -> Bounds:
        """The bounds of a block that is the whole tensor; the smallest magnitude is not known."""
        return Bounds(np.array([self.lo]), np.array([self.hi]), np.array([np.inf]))


class BlockSurvey(NamedTuple):
    """The least value of one block, the number that underflowed, and its moments by chunk."""

    lo: float
    underflowed: int
    moments: ChunkSums


class Surveyor:
    """Surveys the blocks of one tensor, in any order and from any thread."""

    def __init__(self, tensor: Tensor, engine: NumpyEngine) -> None:
        self.tensor, self.engine = tensor, engine
        self.width, self.maxima = new_maxima(tensor.size)

    def survey(self, start: int, x: FloatArray) -> BlockSurvey:
        """Survey the block that begins at `start`, and keep the maxima of its rows.

        Raises ValueError, naming the tensor, when it holds a value that is no finite float32.
        """
        rows = self.maxima[start // self.width : -(-(start + x.size) // self.width)]
        lo, hi, moments = self.engine.survey(x, self.width, rows)
        if not math.isfinite(hi - lo):
            self.tensor.require_finite()
        return BlockSurvey(lo + 0.0, self.tensor.underflows(start, x), moments)

    def combine(self, blocks: list[BlockSurvey]) -> Survey:
        """Combine the surveys of all blocks."""
        los, underflowed, moments = zip(*blocks, strict=True)
        return Survey(
            min(los),
            float(self.maxima.max()) + 0.0,  # not -0.0, which is equal
            self.width,
            self.maxima,
            sum(underflowed),
            combine_moments(self.tensor.size, moments),
        )


def new_maxima(size: int) -> tuple[int, FloatArray]:
    """Return the width of rows, and an array for their maxima, which begin at -inf."""
    width = min(CHUNK, max(ROW_WIDTH, 2 ** (size // MAX_ROWS).bit_length()))
    return width, np.full(-(-size // width), -math.inf, np.float32)


def survey(tensor: Tensor, threads: int, engine: NumpyEngine) -> Survey:
    """Return range, moments and row maxima of a tensor, cached by file state.

    Raises ValueError, naming the tensor, when it holds a value that is no finite float32.
    """
    cached = cached_survey(tensor)
    if cached:
        return cached
    surveyor, read = Surveyor(tensor, engine), engine.reader(tensor)

    def survey_share(starts: Iterable[int], step: int) -> list[BlockSurvey]:
        return [surveyor.survey(start, read(start, start + step)) for start in starts]

    shares = parallel.on_threads(
        survey_share, tensor.size, threads, NumpyEngine.min_share, engine.block_size
    )
    return cache_survey(tensor, surveyor.combine([block for share in shares for block in share]))


def cached_survey(tensor: Tensor) -> Survey | None:
    """Return the survey of the tensor of this name in this state of a file, if it is cached."""
    return _surveys.get((tensor.state, tensor.name)) if tensor.state is not None else None


def cache_survey(tensor: Tensor, surveyed: Survey) -> Survey:
    """Cache and return the survey of a tensor, as long as there is room."""
    global _room
    if tensor.state is not None and surveyed.maxima.size <= _room:
        _room -= surveyed.maxima.size
        _surveys[tensor.state, tensor.name] = surveyed
    return surveyed
