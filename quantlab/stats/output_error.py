"""The error of a layer's output, from the importance of its inputs.

A layer computes sum_j w_ij x_j. Where inputs are independent, its output has the expected power
sum_j E[x_j^2] w_ij^2, and an error e of the weights makes the noise sum_j E[x_j^2] e_ij^2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.stats.sums import CHUNK


class OutputPower(NamedTuple):
    """The expected power of an output, and that of its noise, up to a factor."""

    signal: float
    noise: float


class ColumnImportance:
    """E[x_j^2] of each column j, an array ``(matrices, columns)``, for a tensor of `size`."""

    def __init__(self, importance: FloatArray, size: int) -> None:
        self._importance = importance.astype(np.float64)
        self._matrix = size // len(importance)

    def powers(self, start: int, x: FloatArray, x_hat: FloatArray) -> list[OutputPower]:
        """Return the powers of each chunk of a flat block that begins at `start`."""
        chunks = [slice(first, first + CHUNK) for first in range(0, x.size, CHUNK)]
        return [self._power(start + each.start, x[each], x_hat[each]) for each in chunks]

    def _power(self, start: int, x: FloatArray, x_hat: FloatArray) -> OutputPower:
        weights, w = self._weights(start, start + x.size), x.astype(np.float64)
        err = (x_hat - x).astype(np.float64)
        return OutputPower(float((weights * w * w).sum()), float((weights * err * err).sum()))

    def _weights(self, start: int, stop: int) -> NDArray[np.float64]:
        places = np.arange(start, stop)
        return self._importance[places // self._matrix, places % self._importance.shape[1]]


def out_sqnr_db(powers: Sequence[OutputPower]) -> float | None:
    """Return signal over noise in dB; None where there is no noise, or no signal.

    >>> out_sqnr_db([OutputPower(60.0, 0.5), OutputPower(40.0, 0.5)])
    20.0
    """
    signal, noise = (math.fsum(each) for each in zip(*powers, strict=True))
    return 10 * math.log10(signal / noise) if signal and noise else None
