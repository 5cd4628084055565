"""Gaussian noise of a given SQNR: no format of any runtime, but a measure of how much noise hurts.

The noise of a tensor is drawn from its name, in chunks of `CHUNK_VALUES`: any stretch has the same
values whoever reads it, and noise of another SQNR is the same noise at another scale.
"""

import hashlib
import math
from math import prod
from threading import Lock

import numpy as np

from quantlab.formats.element import FloatArray, NotFiniteError, require_no_width
from quantlab.formats.format import Codec, NamedTensor, Reconstruction

CHUNK_VALUES = 2**16  # drawn, or squared and summed, at once
VALUE_BITS = 32


class Noise(Codec):
    """Adds Normal(0, sigma) to a tensor, ``sigma = rms(x) * 10^(-sqnr_db / 20)``, as float32.

    A tensor of zeros comes back as it is. Raises ValueError unless `sqnr_db` is a finite number,
    and where there is a width: `n_bits` must be None.
    """

    def __init__(self, sqnr_db: float, n_bits: int | None = None) -> None:
        is_number = isinstance(sqnr_db, int | float) and not isinstance(sqnr_db, bool)
        if not is_number or not math.isfinite(sqnr_db):
            raise ValueError(f"mode.sqnr_db must be a number of dB, got {sqnr_db!r}")
        require_no_width(n_bits, "noise", "which has no codes")
        self.sqnr_db, self.n_bits = sqnr_db, None

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return a tensor with noise."""
        noisy = _NoisyTensor(tensor, self.sqnr_db)
        return Reconstruction(noisy.read, "float32", VALUE_BITS * prod(tensor.shape), slow=True)


class _NoisyTensor:
    """The values of a tensor with noise, whose scale is computed when they are first read."""

    def __init__(self, tensor: NamedTensor, sqnr_db: float) -> None:
        self._tensor, self._sqnr_db = tensor, sqnr_db
        self._seed = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest())
        self._size = prod(tensor.shape)
        self._lock, self._sigma = Lock(), math.nan

    def read(self, start: int, stop: int) -> FloatArray:
        """Return elements `start` to `stop` with their noise."""
        sigma = self._compute_sigma()
        x = self._tensor.block(start, stop)
        return (x + sigma * self._draw(start, start + x.size)).astype(np.float32)

    def _draw(self, start: int, stop: int) -> FloatArray:
        """Draw the standard normal values of a stretch."""
        first = start // CHUNK_VALUES
        chunks = [
            np.random.default_rng([self._seed, chunk]).standard_normal(CHUNK_VALUES, np.float32)
            for chunk in range(first, -(-stop // CHUNK_VALUES))
        ]
        offset = first * CHUNK_VALUES
        return np.concatenate(chunks)[start - offset : stop - offset]

    def _compute_sigma(self) -> float:
        with self._lock:
            if math.isnan(self._sigma):
                starts = range(0, self._size, CHUNK_VALUES)
                blocks = (
                    self._tensor.block(at, min(at + CHUNK_VALUES, self._size)) for at in starts
                )
                sums = (float(np.square(x, dtype=np.float64).sum()) for x in blocks)
                power = math.fsum(sums) / self._size
                if not math.isfinite(power):
                    raise NotFiniteError(f"tensor '{self._tensor.name}' holds NaN or Inf")
                self._sigma = math.sqrt(power) * 10 ** (-self._sqnr_db / 20)
            return self._sigma
