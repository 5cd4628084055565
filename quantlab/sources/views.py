"""Stored tensors seen otherwise: some rows, rows put together, other axes; experts of a mixture.

Nothing is decoded before it is read, and bits are those of the part that is seen.

A layer of experts has, for each of them, the projections gate and up, ``[hidden, inputs]`` each,
and down: stacked in one tensor or each in its own, under the names of each writer. Some fuse the
first two: one half after the other, or in gpt-oss row by row in turns; some store the transposes.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from quantlab.formats.blocks import Read, Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    DecodeRows,
    RowIndex,
    StoredTensor,
    faulty_tensor,
    row_width,
    rows_of,
)

MATRICES = 2  # that are decoded whole, kept for the next block
PROJECTION = r"(?P<projection>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)"
NAMES = [  # of Hugging Face, MLX and llama.cpp
    re.compile(rf"(?P<path>.*?)experts\.((?P<expert>\d+)\.)?{PROJECTION}(\.weight)?"),
    re.compile(rf"(?P<path>.*?)switch_mlp\.{PROJECTION}\.weight"),
    re.compile(r"(?P<path>blk\.\d+\.)ffn_(?P<projection>gate_up|gate|up|down)_exps\.weight"),
    re.compile(r"(?P<path>blk\.\d+\.)ffn_(?P<projection>gate|up|down)\.(?P<expert>\d+)\.weight"),
]
MIXTRAL = {"w1": "gate", "w3": "up", "w2": "down"}
LAYER = re.compile(r"(?:layers|blk)\.(\d+)\.")
HALVES = ("gate", "up")


def select_matrix(tensor: StoredTensor, n: int) -> StoredTensor:
    """Return the n-th matrix of stacked ones."""
    _, rows, columns = tensor.shape
    return select_rows(replace(tensor, shape=(prod(tensor.shape[:2]), columns)), n * rows, rows)


def select_rows(tensor: StoredTensor, first: int, count: int) -> StoredTensor:
    """Return `count` rows of a matrix, from `first` on."""
    width, read = tensor.shape[-1], tensor.reader()

    def read_elements(start: int, stop: int) -> FloatArray:
        return read(first * width + start, first * width + stop)

    def decode_rows(index: RowIndex) -> FloatArray:
        return tensor.decode_rows(index + first)

    return _see(tensor, (count, width), decode_rows, read_elements)


def _see(
    tensor: StoredTensor, shape: Shape, decode_rows: DecodeRows, read_elements: Read | None = None
) -> StoredTensor:
    """Return values of a tensor in a shape, of which no other reading is known."""
    return replace(
        tensor,
        shape=shape,
        share=tensor.share * prod(shape) / max(tensor.size, 1),
        decode_rows=decode_rows,
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
    return _see(
        tensor,
        (columns, rows),
        lambda index: _decode_transposed(matrix)[index],
        lambda start, stop: _decode_transposed(matrix).reshape(-1)[start:stop],
    )


def reorder_rows(tensor: StoredTensor, order: RowIndex) -> StoredTensor:
    """Return the rows of a matrix that `order` names, in that order."""
    shape = order.size, tensor.shape[-1]
    return _see(tensor, shape, lambda index: tensor.decode_rows(order[index]))


def reshape(tensor: StoredTensor, shape: Shape) -> StoredTensor:
    """Return the values in another shape."""
    read = tensor.reader()
    return _see(tensor, shape, rows_of(read, row_width(shape)), read)


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


class ExpertName(NamedTuple):
    """What a name says of a tensor: `expert` is None where all experts are stacked in it."""

    layer: str
    projection: str
    expert: int | None


def parse_name(name: str) -> ExpertName | None:
    """Parse the name of experts; None of any other tensor.

    >>> parse_name("model.layers.3.mlp.experts.7.gate_proj.weight")
    ExpertName(layer='3', projection='gate', expert=7)
    """
    match = next(filter(None, (pattern.fullmatch(name) for pattern in NAMES)), None)
    if match is None:
        return None
    groups = match.groupdict()
    layers = LAYER.findall(groups["path"])
    layer = layers[-1] if layers else groups["path"]
    if "mtp." in groups["path"]:  # layers of their own, counted from 0
        layer = f"mtp.{layer}"
    projection = groups["projection"].removesuffix("_proj")
    expert = groups.get("expert")
    return ExpertName(
        layer, MIXTRAL.get(projection, projection), None if expert is None else int(expert)
    )


class Experts:
    """The experts that a file stores, put together as an original has them.

    `interleaved` says that gate and up take turns in fused tensors of the original, or of the file.
    """

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        *,
        original_interleaved: bool = False,
        stored_interleaved: bool = False,
    ) -> None:
        self.original_interleaved = original_interleaved
        self.stored_interleaved = stored_interleaved
        parsed = ((parse_name(name), tensor) for name, tensor in tensors.items())
        self._stored = {name: tensor for name, tensor in parsed if name}
        self._n_apart = Counter(name[:2] for name in self._stored if name.expert is not None)

    def find(self, name: str, shape: Shape) -> StoredTensor | None:
        """Return the stored experts of an original's name, in its shape; None without them.

        They have a fault where the numbers of experts differ.
        """
        parsed = parse_name(name)
        if parsed is None:
            return None
        layer, projection, expert = parsed
        if expert is not None:
            matrix = self._matrix(layer, projection, expert, shape)
            return stack(name, [matrix], shape) if matrix else None
        if len(shape) != 3:
            return None
        count = self._count(layer, projection)
        if count not in (0, shape[0]):
            return faulty_tensor(name, f"has {count} experts, the original {shape[0]}")
        n, rows, columns = shape
        # Square matrices fit both ways; gpt-oss stores transposes.
        transposes_first = projection == "gate_up" and self.original_interleaved
        for is_transposed in (transposes_first, not transposes_first):
            wanted = (columns, rows) if is_transposed else (rows, columns)
            if stored := self._all(layer, projection, n, wanted):
                matrices = [transpose(m) for m in stored] if is_transposed else stored
                return stack(name, matrices, shape)
        return None

    def _count(self, layer: str, projection: str) -> int:
        """Count the experts that are stored of a projection, apart or stacked."""
        first = projection.split("_")[0]
        for name in (projection, first, "gate_up"):
            if stacked := self._stored.get(ExpertName(layer, name, None)):
                return stacked.shape[0]
            if n_apart := self._n_apart[layer, name]:
                return n_apart
        return 0

    def _all(
        self, layer: str, projection: str, count: int, shape: Shape
    ) -> list[StoredTensor] | None:
        matrices = [self._matrix(layer, projection, n, shape) for n in range(count)]
        found = [matrix for matrix in matrices if matrix]
        return found if len(found) == count else None

    def _matrix(
        self, layer: str, projection: str, expert: int, shape: Shape
    ) -> StoredTensor | None:
        """Return a projection of one expert as a matrix of a shape."""
        for matrix in self._candidates(layer, projection, expert):
            if matrix.shape == shape:
                return matrix
            if matrix.shape == shape[::-1]:
                return transpose(matrix)
        rows, columns = shape
        if projection == "gate_up" and rows % 2 == 0:
            halves = [self._matrix(layer, half, expert, (rows // 2, columns)) for half in HALVES]
            both = [half for half in halves if half]
            if len(both) < 2:
                return None
            fused = stack("", both, shape)
            if self.original_interleaved:
                return reorder_rows(fused, np.arange(rows).reshape(2, -1).T.reshape(-1))
            return fused
        if projection not in HALVES:
            return None
        for fused in self._candidates(layer, "gate_up", expert):
            if fused.shape in ((2 * rows, columns), (columns, 2 * rows)):
                upright = fused if fused.shape == (2 * rows, columns) else transpose(fused)
                n, index = HALVES.index(projection), np.arange(rows)
                is_odd = self.stored_interleaved
                return reorder_rows(upright, 2 * index + n if is_odd else n * rows + index)
        return None

    def _candidates(self, layer: str, projection: str, expert: int) -> Iterator[StoredTensor]:
        """Yield what is stored of a projection of one expert."""
        if apart := self._stored.get(ExpertName(layer, projection, expert)):
            yield apart
        stacked = self._stored.get(ExpertName(layer, projection, None))
        if stacked and len(stacked.shape) == 3 and expert < stacked.shape[0]:
            yield select_matrix(stacked, expert)
