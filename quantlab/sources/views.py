"""Stored tensors seen otherwise: some rows, rows put together, other axes, another shape.

Nothing is decoded before it is read, and bits are those of the part that is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np

from quantlab.formats.blocks import Read, Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import RowIndex, StoredTensor, row_width, rows_of

MATRICES = 2  # that are decoded whole, kept for the next block


def select_matrix(tensor: StoredTensor, n: int) -> StoredTensor:
    """Return the n-th matrix of stacked ones."""
    _, rows, columns = tensor.shape
    return select_rows(replace(tensor, shape=(prod(tensor.shape[:2]), columns)), n * rows, rows)


def select_rows(tensor: StoredTensor, first: int, count: int) -> StoredTensor:
    """Return `count` rows of a matrix, from `first` on."""
    width = tensor.shape[-1]

    def read_elements(start: int, stop: int) -> FloatArray:
        return read(first * width + start, first * width + stop)

    read = tensor.reader()
    return replace(
        tensor,
        shape=(count, width),
        share=tensor.share * count / tensor.shape[0],
        decode_rows=lambda index: tensor.decode_rows(index + first),
        read_elements=read_elements,
        readings={},
        rearranged={},
    )


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A matrix to be decoded whole, each object one of its own."""

    read: Read
    rows: int
    columns: int


@lru_cache(maxsize=MATRICES)
def _decode_transposed(matrix: _Matrix) -> FloatArray:
    values = matrix.read(0, matrix.rows * matrix.columns)
    return np.ascontiguousarray(values.reshape(matrix.rows, matrix.columns).T)


def transpose(tensor: StoredTensor) -> StoredTensor:
    """Return a matrix with its axes exchanged; it is decoded as a whole."""
    rows, columns = tensor.shape
    matrix = _Matrix(tensor.reader(), rows, columns)
    return replace(
        tensor,
        shape=(columns, rows),
        decode_rows=lambda index: _decode_transposed(matrix)[index],
        read_elements=lambda start, stop: _decode_transposed(matrix).reshape(-1)[start:stop],
        readings={},
        rearranged={},
    )


def reorder_rows(tensor: StoredTensor, order: RowIndex) -> StoredTensor:
    """Return the rows of a matrix that `order` names, in that order."""
    return replace(
        tensor,
        shape=(order.size, tensor.shape[-1]),
        share=tensor.share * order.size / tensor.shape[0],
        decode_rows=lambda index: tensor.decode_rows(order[index]),
        read_elements=None,
        readings={},
        rearranged={},
    )


def reshape(tensor: StoredTensor, shape: Shape) -> StoredTensor:
    """Return the values in another shape."""
    read = tensor.reader()
    return replace(
        tensor,
        shape=shape,
        decode_rows=rows_of(read, row_width(shape)),
        read_elements=read,
        readings={},
        rearranged={},
    )


def stack(name: str, matrices: Sequence[StoredTensor], shape: Shape) -> StoredTensor:
    """Put the rows of matrices of one width together, one after the other, into a shape."""
    readers = [matrix.reader() for matrix in matrices]
    ends = np.cumsum([matrix.size for matrix in matrices])

    def read_elements(start: int, stop: int) -> FloatArray:
        parts = []
        for n in range(int(np.searchsorted(ends, start, "right")), len(matrices)):
            begin = int(ends[n]) - matrices[n].size
            if begin >= stop:
                break
            span = max(start - begin, 0), min(stop - begin, matrices[n].size)
            parts.append(readers[n](*span))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    parts = {part.name: part for matrix in matrices for part in matrix.parts}
    stored_bits = 8 * sum(part.n_bytes for part in parts.values())
    members = dict.fromkeys(name for matrix in matrices for name in matrix.members)
    return StoredTensor(
        name,
        shape,
        "; ".join(dict.fromkeys(matrix.dtype for matrix in matrices)),
        tuple(parts.values()),
        rows_of(read_elements, row_width(shape)),
        read_elements,
        remark=next((matrix.remark for matrix in matrices if matrix.remark), None),
        fault=next((matrix.fault for matrix in matrices if matrix.fault), None),
        is_dense=all(matrix.is_dense for matrix in matrices),
        share=sum(matrix.bits for matrix in matrices) / stored_bits if stored_bits else 1.0,
        stored_names=tuple(members),
    )
