"""Weights of ONNX models as its operators compute them, decoded row by row.

DequantizeLinear, and what multiplies integers: ``W = (q - zero_point) * scale``, with one scale,
one for each index of an axis, or one for each block along it. QuantizeLinear:
``q = clip(rint(W / scale) + zero_point)``. MatMulNBits is ONNX Runtime's. The types are
``int8``, ``float4_e2m1fn``, ..., as NumPy and ml_dtypes call them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.kinds.decoding import (
    FLOATS,
    MisfitError,
    Parts,
    RowIndex,
    StoredTensor,
    row_width,
    take_rows,
)
from quantlab.sources.tensor import Tensor

EIGHT_BIT_FLOATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
PACKED = ("uint4", "int4", "uint2", "int2", "float4_e2m1fn")  # several values a byte
CODES = ("uint8", "int8", "uint16", "int16", "int32", *PACKED, *EIGHT_BIT_FLOATS)
EXPONENTS = "float8_e8m0fnu"  # powers of two, of scales alone
SCALES = (*FLOATS, EXPONENTS)
N_BITS_WIDTHS = (2, 4, 8)  # of MatMulNBits


@dataclass(frozen=True)
class Operand:
    """An input of a node, constant or computed from constants, whose rows are read on demand.

    `kind` is the name of its dtype, `take` returns rows, ``(rows, columns)``, in that dtype or a
    wider one. `parts` hold all that is stored of it; where `is_computed`, the first of them is what
    it is quantized from.
    """

    shape: Shape
    kind: str
    take: Callable[[RowIndex], NDArray[Any]]
    parts: tuple[Tensor, ...] = ()
    is_computed: bool = False

    @classmethod
    def of_array(cls, array: NDArray[Any], kind: str, *parts: Tensor) -> "Operand":
        """Make an operand of an array of any layout."""
        if array.ndim < 2 or array.flags.c_contiguous:
            rows = array.reshape(-1, row_width(array.shape)) if array.size else array
            return cls(array.shape, kind, lambda index: take_rows(rows, index), parts)
        axes = array.shape[:-1]
        return cls(array.shape, kind, lambda index: array[np.unravel_index(index, axes)], parts)

    @classmethod
    def of_packed(cls, tensor: Tensor, kind: str, shape: Shape) -> "Operand":
        """Make an operand of flat bytes that hold several values each, the first lowest."""
        dtype, width = np.dtype(kind), row_width(shape)
        bits, octets = kind_bits(kind), tensor.array
        per_byte = 8 // bits

        def take(index: RowIndex) -> NDArray[Any]:
            places = index[:, None] * width + np.arange(width)
            shifts = (bits * (places % per_byte)).astype(np.uint8)
            return ((octets[places // per_byte] >> shifts) & np.uint8(2**bits - 1)).view(dtype)

        return cls(shape, kind, take, (tensor,))

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def take_numbers(self, index: RowIndex) -> NDArray[Any]:
        """Return rows as float32, integers as int32."""
        return self.take(index).astype(np.float32 if "float" in self.kind else np.int32)

    def read(self) -> NDArray[Any]:
        """Return all values, as `take_numbers` does."""
        rows = np.arange(self.size // max(row_width(self.shape), 1))
        return self.take_numbers(rows).reshape(self.shape)


def kind_bits(kind: str) -> int:
    """Return the number of bits of a dtype by its name.

    >>> kind_bits("float4_e2m1fn"), kind_bits("uint16")
    (4, 16)
    """
    return int(re.findall(r"\d+", kind)[0])


@dataclass(frozen=True)
class Quantization:
    """Scales and zero points of an operator, and what they are spread over.

    `axis` is that of scales in one dimension and of blocks of `block` values; 0 is no blocks.
    Where `broadcasts`, scales of as many axes as the tensor broadcast to it. `kind` names the dtype
    of what comes out.
    """

    scale: Operand
    zero_point: Operand | None
    axis: int = 1
    block: int = 0
    broadcasts: bool = False
    kind: str | None = None

    def __post_init__(self) -> None:
        """Raise MisfitError unless all settings and types make sense."""
        if type(self.axis) is not int or type(self.block) is not int or self.block < 0:
            raise MisfitError(
                f"has the axis {self.axis!r} and blocks of {self.block!r}, which make no sense"
            )
        require_kind("scale", self.scale, SCALES)
        if self.zero_point:
            require_kind("zero_point", self.zero_point, CODES)

    @property
    def sharing(self) -> str:
        """Name of what shares a scale."""
        if self.block:
            return f"blocks of {self.block}"
        return "one scale" if self.scale.size == 1 else "per channel"

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All that is stored of scales and zero points."""
        return self.scale.parts + (self.zero_point.parts if self.zero_point else ())

    def spread(self, operand: Operand, shape: Shape) -> "Spread":
        """Spread scales or zero points over a tensor of this shape."""
        return Spread(operand, shape, self.axis, self.block, broadcasts=self.broadcasts)

    def dequantize(self, codes: Operand) -> Operand:
        """Return ``(codes - zero_point) * scale``, rounded to the type that comes out."""
        require_kind("codes", codes, CODES)
        scales = self.spread(self.scale, codes.shape)
        zeros = self.spread(self.zero_point, codes.shape) if self.zero_point else None
        kind = self.kind or ("float32" if self.scale.kind == EXPONENTS else self.scale.kind)
        if kind not in FLOATS:
            raise MisfitError(f"is dequantized to {kind}, which makes no sense")
        dtype = np.dtype(kind)

        def take(index: RowIndex) -> NDArray[Any]:
            q = codes.take_numbers(index)
            if zeros is not None:
                q = q - zeros.take_rows(index)
            return (q.astype(np.float32) * scales.take_rows(index)).astype(dtype)

        return Operand(codes.shape, kind, take, codes.parts + self.parts, codes.is_computed)

    def quantize(self, values: Operand) -> Operand:
        """Return ``clip(rint(values / scale) + zero_point)``; floats are rounded to their type."""
        require_kind("values", values, FLOATS)
        kind = self.zero_point.kind if self.zero_point else self.kind or "uint8"
        if kind not in CODES:
            raise MisfitError(f"is quantized to {kind}, which makes no sense")
        scales = self.spread(self.scale, values.shape)
        zeros = self.spread(self.zero_point, values.shape) if self.zero_point else None
        precision = np.dtype("float32" if self.scale.kind == EXPONENTS else self.scale.kind)
        to_codes = _float_rounder(kind) if "float" in kind else _integer_rounder(kind)

        def take(index: RowIndex) -> NDArray[Any]:
            # The division is rounded to the type of the scale.
            ratio = (values.take_numbers(index) / scales.take_rows(index)).astype(precision)
            x = ratio.astype(np.float32)
            return to_codes(x, 0 if zeros is None else zeros.take_rows(index))

        return Operand(values.shape, kind, take, values.parts + self.parts, is_computed=True)


