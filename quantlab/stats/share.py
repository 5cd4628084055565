"""What the blocks of one thread leave behind, each as soon as it has been through."""

from abc import ABC, abstractmethod

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.stats.compiled import Kernel
from quantlab.stats.counts import CodeCounts, Counts
from quantlab.stats.output_error import OutputPower
from quantlab.stats.rank import row_maxima
from quantlab.stats.sums import Partial, Scratch, partial_sums, stretches
from quantlab.stats.trips import Through
from quantlab.stats.wanted import Wanted


class Share(ABC):
    """What some blocks add up to."""

    def __init__(self, trip: Through, wanted: Wanted) -> None:
        """Begin with no block."""
        self.trip, self.wanted = trip, wanted
        self.partials: list[Partial] = []
        self.powers: list[OutputPower] = []

    @abstractmethod
    def add(self, start: int, x: FloatArray) -> None:
        """Take the block that begins at element `start` through the format."""

    @abstractmethod
    def counts(self) -> list[Counts]:
        """Return how often codes occur, in parts; nothing where they are not ours."""

    def _add_powers(self, start: int, x: FloatArray, x_hat: FloatArray) -> None:
        if self.wanted.columns:
            self.powers.extend(self.wanted.columns.powers(start, x, x_hat))


class NumpyShare(Share):
    """Summed up with NumPy."""

    def __init__(self, trip: Through, wanted: Wanted, size: int) -> None:
        """Begin with no block, of which none has more than `size` values."""
        super().__init__(trip, wanted)
        self._work = trip.worker(size)
        self._counts = CodeCounts(trip.n_bits) if trip.n_bits else None
        self._errors = np.empty((2, size), np.float32)
        self._scratch = Scratch(size)

    def add(self, start: int, x: FloatArray) -> None:
        """Take the block that begins at element `start` through the format."""
        codes, x_hat, clipped = self._work(start, x)
        if self._counts and codes is not None:
            self._counts.add(codes)
        err, abs_err = self._errors[:, : x.size]
        np.abs(np.subtract(x_hat, x, out=err), out=abs_err)
        self._keep(start, x_hat, abs_err)
        for each in stretches(x.size):
            errors, beyond = (err[each], abs_err[each]), None if clipped is None else clipped[each]
            threshold = self.wanted.rel_threshold
            self.partials.append(
                partial_sums(x[each], x_hat[each], errors, threshold, self._scratch, beyond)
            )
        self._add_powers(start, x, x_hat)

    def _keep(self, start: int, x_hat: FloatArray, abs_err: FloatArray) -> None:
        """Keep a sample of errors, and the maxima of rows."""
        _, width, maxima, stride, errors, _ = self.wanted
        sampled = abs_err[-start % stride :: stride]
        errors[-(-start // stride) :][: sampled.size] = sampled
        if maxima.size:
            row_maxima(x_hat, width, maxima[start // width : -(-(start + x_hat.size) // width)])

    def counts(self) -> list[Counts]:
        """Return how often codes occur, in parts; nothing where they are not ours."""
        return self._counts.parts() if self._counts else []


class CompiledShare(Share):
    """Summed up by compiled loops, which take values through the grids they know as well."""

    def __init__(self, trip: Through, wanted: Wanted, size: int, kernel: Kernel) -> None:
        """Begin with no block, of which none has more than `size` values."""
        super().__init__(trip, wanted)
        self._kernel, self._tables = kernel, kernel.tables(trip.n_bits)
        self._grid = None if wanted.columns else trip.grid
        self._work = trip.worker(0 if self._grid else size)

    def add(self, start: int, x: FloatArray) -> None:
        """Take the block that begins at element `start` through the format."""
        if self._grid:
            fit = self.trip.fitted(start, start + x.size)
            arguments = self._kernel.of_grid(x, start, self._grid, fit)
        else:
            trip = self._work(start, x)
            arguments = self._kernel.of_trip(trip, self.trip.n_bits)
            self._add_powers(start, x, trip.x_hat)
        self.partials.append(self._kernel.gather(x, start, arguments, self.wanted, self._tables))

    def counts(self) -> list[Counts]:
        """Return how often codes occur, in parts; nothing where they are not ours."""
        return self._kernel.counts(self._tables)
