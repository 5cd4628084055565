"""The fast engine, where the extra ``[fast]`` is installed: `NumpyEngine` in loops of Numba.

`stats.kernel` has the loops, each named by its twin in `formats` or `stats.reference`. Numba is
imported when the first tensor is large enough to pay for it, and never for small ones.
"""

import logging
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Read
from quantlab.formats.element import (
    NO_FLOATS,
    Bounds,
    CompiledGrid,
    Element,
    FloatArray,
    GridKind,
    Quantized,
    compiled_grid_of,
)
from quantlab.formats.quantizer import BlockLayoutParams
from quantlab.formats.ranges import NUMPY, Reductions
from quantlab.formats.scales import Array64
from quantlab.sources.tensor import Tensor
from quantlab.stats.reference import (
    CHUNK,
    CHUNK_SUMS,
    ERROR_BINS,
    MOMENTS,
    NUMPY_ENGINE,
    ChunkSums,
    ErrorPlaces,
    MeasureOptions,
    NumpyEngine,
    Table,
)

MAX_NUMPY_SIZE = 2**16  # values of a tensor that NumPy measures as fast
MANY_BLOCKS = 16  # that are columns of a matrix; of fewer each is a matrix of its own
COLUMNS = 2**12  # of that
NO_CODES, NO_MASK = np.empty(0, np.int16), np.empty(0, np.bool_)
ONE_SCALE, NO_ZERO_POINT = np.ones(1, np.float32), np.zeros(1, np.float32)
NUMBA = "numba"
log = logging.getLogger("quantlab")


