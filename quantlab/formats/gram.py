"""Gram matrices of the inputs of a layer, H = X^T X, and the products that they are used in.

With an error E of the weights, a row an output, the error of the outputs is ``X E^T`` and its
energy ``tr(E H E^T)``. Everything is float64. BLAS divides large products among threads, and their
bits depend on how many there are; products of tiles of 64 are computed by one, always alike.
"""

from math import prod
from typing import Protocol

import numpy as np

from quantlab.formats.blocks import Read
from quantlab.formats.format import NamedTensor
from quantlab.formats.scales import Array64

TILE = 64  # OpenBLAS computes products of up to 64^3 terms on one thread
CACHED_TILES = 8  # of a product, which stay in the second cache while it is summed up
CHUNK_BYTES = 2**24  # of inputs that are added at once


class LayerInputs(Protocol):
    """The inputs of layers, `in` values a token, known by their weights."""

    @property
    def name(self) -> str:
        """Name of the file."""

    def gram(self, tensor: NamedTensor) -> Array64 | None:
        """Compute the Gram matrix of the inputs of a weight, ``(in, in)``; None where unknown.

        Raises ValueError where the inputs are not those of a weight of this shape.
        """

    def identity(self, tensor: NamedTensor) -> str | None:
        """Return a sha256 of the inputs of a weight; None where unknown."""


def require_inputs(width: int, tensor: NamedTensor, file: str) -> None:
    """Raise ValueError unless inputs of some width are those of a weight.

    Its inputs lie along its `input_axis`, or, where that is not known, along the last axis or all
    but the first.
    """
    shape, axis = tensor.shape, tensor.input_axis
    widths = {shape[-1], prod(shape[1:])} if axis is None else {shape[axis]}
    if len(shape) < 2 or width not in widths:
        raise ValueError(
            f"{file} has inputs of {width} values for tensor '{tensor.name}', whose shape is "
            f"{list(shape)}: they are of another layer"
        )


def compute_gram(read: Read, size: int, width: int) -> Array64:
    """Sum up ``x^T x`` of the rows of `width` of an array of some size, which are finite."""
    padded = width + -width % TILE
    total = np.zeros((padded, padded))
    step = max(1, CHUNK_BYTES // (8 * padded)) * width
    for start in range(0, size, step):
        rows = read(start, min(start + step, size)).reshape(-1, width)
        x = _pad(rows.astype(np.float64))
        turned = np.ascontiguousarray(x.T)
        for at in range(0, padded, TILE):  # the upper triangle, which is mirrored
            _add_product(total[at : at + TILE, at:], turned[at : at + TILE], x[:, at:])
    upper = np.triu(total[:width, :width])
    return upper + np.triu(upper, 1).T


def multiply(a: Array64, b: Array64) -> Array64:
    """Multiply two matrices tile by tile."""
    product = np.zeros((len(a) + -len(a) % TILE, b.shape[1] + -b.shape[1] % TILE))
    _add_product(product, _pad(a), _pad(b))
    return product[: len(a), : b.shape[1]]


def row_energies(rows: Array64, gram: Array64) -> Array64:
    """Compute ``r H r^T`` of each row r, ``(rows,)``: the energy of what it does to the inputs."""
    padded, energies = _pad(rows), np.zeros(len(rows) + -len(rows) % TILE)
    for at in range(0, rows.shape[1], TILE):
        columns = _pad(gram[: at + TILE, at : at + TILE])
        columns[:at] *= 2  # H is symmetric
        product = np.zeros((len(padded), TILE))
        _add_product(product, padded[:, : at + TILE], columns)
        energies += np.vecdot(product, padded[:, at : at + TILE])
    return energies[: len(rows)]


def _pad(matrix: Array64) -> Array64:
    """Return a copy of a matrix with zeros up to a multiple of `TILE`; itself where it is one."""
    rows, columns = (-n % TILE for n in matrix.shape)
    return np.pad(matrix, ((0, rows), (0, columns)))


def _add_product(total: Array64, a: Array64, b: Array64) -> None:
    """Add ``a @ b`` to a matrix; all axes are multiples of `TILE`."""
    tiles, a_tiles, b_tiles = _as_tiles(total), _as_tiles(a), _as_tiles(b)
    for row in range(len(tiles)):
        for first in range(0, tiles.shape[1], CACHED_TILES):
            columns = slice(first, first + CACHED_TILES)
            tiles[row, columns] += _multiply_row(a_tiles[row], b_tiles[:, columns])


def _multiply_row(a_tiles: Array64, b_tiles: Array64) -> Array64:
    """Sum up the products of a row of tiles with columns of tiles, ``(columns, TILE, TILE)``."""
    total = np.zeros(b_tiles.shape[1:])
    product = np.empty_like(total)
    for a, b in zip(a_tiles, b_tiles, strict=True):
        np.matmul(a, b, out=product)
        total += product
    return total


def _as_tiles(matrix: Array64) -> Array64:
    """View a matrix as tiles, ``(rows, columns, TILE, TILE)``."""
    shape = len(matrix) // TILE, matrix.shape[1] // TILE, TILE, TILE
    strides = *(TILE * n for n in matrix.strides), *matrix.strides
    return np.lib.stride_tricks.as_strided(matrix, shape, strides)
