"""Weights of ONNX models, floats and codes, also those that stand in files beside them.

``W = (q - zero_point) * scale``, of one scale, one an index of an axis, or one a block along it
(operators DequantizeLinear and MatMulInteger); MatMulNBits is ONNX Runtime's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.file import (
    BadFileError,
    File,
    FileEntry,
    file_state,
    map_tensor,
    require_unique,
)
from quantlab.sources.kinds.decoding import (
    FLOATS,
    Decode,
    MisfitError,
    Parts,
    RowIndex,
    StoredTensor,
    decode_or_fault,
    dense_tensor,
    row_width,
)
from quantlab.sources.pairing import StoredFile
from quantlab.sources.tensor import Tensor

# Types as ONNX calls them.
EIGHT_BIT_FLOATS, SCALES = ("FLOAT8E4M3FN", "FLOAT8E5M2"), ("FLOAT", "FLOAT16", "BFLOAT16")
FLOAT_TYPES = (*SCALES, "DOUBLE", *EIGHT_BIT_FLOATS)
NIBBLES = ("UINT4", "INT4")  # two codes a byte
CODES = ("UINT8", "INT8", "UINT16", "INT16", "INT32", *NIBBLES)
UNSIZED = ("STRING", "UNDEFINED")
N_BITS_WIDTHS = (2, 4, 8)  # of MatMulNBits
INTEGER_AXES = {"MatMulInteger": -1, "ConvInteger": 0}  # the axis of their scales
CODES_SUFFIX = re.compile(r"(_DQ)?_Q\d+$|_quantized$|_quant$")  # after the name of the original


@dataclass(frozen=True)
class Initializer:
    """A constant tensor of a graph; `external` is its file and offset, where it stands apart."""

    proto: Any
    path: str
    external: tuple[str, int] | None

    @property
    def name(self) -> str:
        """Name in the graph."""
        return str(self.proto.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, of codes that share bytes too."""
        return tuple(self.proto.dims)

    @property
    def kind(self) -> str:
        """Type as ONNX calls it, e.g. FLOAT16."""
        import onnx

        return str(onnx.TensorProto.DataType.Name(self.proto.data_type))

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of NumPy or ml_dtypes, None where they have none."""
        import onnx

        if self.kind in UNSIZED:
            return None
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.proto.data_type))

    @property
    def n_bytes(self) -> int:
        """Number of bytes that the values take."""
        size = prod(self.shape)
        if self.kind in NIBBLES:
            return -(-size // 2)
        return size * self.dtype.itemsize if self.dtype else 0

    def open(self) -> Tensor:
        """Return the values; of types of four bits the bytes that hold them, flat."""
        import onnx

        if not prod(self.shape):
            return Tensor(self.name, np.empty(self.shape, np.float32))
        dtype, shape = self.dtype, self.shape
        if self.kind in NIBBLES:
            dtype, shape = np.dtype(np.uint8), (self.n_bytes,)
        if self.external:
            file, offset = self.external
            return map_tensor(self.name, dtype, shape, file, offset)
        if self.proto.raw_data:
            values = np.frombuffer(self.proto.raw_data, dtype)
        else:
            values = onnx.numpy_helper.to_array(self.proto)
            if self.kind in NIBBLES:
                values = _pack_nibbles(values.astype(np.int8))
        if values.size != prod(shape):
            raise BadFileError(
                f"holds {values.size} values in {self.name}, where the shape {list(self.shape)} "
                f"takes {prod(shape)}"
            )
        return Tensor(self.name, values.reshape(shape), file_state(self.path))


def _pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes of four bits as ONNX does, the first in the lower half of a byte."""
    pairs = np.append(codes.reshape(-1), np.zeros(codes.size % 2, np.int8)).view(np.uint8)
    return np.bitwise_or(pairs[::2] & 15, pairs[1::2] << 4, dtype=np.uint8)


class Graph(NamedTuple):
    """The constants of a graph by their names, and its nodes."""

    initializers: dict[str, Initializer]
    nodes: list[Any]

    def select(self, names: Mapping[str, str]) -> dict[str, Initializer]:
        """Return the constants that there are of some names, by key."""
        constants = self.initializers
        return {key: constants[name] for key, name in names.items() if name in constants}


