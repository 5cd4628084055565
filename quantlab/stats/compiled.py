"""The compiled loops as the engine calls them, where the extra ``[fast]`` is installed.

Numba is imported when the first tensor is large enough to pay for it, and never for small ones.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Layout, Read
from quantlab.formats.element import Bounds, Element, FloatArray, Trip
from quantlab.formats.floats import MANTISSA_BITS, FixedPoint, Float
from quantlab.formats.format import Chosen
from quantlab.formats.levels import BEYOND, MIDPOINTS, NF4, NormalFloat4
from quantlab.formats.log import Log
from quantlab.formats.ranges import NUMPY, Reductions
from quantlab.formats.uniform import Asymmetric, Symmetric, Uniform, code_range
from quantlab.sources.tensor import Tensor
from quantlab.stats.counts import Counts
from quantlab.stats.histogram import BINS, ErrorHistogram
from quantlab.stats.sums import CHUNK, Array64, Partial, rounded_down
from quantlab.stats.wanted import Wanted

SMALL = 2**16  # values that NumPy measures as fast
BLOCK = 2**19  # elements in work at once: more than for NumPy, as Python costs a larger share
MANY = 16  # blocks that are columns of a matrix; of fewer each is a matrix of its own
COLUMNS = 2**12  # of that
NO_FLOATS = np.empty(0, np.float32)
NO_CODES, NO_MASK = np.empty(0, np.int16), np.empty(0, np.bool_)
ONE_SCALE = np.ones(1, np.float32), np.zeros(1, np.float32)
NUMBA = "numba"
GIVEN, UNIFORM, FLOAT, FIXED_POINT, LEVELS, LOG = range(6)  # as in `kernel`
log = logging.getLogger("quantlab")


class Grid(NamedTuple):
    """An element grid as the loops take it: which of them, its numbers, and a list of levels."""

    kind: int
    n_bits: int
    numbers: tuple[np.float32, ...]
    levels: FloatArray = NO_FLOATS
    midpoints: FloatArray = NO_FLOATS


Arguments = tuple[Any, ...]  # of `kernel.gather`: how values come back


@dataclass(frozen=True)
class Fitted:
    """A layout, and the parameters of its blocks from number `first` on."""

    layout: Layout
    first: int
    params: Any

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks as the loops take them."""
        layout = self.layout
        return layout.row, layout.width, layout.per_row, int(layout.shared), self.first

    @cached_property
    def scales(self) -> tuple[FloatArray, FloatArray]:
        """Scales and zero points as the loops take them."""
        scales, zero_points = _scales(self.params)
        return scales[0], zero_points[0]

    @cached_property
    def of_log(self) -> list[FloatArray]:
        """The parameters of `Log` as the loops take them."""
        return [np.ravel(each).astype(np.float32) for each in self.params]


def _scales(params: Any, choices: int = 1) -> tuple[FloatArray, FloatArray]:
    """Return scales and zero points, ``(choices, blocks)``; of a choice one where all are 0."""
    scales = np.asarray(params.scale, np.float32).reshape(choices, -1)
    zero_points = getattr(params, "zero_point", 0)
    if not np.any(zero_points):
        return scales, np.zeros((choices, 1), np.float32)
    return scales, np.asarray(zero_points, np.float32).reshape(choices, -1)


