"""Find another known reading of a stored tensor that fits its original far better.

A runtime that takes words in another order, or a zero point by another convention, than the one who
wrote them computes with wrong weights and does not notice. The original tells which is right.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from quantlab.formats.blocks import Read
from quantlab.formats.format import Reconstruction
from quantlab.formats.scales import Array64
from quantlab.sources.tensor import Tensor
from quantlab.stats.metrics import decibels

STRETCHES, LENGTH = 16, 2**12  # of a tensor that is sampled
MIN_GAIN_DB = 5.0  # of a reading that leaves values in their places
MIN_GAIN_REARRANGED_DB = 10.0  # of any other
MIN_COLUMN_VALUES = 8  # fewer of a column say nothing of its scale
COLUMN_SCALED = (
    "with a scale for each column, which another layer may hold as in AWQ and SmoothQuant,"
)
SHIFTED = {  # what is added to a vector; converters add 1 to the norms of some families
    "less 1, as it is greater by 1 in the files of some converters,": -1.0,
    "plus 1, as it is greater by 1 in the files of some converters,": 1.0,
}
MIN_SQNR_DB = 6.0  # of a rearranged reading: of two that make no sense none is right


class Better(NamedTuple):
    """A reading that fits better, and the SQNR in dB of both over a sample."""

    name: str
    sqnr_db: float
    declared_db: float


def better_reading(tensor: Tensor, stored: Reconstruction) -> Better | None:
    """Return the reading that fits best, where it is far better than the declared one.

    Of readings that leave each value in its place a few dB are proof enough, as a sample has tens
    of thousands of values: one step of a zero point, added to the noise of rounding, costs 11 dB at
    most, and less with the larger noise of GPTQ.
    """
    spans = list(_spans(tensor.size))
    x, x_hat = _sample(tensor.block, spans), _sample(stored.read, spans)
    declared = _sqnr_db(x, x_hat)
    better = [
        Better(name, _sqnr_db(x, _sample(read, spans)), declared)
        for name, read in stored.readings.items()
    ]
    power = float((x_hat * x_hat).sum())
    factor = float((x * x_hat).sum()) / power if power else 1.0  # that leaves the least error
    scaled = _sqnr_db(x, x_hat * factor)
    by_column = _column_scaled(x, x_hat, spans, tensor.shape[-1] if tensor.shape else 1)
    if by_column is not None and _sqnr_db(x, by_column) > scaled + MIN_GAIN_DB:
        better.append(Better(COLUMN_SCALED, _sqnr_db(x, by_column), declared))
    if len(tensor.shape) == 1:
        better += [
            Better(name, _sqnr_db(x, x_hat + shift), declared) for name, shift in SHIFTED.items()
        ]
    better = [reading for reading in better if reading.sqnr_db > max(declared + MIN_GAIN_DB, 0)]
    others = {"with another scale": scaled}
    if declared < MIN_SQNR_DB:
        others |= {
            name: _sqnr_db(x, _sample(read, spans)) for name, read in stored.rearranged.items()
        }
        shape = tensor.array.shape
        if len(shape) == 2 and shape[0] == shape[1]:  # a square matrix that lies in memory
            transposed = Tensor(tensor.name, tensor.array.T)
            others["transposed"] = _sqnr_db(_sample(transposed.block, spans), x_hat)
    far = (Better(name, sqnr_db, declared) for name, sqnr_db in others.items())
    min_sqnr_db = max(declared + MIN_GAIN_REARRANGED_DB, MIN_SQNR_DB)
    better += [reading for reading in far if reading.sqnr_db > min_sqnr_db]
    return max(better, key=lambda reading: reading.sqnr_db, default=None)


def _column_scaled(
    x: Array64, x_hat: Array64, spans: list[tuple[int, int]], columns: int
) -> Array64 | None:
    """Return x_hat with the scale for each column that leaves the least error.

    None where a column has too few values of the sample to tell.
    """
    of = np.concatenate([np.arange(*span) for span in spans]) % columns
    if x.size < MIN_COLUMN_VALUES * columns or not np.isfinite(x_hat).all():
        return None
    if np.bincount(of, minlength=columns).min() < MIN_COLUMN_VALUES:
        return None
    power, product = (
        np.bincount(of, each, minlength=columns) for each in (x_hat * x_hat, x * x_hat)
    )
    return x_hat * np.divide(product, power, out=np.ones(columns), where=power > 0)[of]


def _spans(size: int) -> Iterator[tuple[int, int]]:
    """Yield stretches that are evenly spread, the whole of a small tensor."""
    if size <= STRETCHES * LENGTH:
        yield 0, size
        return
    for n in range(STRETCHES):
        start = n * (size - LENGTH) // (STRETCHES - 1)
        yield start, start + LENGTH


def _sample(read: Read, spans: list[tuple[int, int]]) -> Array64:
    return np.concatenate([read(*span) for span in spans]).astype(np.float64)


def _sqnr_db(x: Array64, x_hat: Array64) -> float:
    signal, noise = float((x * x).sum()), float(np.square(x_hat - x).sum())
    return decibels(signal, noise) if signal and math.isfinite(noise) else -math.inf