class Onnx(File):
    """The initializers of an ONNX model; integers and codes are left out."""

    format = "onnx"
    needs = ("onnx", "ml_dtypes")

    def _entries(self) -> Iterator[FileEntry]:
        for constant in read_graph(self.path).initializers.values():
            reason = None
            if constant.kind in FLOAT_TYPES:
                constant.open()  # holds as many values as its shape says, or raises
            else:
                reason = f"{constant.kind} is no floating-point type"
            yield FileEntry(
                constant.name,
                constant.shape,
                constant.kind.lower(),
                constant.open,
                reason,
                constant.n_bytes,
                numpy_dtype=constant.dtype.name if constant.dtype else None,
            )


class OnnxFile(StoredFile):
    """An ONNX model, its data in files beside it or not."""

    format = "onnx"
    needs = ("onnx", "ml_dtypes")

    def _decode(self) -> Iterator[StoredTensor]:
        graph = read_graph(self.path)
        used: set[str] = set()
        for tensor in (*_decode_nodes(graph), *_decode_integers(graph)):
            codes, *others = (part.name for part in tensor.parts)
            if codes not in used:
                used |= {codes, *others}
                yield tensor
        for constant in graph.initializers.values():
            if constant.kind in FLOAT_TYPES and constant.name not in used:
                yield dense_tensor(constant.open(), constant.kind)


def read_graph(path: str) -> Graph:
    """Return the graph of a model; raises ValueError where data stands outside its directory."""
    return _read_graph(path, file_state(path))