class Kernel:
    """Calls the loops with arrays of the types that they are compiled for."""

    def __init__(self, loops: Any) -> None:
        """Take the module of the loops."""
        self._loops = loops
        self.reductions = Reductions(self._bounds, self._squared_errors)

    def reader(self, tensor: Tensor) -> Read:
        """Return what reads flat float32 values of a tensor, in C order."""
        widen = getattr(self._loops, f"widen_{tensor.dtype}", None)
        if widen is None:
            return tensor.block

        def read(start: int, stop: int) -> FloatArray:
            stored = tensor.stored(start, stop)
            stored = _plain((stored if stored.dtype.isnative else _plain(stored)).view(np.uint16))
            x = np.empty(stored.size, np.float32)
            widen(stored, x)
            return x

        return read

    def survey(self, x: FloatArray, width: int, maxima: FloatArray) -> tuple[float, float, Array64]:
        """Write the maxima of rows; return least and greatest value, and the moments of chunks.

        Where a value is not finite, neither is one of the first two.
        """
        sums = np.zeros((-(-x.size // CHUNK), 3))
        lo, hi = self._loops.survey(_plain(x), width, maxima, sums)
        return lo, hi, sums.T

    def tables(self, n_bits: int | None) -> NDArray[np.int64]:
        """Return tables that count codes, none where they are not ours."""
        return np.zeros((self._loops.TABLES if n_bits else 0, 2 ** (n_bits or 0)), np.int64)

    def counts(self, tables: NDArray[np.int64]) -> list[Counts]:
        """Return what was counted."""
        if not len(tables):
            return []
        found = tables.sum(axis=0)
        codes = np.flatnonzero(found)
        return [Counts((codes - found.size // 2).astype(np.int16), found[codes])]

    def of_grid(self, x: FloatArray, start: int, grid: Grid, fit: Fitted) -> Arguments:
        """Return the arguments for a block that goes through a grid."""
        if grid.kind == LOG:
            return self.of_trip(self._through_log(_plain(x), start, fit), grid.n_bits)
        numbers = grid.numbers, grid.levels, grid.midpoints
        return grid.kind, fit.blocks, *fit.scales, *numbers, NO_FLOATS, NO_CODES, NO_MASK

    def _through_log(self, x: FloatArray, start: int, fit: Fitted) -> Trip:
        """Do what `Log.round_trip` does, with the same two functions of NumPy."""
        largest, *of_steps = fit.of_log
        codes, x_hat = np.empty(x.size, np.int16), np.empty(x.size, np.float32)
        scratch = np.empty(min(x.size, CHUNK))
        for at in range(0, x.size, CHUNK):
            here = slice(at, at + CHUNK)
            of, logs = (x[here], start + at, fit.blocks), scratch[: x[here].size]
            self._loops.log_ratios(*of, largest, logs)
            self._loops.log_steps(*of, *of_steps, np.log2(logs, out=logs), codes[here])
            self._loops.log_values(*of, largest, np.exp2(logs, out=logs), x_hat[here])
        return Trip(codes, x_hat, None)

    def of_trip(self, trip: Trip, n_bits: int | None) -> Arguments:
        """Return the arguments for a block that has been through a format."""
        codes = NO_CODES if trip.codes is None else trip.codes.astype(np.int16, copy=False)
        clipped = NO_MASK if trip.clipped is None else trip.clipped
        numbers = _numbers(n_bits or 0), NO_FLOATS, NO_FLOATS
        x_hat = _plain(trip.x_hat)
        return GIVEN, (0, 0, 0, 0, 0), *ONE_SCALE, *numbers, x_hat, codes, clipped

    def gather(
        self,
        x: FloatArray,
        start: int,
        arguments: Arguments,
        wanted: Wanted,
        tables: NDArray[np.int64],
    ) -> Partial:
        """Return what a block adds, and keep its maxima, errors and codes: see `kernel.gather`."""
        n = -(-x.size // CHUNK)
        sums, counts = np.zeros((n, self._loops.SUMS)), np.zeros((n, self._loops.COUNTS), np.int64)
        threshold = rounded_down(wanted.rel_threshold)
        self._loops.gather(
            _plain(x), start, *arguments, threshold, *wanted[1:5], sums, counts, tables
        )
        zeroed, rel_count, clipped = counts.sum(axis=0).tolist()
        return Partial(zeroed, rel_count, clipped, float(sums[:, -1].max()), sums[:, :-1].T)

    def histogram(self, errors: FloatArray, upper: float) -> ErrorHistogram:
        """Return the histogram of errors."""
        return _Histogram(errors, upper, self._loops)

    def _bounds(self, x: FloatArray, least: bool) -> Bounds:
        out = np.empty((3 if least else 2, x[..., 0].size), np.float32)
        self._loops.bounds(_plain(x.reshape(-1)), x.shape[-1], out)
        lo, hi, *magnitude = out.astype(np.float64).reshape(-1, *x.shape[:-1])
        return Bounds(lo, hi, magnitude[0] if least else np.full(lo.shape, np.inf))

    def _squared_errors(self, element: Element, x: FloatArray, params: Any) -> Array64:
        grid = grid_of(element)
        if grid is None:
            return NUMPY.squared_errors(element, x, params)
        choices = len(params.scale)
        own = _scales(params, choices)
        if len(x) >= MANY:
            return self._of_columns(grid, x.T, *own)
        sums = np.empty((choices, len(x)))
        for n, block in enumerate(x):
            of_block = (each[:, n if each.shape[1] > 1 else 0, None] for each in own)
            sums[:, n] = self._of_block(grid, block, *of_block)
        return sums

    def _of_block(
        self, grid: Grid, x: FloatArray, scales: FloatArray, zero_points: FloatArray
    ) -> Array64:
        """Return the sum of squared errors of one block for each choice of scales."""
        sums, whole = np.zeros(len(scales)), x.size - x.size % COLUMNS
        for values in (x[:whole].reshape(-1, COLUMNS), x[whole:].reshape(1, -1)):
            if values.size:
                sums += self._of_columns(grid, values, scales, zero_points)[:, 0]
        return sums

    def _of_columns(
        self, grid: Grid, x: FloatArray, scales: FloatArray, zero_points: FloatArray
    ) -> Array64:
        """Return the sum of squared errors of each column, or of all where they have one scale."""
        sums = np.empty(scales.shape)
        own = np.ascontiguousarray(scales), np.ascontiguousarray(zero_points)
        of = grid.numbers, grid.levels, grid.midpoints
        self._loops.squared_errors(grid.kind, _plain(x), *own, *of, sums)
        return sums


class _Histogram(ErrorHistogram):
    """A histogram whose errors are sorted by the loops."""

    def __init__(self, errors: FloatArray, upper: float, loops: Any) -> None:
        self._loops = loops
        super().__init__(errors, upper)

    def _place(self) -> NDArray[np.int64]:
        counts = np.zeros(BINS + 1, np.int64)
        of = self.upper / BINS, self.upper
        self._loops.place_in_bins(self._errors, *of, self._places, counts)
        return counts


def grid_of(element: Element) -> Grid | None:
    """Return a grid as the loops take it, None where they do not know it: a subclass may differ."""
    known = _GRIDS.get(type(element))
    return known(element) if known else None


def _grid(kind: int, n_bits: int, *numbers: float, **lists: FloatArray) -> Grid:
    return Grid(kind, n_bits, _numbers(n_bits, *numbers), **lists)


def _numbers(n_bits: int, *others: float) -> tuple[np.float32, ...]:
    """Return the numbers of a grid: where its codes begin, and others."""
    first = -(2 ** (n_bits - 1)) if n_bits else 0
    return tuple(np.float32(each) for each in (first, *others, *[0] * (5 - len(others))))


def _uniform(element: Uniform) -> Grid:
    return _grid(UNIFORM, element.n_bits, *code_range(element.n_bits))


def _float(element: Float) -> Grid:
    shift = 1.5 * 2.0 ** (MANTISSA_BITS - element.mantissa_bits)
    of_codes = element.mantissa_bits, element.largest_code
    least = 2.0**element.min_exponent
    return _grid(FLOAT, element.n_bits, element.largest, least, shift, *of_codes)


def _fixed_point(element: FixedPoint) -> Grid:
    qmax = 2 ** (element.n_bits - 1) - 1
    return _grid(FIXED_POINT, element.n_bits, 2.0**element.fraction_bits, qmax)


def _levels(element: NormalFloat4) -> Grid:
    ends = map(float, BEYOND)
    return _grid(LEVELS, element.n_bits, *ends, levels=NF4, midpoints=MIDPOINTS)


def _log(element: Log) -> Grid:
    return _grid(LOG, element.n_bits)


_GRIDS: dict[Any, Callable[[Any], Grid]] = {
    Symmetric: _uniform,
    Asymmetric: _uniform,
    Chosen: _uniform,
    Float: _float,
    FixedPoint: _fixed_point,
    NormalFloat4: _levels,
    Log: _log,
}


def kernel_for(size: int) -> Kernel | None:
    """Return the compiled loops where they pay and are installed, else None."""
    return _load() if size > SMALL else None


def versions(size: int) -> dict[str, str]:
    """Return the version of Numba where tensors of a size are measured by what it compiled."""
    return {NUMBA: version(NUMBA)} if kernel_for(size) else {}


@cache
def _load() -> Kernel | None:
    """Import the loops; say once why that cannot be."""
    if find_spec(NUMBA) is None:
        log.warning("NumPy measures, a fifth as fast as Numba on large tensors: pip install numba")
        return None
    try:
        return Kernel(import_module("quantlab.stats.kernel"))
    except Exception as reason:  # whatever a broken Numba raises, NumPy does the work
        log.warning("Numba does not work, so NumPy measures: %s", " ".join(str(reason).split()))
        return None


def _plain(x: NDArray[Any]) -> NDArray[Any]:
    """Return values as the loops take them: contiguous, aligned, in native byte order."""
    return np.require(x, x.dtype.newbyteorder("="), ["C", "A"])
