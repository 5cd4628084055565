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

    def width(self, tensor: NamedTensor) -> int | None:
        """Return the number of inputs of a weight; None where unknown. Raises as `gram` does."""

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
        transposed = np.ascontiguousarray(x.T)
        for at in range(0, padded, TILE):  # the upper triangle, which is mirrored
            _add_product(total[at : at + TILE, at:], transposed[at : at + TILE], x[:, at:])
    for at in range(0, padded, TILE):
        tile = np.triu(total[at : at + TILE, at : at + TILE])
        total[at : at + TILE, at : at + TILE] = tile + np.triu(tile, 1).T
        total[at + TILE :, at : at + TILE] = total[at : at + TILE, at + TILE :].T
    return total[:width, :width]


def multiply(a: Array64, b: Array64) -> Array64:
    """Multiply two matrices tile by tile."""
    product = np.zeros((len(a) + -len(a) % TILE, b.shape[1] + -b.shape[1] % TILE))
    _add_product(product, _pad(a), _pad(b))
    return product[: len(a), : b.shape[1]]


def transform_gram(gram: Array64, matrix: Array64) -> Array64:
    """Return ``B H B^T`` for a Gram matrix H and a `matrix` B that repeats along the diagonal.

    It is the Gram matrix of inputs as rows of weights meet them after a transform, which is undone
    by multiplying stretches of those rows by B.
    """
    for _ in range(2):  # each stretch of rows by B, then all of it transposed
        products = [multiply(matrix, rows) for rows in gram.reshape(-1, len(matrix), len(gram))]
        gram = np.ascontiguousarray(np.concatenate(products).T)
    return gram


def row_energies(rows: Array64, gram: Array64) -> Array64:
    """Compute ``r H r^T`` of each row r, ``(rows,)``: the energy of what it does to the inputs."""
    padded, energies = _pad(rows), np.zeros(len(rows) + -len(rows) % TILE)
    for at in range(0, rows.shape[1], TILE):
        columns = _pad(gram[: at + TILE, at : at + TILE].copy())
        columns[:at] *= 2  # H is symmetric
        product = np.zeros((len(padded), TILE))
        _add_product(product, padded[:, : at + TILE], columns)
        energies += np.vecdot(product, padded[:, at : at + TILE])
    return energies[: len(rows)]


def factor_upper(matrix: Array64) -> Array64:
    """Factor a symmetric matrix, H = R R^T, with R upper triangular.

    The inverse of R is the upper Cholesky factor U of H^-1 = U^T U. The matrix may be overwritten.
    Raises np.linalg.LinAlgError unless it is positive definite.
    """
    size = len(matrix)
    factor = _pad(matrix)
    np.fill_diagonal(factor[size:, size:], 1)
    for at in reversed(range(0, len(factor), TILE)):
        end = at + TILE
        panel, factored = factor[:end, at:end], factor[:, end:]
        _add_product(panel, factored[:end], np.ascontiguousarray(-factored[at:end].T))
        panel[at:] = _factor_tile(panel[at:])
        panel[:at] = multiply(panel[:at], np.ascontiguousarray(invert_upper(panel[at:]).T))
        factor[end:, at:end] = 0
    return factor[:size, :size]


def _factor_tile(matrix: Array64) -> Array64:
    """Factor one tile, column by column from the last."""
    factor = np.triu(matrix)
    for n in reversed(range(len(factor))):
        if not factor[n, n] > 0:
            raise np.linalg.LinAlgError("the matrix is not positive definite")
        factor[: n + 1, n] /= np.sqrt(factor[n, n])
        factor[:n, :n] -= np.triu(np.multiply.outer(factor[:n, n], factor[:n, n]))
    return factor


def invert_upper(matrix: Array64) -> Array64:
    """Invert an upper triangular matrix, row by row from the last."""
    inverse = np.diag(1 / np.diagonal(matrix))
    for n in reversed(range(len(matrix) - 1)):
        sums = np.add.reduce(matrix[n, n + 1 :, None] * inverse[n + 1 :, n + 1 :], axis=0)
        inverse[n, n + 1 :] = -sums / matrix[n, n]
    return inverse


def _pad(matrix: Array64) -> Array64:
    """Return a matrix with zeros up to a multiple of `TILE`, itself where it is one."""
    rows, columns = (-n % TILE for n in matrix.shape)
    return np.pad(matrix, ((0, rows), (0, columns))) if rows or columns else matrix


def _add_product(total: Array64, a: Array64, b: Array64) -> None:
    """Add ``a @ b`` to a matrix; all axes are multiples of `TILE`."""
    tiles, a_tiles, b_tiles = _as_tiles(total), _as_tiles(a), _as_tiles(b)
    wide = min(CACHED_TILES, tiles.shape[1])
    high = CACHED_TILES // max(wide, 1)
    for row in range(0, len(tiles), max(high, 1)):
        for column in range(0, tiles.shape[1], wide):
            rows, columns = slice(row, row + high), slice(column, column + wide)
            tiles[rows, columns] += _sum_products(a_tiles[rows], b_tiles[:, columns])


def _sum_products(a_tiles: Array64, b_tiles: Array64) -> Array64:
    """Sum up the products of rows of tiles with columns of tiles, ``(rows, columns, ...)``."""
    total = np.zeros((len(a_tiles), b_tiles.shape[1], TILE, TILE))
    product = np.empty_like(total)
    for inner in range(len(b_tiles)):
        np.matmul(a_tiles[:, inner, None], b_tiles[None, inner], out=product)
        total += product
    return total


def _as_tiles(matrix: Array64) -> Array64:
    """View a matrix as tiles, ``(rows, columns, TILE, TILE)``."""
    shape = len(matrix) // TILE, matrix.shape[1] // TILE, TILE, TILE
    strides = *(TILE * n for n in matrix.strides), *matrix.strides
    return np.lib.stride_tricks.as_strided(matrix, shape, strides)
