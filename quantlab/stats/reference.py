"""The reference engine: the sums, code counts and error histogram of a round trip, in plain NumPy.

The error ``x_hat - x`` is taken in float32, as in the lab, and everything is summed in float64,
chunk by chunk. Sums of chunks are combined exactly rounded (`math.fsum`), so figures do not depend
on how a tensor was cut into blocks or which thread summed which.

`NumpyEngine` is the interface of both engines. `stats.compiled` is the fast one: it overrides every
method, takes all constants and the fields of `CHUNK_SUMS` and `MOMENTS` from here, and agrees with
this one up to the order of the terms of a sum.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats import transform
from quantlab.formats.blocks import Read
from quantlab.formats.element import FloatArray, Quantized
from quantlab.formats.ranges import NUMPY, Reductions
from quantlab.formats.uniform import code_range
from quantlab.sources.tensor import Tensor

CHUNK = 2**16  # values that are summed on their own
CODE_BINS = 64  # of code counts as they are written
ERROR_BINS = 64  # and one more for errors beyond the last
SMALL_SAMPLE = 2**12  # errors that are cheap to sort
ChunkSums = NDArray[np.void]  # of the type CHUNK_SUMS or MOMENTS, one entry a chunk
Table = NDArray[np.int64]  # how often each code occurs
ErrorPlaces = tuple[NDArray[np.uint8], NDArray[np.int64]]  # bins of errors, and counts of bins


class Moments(NamedTuple):
    """The moments of a tensor; powers are in its own unit."""

    n: int
    zeros: int  # x == 0
    x: float
    sq_x: float


class Sums(NamedTuple):
    """The sums of a round trip; powers and products are in the tensor's own unit."""

    n: int
    zeros: int  # x == 0
    x: float
    sq_x: float
    zeroed: int  # x != 0 and x_hat == 0
    rel_count: int
    clipped: int  # beyond the grid
    max_err: float
    err: float  # x_hat - x
    abs_err: float
    sq_err: float
    rel_err: float  # |x_hat - x| / |x| where |x| is above the threshold
    x_err: float  # x * (x_hat - x)
    dot: float  # x * x_hat
    sq_x_hat: float
    zero_sq_err: float  # of values that came back as 0
    clip_sq_err: float  # of values beyond the grid


def _columns(sums: type[Any], *others: str) -> np.dtype[np.void]:
    """Return the type of an entry with all fields but some: the compiled loops write it by name."""
    fields = [field for field in sums.__annotations__.items() if field[0] not in others]
    return np.dtype([(name, np.int64 if kind is int else np.float64) for name, kind in fields])


MOMENTS, CHUNK_SUMS = _columns(Moments, "n"), _columns(Sums, *Moments._fields)


class MeasureOptions(NamedTuple):
    """The settings of a measurement, and where blocks write what has a place of its own.

    `rel_threshold` is a float32 number, see `round_down`. Maxima are of rows of `row_width` values
    of x_hat, empty where those of the tensor suffice. Every `stride`-th error goes to `errors`.
    `squares` are those of `stats.rows`, with rows of `squares_width` values.
    """

    rel_threshold: float
    row_width: int
    maxima: FloatArray
    stride: int
    errors: FloatArray
    squares_width: int
    squares: NDArray[np.float64]


class CodeCounts(NamedTuple):
    """The codes that occur, and how often each does."""

    codes: NDArray[np.int16]
    counts: NDArray[np.int64]


