"""MatMulNBits of ONNX Runtime, by the rule of its quantizer's kernels.

Blocks lie along the inputs of a layer, axis 0 of the weight of a MatMul; the last may be short::

    symmetric   scale = m / -2^(n-1), of the value m that is furthest from 0;  z = 2^(n-1)
    asymmetric  scale = (hi - lo) / (2^n - 1), the range widened to 0;  z = round(-lo / scale)
    q     = clip(round(x (1 / scale) + z), 0, 2^n - 1)
    x_hat = (q - z) scale, in the type of the tensor

``round`` takes halves away from 0. A float16 scale counts as it is stored, but for z.
"""

from functools import lru_cache
from math import prod

import numpy as np

from quantlab.formats.blocks import INPUT, Group, Shape, UnfitError, find_axis
from quantlab.formats.element import FloatArray
from quantlab.formats.format import NamedTensor, Reconstruction
from quantlab.formats.grouped import (
    CHUNK_VALUES,
    AffineGroups,
    Groups,
    GroupValues,
    group_ends,
    held_type,
    require_option,
    round_to_type,
)
from quantlab.formats.scales import BFLOAT16, FloatType

HALF = np.float32(0.5)


class OnnxMatMulNBits(AffineGroups):
    """Blocks with a scale of the type of the tensor, or of `dtype`; asymmetric with a zero point.

    Raises ValueError where ONNX Runtime has no such width, block or type.
    """

    runtime, mode = "ONNX Runtime", "onnx/matmulnbits"
    widths, sizes = (2, 4, 8), (16, 32, 64, 128, 256)

    def __init__(
        self, n_bits: int, group_size: int, symmetric: bool, dtype: str | None = None
    ) -> None:
        super().__init__(n_bits, group_size, dtype)
        require_option("mode.symmetric", symmetric, (False, True), self.mode)
        self.symmetric = symmetric
        self.block = Group(group_size, INPUT)  # figures depend on the axis of the inputs

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return a matrix as MatMulNBits multiplies with it; raises UnfitError for another."""
        rows, inputs, columns = _split_shape(tensor)
        blocks = _Blocks(self, tensor, inputs, columns)
        bits = self._column_bits(inputs, blocks.groups.dtype) * rows * columns
        return Reconstruction(blocks.read, self.label, bits)

    def _column_bits(self, inputs: int, dtype: FloatType) -> int:
        """Return the size of the blocks of one output: whole ones, and whole bytes of zeros."""
        n = -(-inputs // int(self.group_size or 1))
        zero_points = 0 if self.symmetric else 8 * -(-n * self.n_bits // 8)
        return n * (self.n_bits * int(self.group_size or 1) + dtype.bits) + zero_points

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct blocks."""
        scale, zero_point = self._choose(groups.x)
        stored = round_to_type(scale, groups.dtype)
        # Weights in bfloat16 are quantized as float32, and their scales rounded at last.
        counted = scale if groups.dtype is BFLOAT16 else stored
        q = groups.x * _invert(counted)
        q += zero_point
        q = _round_away(q)
        np.clip(q, 0, 2**self.n_bits - 1, out=q)
        q -= zero_point
        q *= stored
        return round_to_type(q, groups.dtype)

    def _choose(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Choose the scale and the zero point of each block, float32 ``(blocks, 1)``."""
        lo, hi = group_ends(x)
        half = np.float32(2 ** (self.n_bits - 1))
        if self.symmetric:
            furthest: FloatArray = np.where(np.abs(hi) > np.abs(lo), hi, lo)
            furthest /= -half
            return furthest, np.full_like(lo, half)
        lo, hi = np.minimum(lo, np.float32(0)), np.maximum(hi, np.float32(0))
        qmax = np.float32(2**self.n_bits - 1)
        scale = (hi - lo) / qmax
        zero_point = np.divide(-lo, scale, out=np.zeros_like(lo), where=scale != 0)
        return scale, np.clip(_round_away(zero_point), 0, qmax)


def _round_away(values: FloatArray) -> FloatArray:
    """Round numbers of 0 and more, halves up; of those below, clipping leaves 0."""
    floor = np.floor(values)
    floor += values - floor >= HALF
    return floor


def _invert(scale: FloatArray) -> FloatArray:
    """Return reciprocals, 0 of 0."""
    inverse = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=inverse, where=scale != 0)
    return inverse


def _split_shape(tensor: NamedTensor) -> tuple[int, int, int]:
    """Return how many values lie before, along and after the inputs; raises UnfitError."""
    shape: Shape = tensor.shape
    if len(shape) < 2 or prod(shape[:-2]) > 1:
        raise UnfitError("it is no matrix, which alone MatMulNBits multiplies with")
    axis = find_axis(-1 if tensor.input_axis is None else tensor.input_axis, shape)
    if axis < len(shape) - 2:
        raise UnfitError(f"its inputs lie along axis {axis}, which is none of a matrix")
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


class _Blocks:
    """Any stretch of a matrix whose blocks lie along its rows, or, with `columns`, across them.

    Blocks across rows come back many rows at a time, of which the next stretch needs some again.
    """

    def __init__(
        self, codec: OnnxMatMulNBits, tensor: NamedTensor, inputs: int, columns: int
    ) -> None:
        self._codec, self._inputs, self._columns = codec, inputs, columns
        self._width = min(int(codec.group_size or 1), inputs)
        dtype = codec.dtype or held_type(tensor)
        self.groups = Groups(tensor, self._width, dtype)
        self._band = self._width * columns if columns > 1 else inputs
        self._read_band = lru_cache(maxsize=2)(self._reconstruct_band)  # two threads may read

    def read(self, start: int, stop: int) -> FloatArray:
        """Reconstruct elements `start` to `stop`."""
        with np.errstate(all="ignore"):
            if self._columns > 1:
                first, last = start // self._band, -(-stop // self._band)
                bands = np.concatenate([self._read_band(n) for n in range(first, last)])
                return bands[start - first * self._band : stop - first * self._band]
            first, last = start // self._inputs, -(-stop // self._inputs)
            at_once = max(1, CHUNK_VALUES // self._inputs)
            parts = [
                self._read_rows(row, min(row + at_once, last))
                for row in range(first, last, at_once)
            ]
        x_hat = np.concatenate(parts)
        return x_hat[start - first * self._inputs : stop - first * self._inputs]

    def _read_rows(self, first: int, last: int) -> FloatArray:
        """Reconstruct rows of inputs, the full blocks and then the short ones."""
        x = self.groups.read_values(first * self._inputs, last * self._inputs)
        x_hat = np.empty((last - first, self._inputs), np.float32)
        rows, whole = x.reshape(x_hat.shape), self._inputs - self._inputs % self._width
        for part in (slice(0, whole), slice(whole, self._inputs)):
            values = rows[:, part]
            width = min(self._width, values.shape[1])
            if width:
                x_hat[:, part] = self._reconstruct(values.reshape(-1, width)).reshape(values.shape)
        return x_hat.reshape(-1)

    def _reconstruct_band(self, number: int) -> FloatArray:
        """Reconstruct the rows that hold one block of each column."""
        stop = min((number + 1) * self._band, self.groups.size)
        rows = self.groups.read_values(number * self._band, stop).reshape(-1, self._columns)
        x_hat = np.empty(rows.shape, np.float32)
        at_once = max(1, CHUNK_VALUES // self._width)
        for column in range(0, self._columns, at_once):
            part = slice(column, column + at_once)
            x_hat[:, part] = self._reconstruct(np.ascontiguousarray(rows[:, part].T)).T
        return x_hat.reshape(-1)

    def _reconstruct(self, x: FloatArray) -> FloatArray:
        return self._codec.reconstruct(GroupValues(x, self.groups.dtype, constants=None))
