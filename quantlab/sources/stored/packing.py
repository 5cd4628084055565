"""Codes that share words, lowest bits first."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]


def unpack(words: NDArray[Any], bits: int, n: int) -> Codes:
    """Return the first `n` codes of each row of unsigned words, ``(rows, n)``.

    A row is a stream of bits: where a width does not divide a word, codes go on in the next.

    >>> unpack(np.array([[0x87654321]], np.uint32), 4, 8)
    array([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=int32)
    """
    rows, columns = words.shape
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(rows, columns * words.itemsize)
    if bits == 8:
        return octets[:, :n].astype(np.int32)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (octets[:, :, None] >> shifts) & np.uint8(2**bits - 1)
        return codes.reshape(rows, octets.shape[1] * 8 // bits)[:, :n].astype(np.int32)
    stream = np.unpackbits(octets, axis=1, bitorder="little", count=n * bits)
    weights = 1 << np.arange(bits, dtype=np.int32)
    return (stream.reshape(rows, n, bits) * weights).sum(axis=2, dtype=np.int32)


def words_of(words: NDArray[Any], bits: int, which: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
    """Return the columns of words that hold some codes of each row, and which code is their first.

    32 codes fill as many words as they have bits, whatever the width.
    """
    first, last = int(which.min()) // 32 * 32, int(which.max()) // 32 * 32 + 32
    return words[:, first * bits // 32 : last * bits // 32], first


def nibbles(octets: NDArray[np.uint8], *, high_first: bool = False) -> NDArray[np.uint8]:
    """Return the two codes of each byte, ``(..., 2 n)``."""
    low, high = octets & 15, octets >> 4
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*octets.shape[:-1], -1)


FP4 = np.array(  # e2m1, by its code; OCP MX 1.0, table 5
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32
)
