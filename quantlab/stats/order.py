"""Which values of a tensor lead, before a round trip and after."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.tensor import Tensor
from quantlab.stats import rank
from quantlab.stats.survey import Survey
from quantlab.stats.trips import Through

ROWS = 2**8  # that are looked at together


@dataclass(frozen=True)
class Order:
    """The order of one tensor's values.

    A map with even steps keeps the order: then the `levels` that values come back as, and how many
    do, are enough. Else rows have `maxima` as they come back.
    """

    tensor: Tensor
    found: Survey
    trip: Through
    maxima: FloatArray
    levels: tuple[FloatArray, NDArray[np.int64]] | None

    def compare(self, k: int, certified: bool) -> dict[str, Any]:
        """Compare the k largest values with those that came back largest.

        `certified` says that a width that must keep them is one of this format.
        """
        before = rank.top(*self._rows(rank.leading(self.found.maxima, k + 1)), k + 1)
        x, indices = self._rows(rank.leading(self._maxima_back(k), k))
        both = np.concatenate([before.values, x]), np.concatenate([before.indices, indices])
        back, n = self._back(*both), before.values.size
        before_back, after = back[:n], rank.top(back[n:], indices, k)
        above, at_edge = self._count_beside(after.values[-1])
        answers = rank.stability(
            before,
            after,
            x=x[np.searchsorted(indices, after.indices)],
            x_hat=before_back,
            reached=self._reached(before, k),
            above=above,
            at_edge=at_edge,
            absmax=self.found.absmax if certified else None,
        )
        return {"rank": answers, "top": rank.table(before, before_back)}

    def _maxima_back(self, k: int) -> FloatArray:
        """Return the maxima of the rows as they come back, of at most `k` rows any."""
        if self.maxima.size:
            return self.maxima
        maxima = self.found.maxima
        back = None if maxima.size <= k else self.trip.back(maxima)
        return maxima if back is None else back

    def _rows(self, rows: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return the elements of some rows, and their indices."""
        return self.tensor.rows(self.found.width, rows)

    def _back(self, x: FloatArray, indices: NDArray[np.int64]) -> FloatArray:
        """Return what elements come back as."""
        x_hat = self.trip.back(x)
        if x_hat is not None:
            return x_hat
        width, size = self.found.width, self.tensor.size
        rows, places = np.unique(indices // width, return_inverse=True)
        spans = [(row, min(row + width, size)) for row in (rows * width).tolist()]
        back = [self.trip.round_trip(*span) for span in spans]  # all rows are full but the last
        return np.concatenate(back)[places * width + indices % width]

    def _count_beside(self, edge: np.float32) -> tuple[int, int]:
        """Count the values that come back above the k-th largest, and at it."""
        if self.levels:
            values, times = self.levels
            return int(times[values > edge].sum()), int(times[values == edge].sum())
        above, at_edge = 0, 0
        rows = np.flatnonzero(self.maxima >= edge)
        for start in range(0, rows.size, ROWS):
            x_hat = self._back(*self._rows(rows[start : start + ROWS]))
            above += int(np.count_nonzero(x_hat > edge))
            at_edge += int(np.count_nonzero(x_hat == edge))
        return above, at_edge

    def _reached(self, before: rank.Top, k: int) -> int:
        """Count the values that are at least the k-th largest: k, or more where others equal it."""
        least = before.values[k - 1]
        if before.values[-1] < least:
            return k
        rows = np.flatnonzero(self.found.maxima >= least)
        parts = (self._rows(rows[start : start + ROWS])[0] for start in range(0, rows.size, ROWS))
        return sum(int(np.count_nonzero(x >= least)) for x in parts)