class NumpyEngine:
    """Sums up blocks with NumPy."""

    name = "numpy"
    block_size = 4 * CHUNK  # elements in work at once: many for the interpreter, few for the cache
    min_share = 16 * CHUNK  # elements that pay for a thread of their own
    reductions: Reductions = NUMPY

    def reader(self, tensor: Tensor) -> Read:
        """Return the function that reads flat float32 values of a tensor, in C order."""
        return tensor.block

    def survey(
        self, x: FloatArray, row_width: int, maxima: FloatArray
    ) -> tuple[float, float, ChunkSums]:
        """Write the maxima of rows; return least and greatest value, and the moments of chunks.

        Where a value is not finite, neither is one of the first two.
        """
        write_row_maxima(x, row_width, maxima)
        lo, hi = float(x.min()), float(maxima.max())
        if not math.isfinite(hi - lo):
            return lo, hi, np.empty(0, MOMENTS)
        return lo, hi, np.concatenate([_moments(x[chunk]) for chunk in chunk_slices(x.size)])

    def new_table(self, n_bits: int | None) -> Table:
        """Return an empty table of codes; one of no entries where codes are not ours."""
        return np.zeros((1, 2**n_bits if n_bits else 0), np.int64)

    def gather(
        self, start: int, x: FloatArray, quantized: Quantized, options: MeasureOptions, table: Table
    ) -> ChunkSums:
        """Sum up a block that begins at element `start`; keep its codes, errors and maxima."""
        codes, x_hat, clipped = quantized
        if codes is not None:
            size = table.shape[1]
            table[0] += np.bincount(codes.astype(np.intp) + size // 2, minlength=size)
        stride = options.stride
        sample = np.abs(x_hat - x)[-start % stride :: stride]
        options.errors[-(-start // stride) :][: sample.size] = sample
        if options.maxima.size:
            width, stop = options.row_width, start + x.size
            write_row_maxima(x_hat, width, options.maxima[start // width : -(-stop // width)])
        if options.squares.size:
            for chunk in chunk_slices(x.size):
                write_row_squares(start + chunk.start, x[chunk], x_hat[chunk], options)
        return np.concatenate(
            [
                _chunk_sums(
                    x[chunk],
                    x_hat[chunk],
                    None if clipped is None else clipped[chunk],
                    options.rel_threshold,
                )
                for chunk in chunk_slices(x.size)
            ]
        )

    def multiply_hadamard(self, x: FloatArray) -> FloatArray:
        """Multiply rows by Sylvester's matrix."""
        return transform.multiply_hadamard(x)

    def place_in_bins(self, errors: FloatArray, upper: float) -> ErrorPlaces:
        """Return the bin of each error over [0, upper], and the number of errors in each bin."""
        # The float64 quotient of two float32 values rounds to a whole number only if it is one.
        quotients = errors / np.float64(upper / ERROR_BINS)
        bins = np.minimum(quotients, ERROR_BINS).astype(np.uint8)
        bins[errors == upper] = ERROR_BINS - 1  # the end itself is within
        return bins, np.bincount(bins, minlength=ERROR_BINS + 1)


NUMPY_ENGINE = NumpyEngine()


def chunk_slices(size: int) -> list[slice]:
    """Cut flat values into chunks, of which the last may be short."""
    return [slice(start, start + CHUNK) for start in range(0, size, CHUNK)]


def _moments(x: FloatArray) -> ChunkSums:
    """Compute the moments of one chunk, an array of one entry."""
    a = x.astype(np.float64)
    return np.array([(np.count_nonzero(x == 0), a.sum(), (a * a).sum())], MOMENTS)


def _chunk_sums(
    x: FloatArray, x_hat: FloatArray, clipped: NDArray[np.bool_] | None, rel_threshold: float
) -> ChunkSums:
    """Compute the sums of one chunk, an array of one entry."""
    sums = np.zeros(1, CHUNK_SUMS)
    error = (x_hat - x).astype(np.float64)
    a, b = x.astype(np.float64), x_hat.astype(np.float64)
    magnitude, square = np.abs(error), error * error
    above = np.abs(x) > np.float32(rel_threshold)
    zero = x_hat == 0
    sums["zeroed"] = np.count_nonzero(zero & (x != 0))
    sums["rel_count"] = np.count_nonzero(above)
    sums["max_err"] = magnitude.max()
    sums["err"] = error.sum()
    sums["abs_err"] = magnitude.sum()
    sums["sq_err"] = square.sum()
    sums["rel_err"] = (magnitude / np.where(above, np.abs(a), np.inf)).sum()
    sums["x_err"] = (a * (b - a)).sum()
    sums["dot"] = (a * b).sum()
    sums["sq_x_hat"] = (b * b).sum()
    if clipped is not None:
        sums["clipped"] = np.count_nonzero(clipped)
        sums["clip_sq_err"] = square[clipped].sum()
        zero &= ~clipped
    if zero.any():
        sums["zero_sq_err"] = square[zero].sum()
    return sums


def write_row_maxima(block: FloatArray, width: int, out: FloatArray) -> None:
    """Write the maximum of each `width` values of a flat block, of which the last may be fewer."""
    whole = block.size - block.size % width
    block[:whole].reshape(-1, width).max(axis=1, out=out[: whole // width])
    out[whole // width :] = block[whole:].max(initial=-math.inf)


def write_row_squares(
    start: int, x: FloatArray, x_hat: FloatArray, options: MeasureOptions
) -> None:
    """Write x^2 and the squared error, summed over each row or part of one in a chunk."""
    width = options.squares_width
    parts = np.arange(start - start % width, start + x.size, width) - start
    parts[0] = 0
    place = row_part(start, width)
    error = (x_hat - x).astype(np.float64)
    for sums, values in zip(options.squares, (x.astype(np.float64), error), strict=True):
        sums[place : place + parts.size] = np.add.reduceat(values * values, parts)


def row_part(element: Any, width: int) -> Any:
    """Return the number of the part of a row that begins at an element; arrays of them too.

    Rows and chunks both begin parts, so that no part is summed by two threads. Where a row begins
    with a chunk, the number before stays empty.
    """
    return element // width + element // CHUNK


def round_down(threshold: float) -> float:
    """Return the largest float32 that is not above a threshold: a float32 is above both or none."""
    with np.errstate(over="ignore"):
        rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded)


def combine_moments(size: int, parts: Sequence[ChunkSums]) -> Moments:
    """Combine the moments of all chunks of a tensor."""
    return Moments(size, **_combine(np.concatenate(parts)))


def combine_sums(parts: Sequence[ChunkSums], moments: Moments) -> Sums:
    """Combine the sums of all chunks of a tensor, of which there is at least one."""
    chunks = np.concatenate(parts)
    combined = _combine(chunks) | {"max_err": float(chunks["max_err"].max())}
    return Sums(**moments._asdict(), **combined)


def _combine(chunks: ChunkSums) -> dict[str, Any]:
    names = chunks.dtype.names or ()
    return {
        name: int(chunks[name].sum())
        if chunks[name].dtype == np.int64
        else math.fsum(chunks[name].tolist())
        for name in names
    }


def read_table(table: Table) -> CodeCounts:
    """Return the codes of a table that occur, and how often."""
    counts = table.sum(axis=0)
    places = np.flatnonzero(counts)
    return CodeCounts((places - counts.size // 2).astype(np.int16), counts[places])


def to_bins(counted: CodeCounts, n_bits: int) -> dict[str, Any]:
    """Return how often codes occur as plain JSON values, in at most `CODE_BINS` of equal width.

    `counts` begins with the bin of the code `first` and ends with the last code used; a bin holds
    `width` codes, one at up to 6 bits.
    """
    qmin, _ = code_range(n_bits)
    width = max(1, 2**n_bits // CODE_BINS)
    places = (counted.codes.astype(np.intp) - qmin) // width
    binned = np.bincount(places - places[0], weights=counted.counts)
    return {
        "first": qmin + int(places[0]) * width,
        "width": width,
        "counts": binned.astype(np.int64).tolist(),
    }


class ErrorHistogram:
    """Magnitudes of errors in equal bins over [0, upper], and one more for those beyond."""

    def __init__(
        self, errors: FloatArray, upper: float, engine: NumpyEngine = NUMPY_ENGINE
    ) -> None:
        """Sort `errors`, flat and not negative, into bins up to `upper`, which is above 0."""
        self.upper = upper
        self._errors = errors
        self._bins, self._counts = engine.place_in_bins(errors, upper)

    def quantile(self, share: float) -> float:
        """Return the magnitude below which a share of the errors lies, interpolated linearly."""
        n, rest = divmod(share * (self._errors.size - 1), 1)
        low, high = self._neighbours(int(n))
        return low + rest * (high - low)

    def _neighbours(self, n: int) -> tuple[float, float]:
        """Return the n-th smallest error and the next, searching only the bins that hold them."""
        after = min(n + 1, self._errors.size - 1)
        if self._errors.size <= SMALL_SAMPLE:
            return float(self._sorted[n]), float(self._sorted[after])
        ends = np.cumsum(self._counts)
        low, high = np.searchsorted(ends, [n, after], side="right").tolist()
        before = int(ends[low - 1]) if low else 0
        between = self._errors[(self._bins >= low) & (self._bins <= high)]
        ordered = np.partition(between, [n - before, after - before])
        return float(ordered[n - before]), float(ordered[after - before])

    @cached_property
    def _sorted(self) -> FloatArray:
        return np.sort(self._errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the histogram as plain JSON values."""
        *counts, overflow = self._counts.tolist()
        return {"upper": self.upper, "counts": counts, "overflow": overflow}
