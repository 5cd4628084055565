"""How the errors of a round trip are spread."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray

BINS = 64
FEW = 2**12  # errors that are cheap to sort
PIECE = 2**13  # errors whose float64 copies fit the cache


class ErrorHistogram:
    """Magnitudes of errors in equal bins over [0, upper], and one more for what lies beyond."""

    def __init__(self, errors: FloatArray, upper: float) -> None:
        """Sort `errors`, flat and not negative, into bins up to `upper`, which is above 0."""
        self.upper = upper
        self._errors = errors
        self._places = np.empty(errors.size, np.uint8)
        self._counts = self._place()

    def _place(self) -> NDArray[np.int64]:
        """Write the bin of each error, and return how many are in each."""
        width = np.float64(self.upper / BINS)
        for start in range(0, self._errors.size, PIECE):
            these = slice(start, start + PIECE)
            # The float64 quotient of two float32 values rounds to a whole number only if it is one.
            self._places[these] = np.minimum(self._errors[these] / width, BINS)
        self._places[self._errors == self.upper] = BINS - 1  # the end itself is within
        return np.bincount(self._places, minlength=BINS + 1)

    def _between(self, low: int, high: int) -> FloatArray:
        """Return the errors in some bins."""
        return self._errors[np.flatnonzero((self._places >= low) & (self._places <= high))]

    def quantile(self, share: float) -> float:
        """Return the magnitude below which a share of the errors lies, interpolated linearly."""
        n, rest = divmod(share * (self._errors.size - 1), 1)
        least, above = self._neighbours(int(n))
        return least + rest * (above - least)

    def _neighbours(self, n: int) -> tuple[float, float]:
        """Return the n-th smallest error and the next, searching only the bins that hold them."""
        last = min(n + 1, self._errors.size - 1)
        if self._errors.size <= FEW:
            return float(self._sorted[n]), float(self._sorted[last])
        ends = np.cumsum(self._counts)
        low, high = np.searchsorted(ends, [n, last], side="right").tolist()
        before = int(ends[low - 1]) if low else 0
        found = np.partition(self._between(low, high), [n - before, last - before])
        return float(found[n - before]), float(found[last - before])

    @cached_property
    def _sorted(self) -> FloatArray:
        return np.sort(self._errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the histogram as plain JSON values."""
        *counts, overflow = self._counts.tolist()
        return {"upper": self.upper, "counts": counts, "overflow": overflow}