@lru_cache(maxsize=2)
def _read_graph(path: str, _: tuple[str, int, int]) -> Graph:
    """Read a graph once per state of its file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    constants = [_locate(proto, Path(path)) for proto in model.graph.initializer]
    require_unique((constant.name for constant in constants), "initializers")
    return Graph({constant.name: constant for constant in constants}, list(model.graph.node))


def _locate(proto: Any, path: Path) -> Initializer:
    """Return a constant with the place of its values, which is checked; they are not read."""
    import onnx

    constant = Initializer(proto, str(path), None)
    if any(n < 0 for n in proto.dims):
        raise BadFileError(f"gives {proto.name} an impossible shape {list(proto.dims)}")
    if proto.data_location != onnx.TensorProto.EXTERNAL:
        return constant
    about = {entry.key: entry.value for entry in proto.external_data}
    location = path.parent / about.get("location", "")
    # A cache has links to files side by side: the directory of the link or that of its target.
    directories = {path.parent.resolve(), path.resolve().parent}
    if not any(location.resolve().is_relative_to(directory) for directory in directories):
        raise BadFileError(f"puts {proto.name} into {location}, outside its own directory")
    if not location.is_file():
        raise BadFileError(f"needs {location} for {proto.name}, which does not exist")
    if constant.kind not in (*FLOAT_TYPES, *CODES):
        return constant  # nobody reads it
    offset, size = int(about.get("offset", 0)), constant.n_bytes
    if offset < 0 or size != int(about.get("length", size)):
        raise BadFileError(
            f"gives {proto.name} {about.get('length')} bytes at {offset} of {location}, where its "
            f"shape {list(proto.dims)} takes {size}"
        )
    if offset + size > location.stat().st_size:
        raise BadFileError(f"needs {offset + size} bytes of {location} for {proto.name}: it is cut")
    return Initializer(proto, str(path), (str(location), offset))


def _decode_nodes(graph: Graph) -> Iterator[StoredTensor]:
    """Yield the weights that nodes decode."""
    decoders = {"DequantizeLinear": (0, _decode_linear), "MatMulNBits": (1, _decode_n_bits)}
    for node in graph.nodes:
        first, decode = decoders.get(node.op_type, (0, None))
        inputs = list(node.input)[first:]
        if decode and inputs and inputs[0] in graph.initializers:
            keys = zip(("codes", "scale", "zero_point", "g_idx"), inputs, strict=False)
            yield _decode_constants(graph.select(dict(keys)), _attributes(node), decode)


def _decode_integers(graph: Graph) -> Iterator[StoredTensor]:
    """Yield the weights of nodes that multiply integers; scales are beside them by name alone."""
    for node in graph.nodes:
        name = node.input[1] if node.op_type in INTEGER_AXES else ""
        base = name.removesuffix("_quantized")
        if name in graph.initializers and f"{base}_scale" in graph.initializers:
            keys = {"codes": name, "scale": f"{base}_scale", "zero_point": f"{base}_zero_point"}
            axis = {"axis": INTEGER_AXES[node.op_type]}
            yield _decode_constants(graph.select(keys), axis, _decode_linear)


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def _decode_constants(
    constants: dict[str, Initializer], attributes: dict[str, Any], decode: Decode
) -> StoredTensor:
    """Return the weight whose codes, scales and zero points are `constants`, by those keys."""
    types = {key: (constant.kind, constant.shape) for key, constant in constants.items()}
    tensors = {
        key: constant.open()
        for key, constant in constants.items()
        if constant.kind in (*CODES, *FLOAT_TYPES)
    }
    name = CODES_SUFFIX.sub("", constants["codes"].name)
    # Tensors of nibbles are flat bytes: their types and shapes go along.
    return decode_or_fault(Parts(name, tensors, attributes | {"types": types}), decode)


def _decode_linear(parts: Parts) -> StoredTensor:
    types, axis = parts.config["types"], parts.config.get("axis", 1)
    block = parts.config.get("block_size", 0)
    _require_types(types)
    if type(axis) is not int or type(block) is not int or block < 0:
        raise MisfitError(f"has the axis {axis!r} and blocks of {block!r}, which make no sense")
    codes, scale = parts["codes"], parts["scale"]
    kind, shape = types["codes"]
    scales, zeros, width = _Spread(scale, shape, axis, block), None, row_width(shape)
    if "zero_point" in parts:
        zeros = _Spread(_unpack_all(parts["zero_point"], *types["zero_point"]), shape, axis, block)

    def decode_rows(index: RowIndex) -> FloatArray:
        q = _unpack_rows(codes, index, width, kind)
        if zeros is not None:
            q = q - zeros.take_rows(index)
        values = q.astype(np.float32) * scales.take_rows(index).astype(np.float32)
        return values.astype(scale.dtype).astype(np.float32)

    sharing = f"blocks of {block}" if block else "one scale" if scale.size == 1 else "per channel"
    return StoredTensor(parts.name, shape, f"{kind}, {sharing}", parts.stored, decode_rows)


def _require_types(types: dict[str, Any]) -> None:
    """Raise MisfitError unless codes, scale and zero point are of types that make sense."""
    codes = (*CODES, *EIGHT_BIT_FLOATS)
    for key, allowed in {"codes": codes, "scale": SCALES, "zero_point": codes}.items():
        if key not in types and key != "zero_point":
            raise MisfitError(f"has no {key}")
        if key in types and types[key][0] not in allowed:
            raise MisfitError(f"has a {key} of {types[key][0]}, which makes no sense")


def _unpack_rows(codes: NDArray[Any], index: RowIndex, width: int, kind: str) -> NDArray[Any]:
    """Return the codes of rows, numbers themselves where they are floats."""
    if kind not in NIBBLES:
        dtype = np.float32 if kind in EIGHT_BIT_FLOATS else np.int32
        return codes.reshape(-1, width)[index].astype(dtype)
    places = index[:, None] * width + np.arange(width)
    shifts = (4 * (places % 2)).astype(np.uint8)
    nibbles = ((codes[places // 2] >> shifts) & 15).astype(np.int32)
    return np.where(nibbles > 7, nibbles - 16, nibbles) if kind == "INT4" else nibbles


def _unpack_all(codes: NDArray[Any], kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return _unpack_rows(codes.reshape(-1), np.arange(1), prod(shape), kind).reshape(shape)


class _Spread:
    """Scales or zero points, spread over the values of a tensor: one, an axis of them, or blocks.

    Raises MisfitError where they do not fit its shape.
    """

    def __init__(self, values: NDArray[Any], shape: tuple[int, ...], axis: int, block: int) -> None:
        n = len(shape)
        self.shape, self.blocks = shape, (1,) * n
        if values.size == 1:
            self.values = values.reshape((1,) * n)
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
            self.values = values.reshape([-1 if d == axis % n else 1 for d in range(n)])

    def take_rows(self, index: RowIndex) -> NDArray[Any]:
        """Return an array that broadcasts to the values of rows."""
        if not self.values.ndim:
            return self.values
        places = [*np.unravel_index(index, self.shape[:-1])] if len(self.shape) > 1 else []
        axes = [*(place[:, None] for place in places), np.arange(self.shape[-1])[None, :]]
        blocks = (
            np.zeros_like(axis) if size == 1 else axis // block
            for axis, size, block in zip(axes, self.values.shape, self.blocks, strict=True)
        )
        return self.values[tuple(blocks)]


def _decode_n_bits(parts: Parts) -> StoredTensor:
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
    return StoredTensor(parts.name, (inputs, outputs), dtype, parts.stored, decode_rows)


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