def require_kind(role: str, operand: Operand, kinds: tuple[str, ...]) -> None:
    """Raise MisfitError unless an operand is of one of some dtypes."""
    if operand.kind not in kinds:
        raise MisfitError(f"has {role} of {operand.kind}, which makes no sense")


def _integer_rounder(kind: str) -> Callable[[NDArray[Any], Any], NDArray[Any]]:
    bits, is_signed = kind_bits(kind), kind.startswith("int")
    low = -(2 ** (bits - 1)) if is_signed else 0
    return lambda x, zeros: np.clip(np.rint(x) + zeros, low, low + 2**bits - 1).astype(np.int32)


def _float_rounder(kind: str) -> Callable[[NDArray[Any], Any], NDArray[Any]]:
    dtype = np.dtype(kind)
    info: Any = ml_dtypes.finfo
    largest = float(info(dtype).max)
    return lambda x, zeros: np.clip(x + zeros, -largest, largest).astype(dtype)


class Spread:
    """Scales or zero points, spread over the values of a tensor: one, an axis of them, or blocks.

    Raises MisfitError where they do not fit its shape.
    """

    def __init__(
        self, values: Operand, shape: Shape, axis: int, block: int, *, broadcasts: bool = False
    ) -> None:
        n = len(shape)
        self.shape, self.blocks = shape, (1,) * n
        if values.size == 1:
            self.values = _reshape(values, (1,) * n)
        elif broadcasts and len(values.shape) == n:
            if any(size not in (1, full) for size, full in zip(values.shape, shape, strict=True)):
                raise MisfitError(f"has scales of {list(values.shape)} for {list(shape)}")
            self.values = values
        elif not -n <= axis < n:
            raise MisfitError(f"has an axis {axis} that its shape {list(shape)} does not have")
        elif block:
            self.values = values
            self.blocks = tuple(block if d == axis % n else 1 for d in range(n))
            needed = tuple(-(-size // b) for size, b in zip(shape, self.blocks, strict=True))
            if values.shape != needed:
                raise MisfitError(f"has scales of {list(values.shape)}, where {list(needed)} fit")
        elif values.shape != (shape[axis],):
            raise MisfitError(
                f"has scales of {list(values.shape)} for axis {axis} of {list(shape)}"
            )
        else:
            self.values = _reshape(values, [-1 if d == axis % n else 1 for d in range(n)])

    @cached_property
    def _single(self) -> NDArray[Any]:
        return self.values.read().reshape(1, 1)

    def take_rows(self, index: RowIndex) -> NDArray[Any]:
        """Return an array that broadcasts to the values of rows."""
        if self.values.size == 1:
            return self._single
        # Rows of a weight share rows of scales, which may have to be computed: each is taken once.
        rows, places = np.unique(self._scale_rows(index), return_inverse=True)
        values = self.values.take_numbers(rows)
        if values.shape[1] > 1 and self.blocks[-1] > 1:
            values = np.repeat(values, self.blocks[-1], axis=1)[:, : self.shape[-1]]
        return values[places]

    def _scale_rows(self, index: RowIndex) -> RowIndex:
        """Return the number of the row of scales that each row has."""
        if len(self.shape) < 2:
            return np.zeros_like(index)
        places = np.unravel_index(index, self.shape[:-1])
        axes = self.values.shape[:-1]
        blocks = (
            np.zeros_like(place) if size == 1 else place // block
            for place, size, block in zip(places, axes, self.blocks, strict=False)
        )
        return np.ravel_multi_index(tuple(blocks), axes)


def _reshape(values: Operand, shape: Any) -> Operand:
    """Read few values and give them another shape."""
    return Operand.of_array(values.read().reshape(shape), values.kind)


@dataclass(frozen=True)
class FakeQuantized(StoredTensor):
    """A tensor stored in floats whose codes are computed when the model runs.

    Its bits are those of the codes, as its first part counts for them.
    """

    code_bits: int = 0

    @property
    def bits(self) -> int:
        """Number of bits of codes, scales and zero points."""
        others = sum(part.size * part.itemsize for part in self.parts[1:])
        return self.size * self.code_bits + 8 * others


def decode_linear(name: str, codes: Operand, quantization: Quantization) -> StoredTensor:
    """Decode the weight that codes, constant or computed, are dequantized to."""
    values = quantization.dequantize(codes)

    def decode_rows(index: RowIndex) -> FloatArray:
        return values.take(index).astype(np.float32)

    parts = tuple({part.name: part for part in values.parts}.values())
    dtype = f"{codes.kind}, {quantization.sharing}"
    if codes.is_computed:
        dtype = f"{dtype}, stored as {parts[0].dtype}"
        bits = kind_bits(codes.kind)
        return FakeQuantized(name, codes.shape, dtype, parts, decode_rows, code_bits=bits)
    return StoredTensor(name, codes.shape, dtype, parts, decode_rows)


def decode_lstm(name: str, codes: Operand, quantization: Quantization) -> StoredTensor:
    """Decode a weight of DynamicQuantizeLSTM to the layout of LSTM.

    Codes are ``[directions, inputs, 4 * hidden]``, where LSTM has the last two axes the other way
    round; there is one scale a direction, or one for each of its columns.
    """
    if len(codes.shape) != 3 or codes.kind in PACKED or len(codes.parts) != 1:
        raise MisfitError(f"has codes of {codes.kind} in {list(codes.shape)}, where int8 fits")
    array = codes.parts[0].array.swapaxes(1, 2)
    transposed = Operand.of_array(array, codes.kind, *codes.parts)
    scale, zero_point = quantization.scale, quantization.zero_point
    columns = replace(
        quantization,
        scale=_as_columns(scale),
        zero_point=_as_columns(zero_point) if zero_point else None,
        broadcasts=True,
    )
    return decode_linear(name, transposed, columns)


def _as_columns(values: Operand) -> Operand:
    """Return values of directions, or of the columns of each, with three axes."""
    if values.size == 1 or len(values.shape) > 2:
        return values
    array = values.read()
    shape = (*array.shape, *[1] * (3 - array.ndim))
    return Operand.of_array(array.reshape(shape), values.kind, *values.parts)


def decode_n_bits(parts: Parts) -> StoredTensor:
    """Decode the weight of a MatMulNBits, ``[K, N]``, each column of it in blocks."""
    parts.require("codes", ("uint8",))
    parts.require("scale", FLOATS)
    numbers = [parts.config.get(key) for key in ("K", "N", "bits", "block_size")]
    if not all(isinstance(n, int) and n > 0 for n in numbers) or numbers[2] not in N_BITS_WIDTHS:
        raise MisfitError(f"has {numbers[2]} bits in blocks of {numbers[3]}, which are not decoded")
    inputs, outputs, bits, block = (int(n or 0) for n in numbers)
    n_blocks, codes_per_byte = -(-inputs // block), 8 // bits
    codes, scale = parts["codes"], parts["scale"]
    if codes.size != outputs * n_blocks * block // codes_per_byte or (
        scale.size != outputs * n_blocks
    ):
        raise parts.misfit("codes", "scale", beside=f"{inputs} inputs and {outputs} outputs")
    codes, scale = codes.reshape(outputs, n_blocks, -1), scale.reshape(outputs, n_blocks)
    zero = _zero_points(parts, outputs, n_blocks, bits)
    block_of = _block_index(parts, inputs, block)
    has_float_zeros = "zero_point" in parts and parts["zero_point"].dtype != np.uint8

    def decode_rows(index: RowIndex) -> FloatArray:
        stored_block, place = index // block, index % block
        octets, shift = codes[:, stored_block, place // codes_per_byte], place % codes_per_byte
        q = ((octets >> (bits * shift)) & (2**bits - 1)).astype(np.float32)
        scales, zeros = scale[:, block_of[index]].astype(np.float32), zero[:, block_of[index]]
        # ONNX Runtime has a kernel of its own for these, which rounds in another order.
        if has_float_zeros or "g_idx" in parts:
            values = q * scales - zeros * scales
        else:
            values = (q - zeros) * scales
        return np.ascontiguousarray(values.astype(scale.dtype).T, np.float32)

    dtype = f"MatMulNBits {bits} bits, blocks of {block}"
    return parts.weight((inputs, outputs), dtype, decode_rows)


def _block_index(parts: Parts, inputs: int, block: int) -> NDArray[Any]:
    """Return the block whose scale each input has."""
    if "g_idx" not in parts:
        return np.arange(inputs) // block
    if "zero_point" in parts:
        raise MisfitError("has a g_idx beside zero points, which is not decoded")
    parts.require("g_idx", ("int32",))
    index = parts["g_idx"]
    if index.size < inputs or int(index.min()) < 0 or int(index.max()) >= -(-inputs // block):
        raise MisfitError(f"has a g_idx of {list(index.shape)} that names no block")
    return index.reshape(-1)


def _zero_points(parts: Parts, outputs: int, n_blocks: int, bits: int) -> NDArray[np.float32]:
    """Return the zero point of each block, half the range where there is none."""
    if "zero_point" not in parts:
        return np.full((outputs, n_blocks), 2 ** (bits - 1), np.float32)
    stored, codes_per_byte = parts["zero_point"], 8 // bits
    is_packed = stored.dtype == np.uint8
    per_output = -(-n_blocks // codes_per_byte) if is_packed else n_blocks
    if stored.size != outputs * per_output:
        raise parts.misfit("zero_point", beside=f"{n_blocks} blocks a column")
    stored = stored.reshape(outputs, per_output)
    if not is_packed:
        return stored.astype(np.float32)
    index = np.arange(n_blocks)
    octets, shift = stored[:, index // codes_per_byte], index % codes_per_byte
    return ((octets >> (bits * shift)) & (2**bits - 1)).astype(np.float32)