class CompiledEngine(NumpyEngine):
    """Calls the loops with arrays of the types that they are compiled for."""

    name = NUMBA
    block_size = 8 * CHUNK  # more than for NumPy, as Python costs a larger share
    min_share = 4 * CHUNK

    def __init__(self, loops: Any) -> None:
        self._loops = loops
        self.reductions = Reductions(self._bounds, self._squared_errors)
        self._no_blocks = loops.GridBlocks(1, 1, 1, 0, 0, ONE_SCALE, NO_ZERO_POINT)

    def reader(self, tensor: Tensor) -> Read:
        """Return the function that reads flat float32 values of a tensor, in C order."""
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

    def survey(
        self, x: FloatArray, row_width: int, maxima: FloatArray
    ) -> tuple[float, float, ChunkSums]:
        """Write the maxima of rows; return least and greatest value, and the moments of chunks."""
        moments = np.zeros(-(-x.size // CHUNK), MOMENTS)
        lo, hi = self._loops.survey(_plain(x), row_width, maxima, moments)
        return lo, hi, moments

    def new_table(self, n_bits: int | None) -> Table:
        """Return empty tables of codes, which add up to one."""
        return np.zeros((self._loops.TABLES if n_bits else 0, 2 ** (n_bits or 0)), np.int64)

    def gather(
        self, start: int, x: FloatArray, quantized: Quantized, options: MeasureOptions, table: Table
    ) -> ChunkSums:
        """Sum up a block that begins at element `start`; keep its codes, errors and maxima."""
        codes, x_hat, clipped = quantized
        given = (
            _plain(x_hat),
            NO_CODES if codes is None else codes.astype(np.int16, copy=False),
            NO_MASK if clipped is None else clipped,
        )
        sums = np.zeros(-(-x.size // CHUNK), CHUNK_SUMS)
        no_grid = CompiledGrid(GridKind.GIVEN, table.shape[1].bit_length() - 1)
        through = _typed(no_grid), self._no_blocks
        self._loops.gather(start, _plain(x), *through, *given, options, sums, table)
        return sums

    def gather_through(
        self,
        start: int,
        x: FloatArray,
        grid: CompiledGrid,
        blocks: BlockLayoutParams,
        options: MeasureOptions,
        table: Table,
    ) -> ChunkSums:
        """Take a block through a grid, and sum it up as `gather` does."""
        sums, given = np.zeros(-(-x.size // CHUNK), CHUNK_SUMS), (NO_FLOATS, NO_CODES, NO_MASK)
        through = _typed(grid), self._grid_blocks(blocks)
        self._loops.gather(start, _plain(x), *through, *given, options, sums, table)
        return sums

    def _grid_blocks(self, blocks: BlockLayoutParams) -> Any:
        layout, first, params = blocks.layout, blocks.first, blocks.params
        (scales, *_), (zero_points, *_) = _scales(params)
        return self._loops.GridBlocks(
            layout.row, layout.width, layout.per_row, int(layout.shared), first, scales, zero_points
        )

    def reconstruct(
        self, start: int, x: FloatArray, grid: CompiledGrid, blocks: BlockLayoutParams
    ) -> FloatArray:
        """Reconstruct values of which `x` begins at element `start`."""
        x_hat = np.empty(x.size, np.float32)
        self._loops.reconstruct(start, _plain(x), _typed(grid), self._grid_blocks(blocks), x_hat)
        return x_hat

    def multiply_hadamard(self, x: FloatArray) -> FloatArray:
        """Multiply rows by Sylvester's matrix."""
        out = np.empty(x.shape, np.float32)
        self._loops.multiply_hadamard(_plain(x), out)
        return out

    def place_in_bins(self, errors: FloatArray, upper: float) -> ErrorPlaces:
        """Return the bin of each error over [0, upper], and the number of errors in each bin."""
        bins, counts = np.empty(errors.size, np.uint8), np.zeros(ERROR_BINS + 1, np.int64)
        self._loops.place_in_bins(errors, upper / ERROR_BINS, upper, bins, counts)
        return bins, counts

    def _bounds(self, x: FloatArray, needs_min_magnitude: bool) -> Bounds:
        out = np.empty((3 if needs_min_magnitude else 2, x[..., 0].size), np.float32)
        self._loops.bounds(_plain(x.reshape(-1)), x.shape[-1], out)
        lo, hi, *magnitude = out.astype(np.float64).reshape(-1, *x.shape[:-1])
        return Bounds(lo, hi, magnitude[0] if magnitude else np.full(lo.shape, np.inf))

    def _squared_errors(self, element: Element, x: FloatArray, params: Any) -> Array64:
        grid = compiled_grid_of(element)
        if grid is None:
            return NUMPY.squared_errors(element, x, params)
        grid, choices = _typed(grid), len(params.scale)
        scales, zero_points = _scales(params, choices)
        if len(x) >= MANY_BLOCKS:
            return self._column_errors(grid, x.T, scales, zero_points)
        sums = np.empty((choices, len(x)))
        for n, block in enumerate(x):
            own = (
                field[:, n if field.shape[1] > 1 else 0, None] for field in (scales, zero_points)
            )
            sums[:, n] = self._block_errors(grid, block, *own)
        return sums

    def _block_errors(
        self, grid: CompiledGrid, x: FloatArray, scales: FloatArray, zero_points: FloatArray
    ) -> Array64:
        """Return the sum of squared errors of one block for each choice of scales."""
        sums, whole = np.zeros(len(scales)), x.size - x.size % COLUMNS
        for values in (x[:whole].reshape(-1, COLUMNS), x[whole:].reshape(1, -1)):
            if values.size:
                sums += self._column_errors(grid, values, scales, zero_points)[:, 0]
        return sums

    def _column_errors(
        self, grid: CompiledGrid, x: FloatArray, scales: FloatArray, zero_points: FloatArray
    ) -> Array64:
        """Return the sum of squared errors of each column, or of all where they have one scale."""
        sums = np.empty(scales.shape)
        params = np.ascontiguousarray(scales), np.ascontiguousarray(zero_points)
        self._loops.squared_errors(_plain(x), grid, *params, sums)
        return sums


def _scales(params: Any, choices: int = 1) -> tuple[FloatArray, FloatArray]:
    """Return scales and zero points, ``(choices, blocks)``; of a choice one where all are 0."""
    scales = np.array(params.scale, np.float32).reshape(choices, -1)
    zero_points = getattr(params, "zero_point", 0)
    if not np.any(zero_points):
        return scales, np.zeros((choices, 1), np.float32)
    return scales, np.array(zero_points, np.float32).reshape(choices, -1)


def _typed(grid: CompiledGrid) -> CompiledGrid:
    """Return a grid whose fields have the types that the loops are compiled for."""
    return CompiledGrid(
        int(grid.kind),
        int(grid.n_bits),
        int(grid.largest_code),
        int(grid.mantissa_bits),
        float(grid.smallest),
        float(grid.largest),
        np.require(grid.levels, np.float32, ["C", "A", "W"]),
        np.require(grid.midpoints, np.float32, ["C", "A", "W"]),
    )


def engine_for(size: int) -> NumpyEngine:
    """Return the compiled engine where it pays and is installed, else NumPy's."""
    return (_load() if size > MAX_NUMPY_SIZE else None) or NUMPY_ENGINE


def versions(size: int) -> dict[str, str]:
    """Return the version of Numba where tensors of a size are measured by what it compiled."""
    return {NUMBA: version(NUMBA)} if engine_for(size).name == NUMBA else {}


@cache
def _load() -> CompiledEngine | None:
    """Import the loops; log once if they cannot be."""
    if find_spec(NUMBA) is None:
        log.warning("NumPy measures, a sixth as fast as Numba on large tensors: pip install numba")
        return None
    try:
        return CompiledEngine(import_module("quantlab.stats.kernel"))
    except Exception as reason:  # whatever a broken Numba raises, NumPy does the work
        log.warning("Numba does not work, so NumPy measures: %s", " ".join(str(reason).split()))
        return None


def _plain(x: NDArray[Any]) -> NDArray[Any]:
    """Return values as the loops take them: contiguous, aligned, in native byte order."""
    return np.require(x, x.dtype.newbyteorder("="), ["C", "A"])
