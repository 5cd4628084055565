"""How often each code occurs in a stream of blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import Codes
from quantlab.formats.uniform import code_range

BINS = 64
FEW = 2**12  # codes that are cheaper to sort than to spread over a table


class Counts(NamedTuple):
    """The codes that occur, and how often each does."""

    codes: NDArray[np.int16]
    counts: NDArray[np.int64]


class CodeCounts:
    """Counts int8 or int16 codes of `n_bits`, block after block."""

    def __init__(self, n_bits: int) -> None:
        """Begin at zero."""
        self._qmin, _ = code_range(n_bits)
        self._few: list[Counts] = []
        self._tables: dict[str, NDArray[np.int64]] = {}

    def add(self, codes: Codes) -> None:
        """Count the codes of one flat block."""
        if codes.itemsize == 2 and codes.size <= FEW:
            kinds, counts = np.unique(codes, return_counts=True)
            self._few.append(Counts(kinds.astype(np.int16), counts))
        elif codes.itemsize == 2:
            self._count("codes", codes.astype(np.intp) - self._qmin, -2 * self._qmin)
        elif codes.size < 2**17 or codes.size % 2:
            self._count("bytes", codes.view(np.uint8), 2**8)
        else:  # half as many, and their 65,536 kinds spread the writes: faster than one by one
            self._count("pairs", codes.view(np.uint16), 2**16)

    def _count(self, key: str, places: NDArray[Any], size: int) -> None:
        if key not in self._tables:
            self._tables[key] = np.zeros(size, np.int64)
        np.add.at(self._tables[key], places.astype(np.intp, copy=False), 1)

    def parts(self) -> list[Counts]:
        """Return the counts so far, in parts."""
        parts = list(self._few)
        for key, table in self._tables.items():
            if key == "codes":
                places = np.flatnonzero(table)
                parts.append(Counts((places + self._qmin).astype(np.int16), table[places]))
                continue
            both = table.reshape(-1, 256)
            by_byte = both[0] if len(both) == 1 else both.sum(axis=0) + both.sum(axis=1)
            by_code = np.concatenate([by_byte[128:], by_byte[:128]])  # byte 128 is the least code
            places = np.flatnonzero(by_code)
            parts.append(Counts((places - 128).astype(np.int16), by_code[places]))
        return parts


def to_bins(counts: Counts, n_bits: int) -> dict[str, Any]:
    """Return how often codes occur as plain JSON values, in at most `BINS` bins of equal width.

    `counts` begins with the bin of the code `first` and ends with the last code used; a bin holds
    `width` codes, one at up to 6 bits.
    """
    qmin, _ = code_range(n_bits)
    width = max(1, 2**n_bits // BINS)
    places = (counts.codes.astype(np.intp) - qmin) // width
    binned = np.bincount(places - places[0], weights=counts.counts)
    return {
        "first": qmin + int(places[0]) * width,
        "width": width,
        "counts": binned.astype(np.int64).tolist(),
    }


def merge(parts: Sequence[Counts]) -> Counts:
    """Return the counts of several parts as one."""
    if len(parts) == 1:
        return parts[0]
    codes, places = np.unique(np.concatenate([part.codes for part in parts]), return_inverse=True)
    counts = np.zeros(codes.size, np.int64)
    np.add.at(counts, places, np.concatenate([part.counts for part in parts]))
    return Counts(codes, counts)
