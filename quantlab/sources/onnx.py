"""Weights of ONNX models, also those that stand in files beside them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.file import BadFileError, File, FileEntry, file_state, mapped
from quantlab.sources.kinds.decoding import (
    FLOATS,
    Config,
    MisfitError,
    StoredTensor,
    Which,
    dense,
    guarded,
    require_parts,
    row_width,
)
from quantlab.sources.pairing import StoredFile
from quantlab.sources.tensor import Tensor
from quantlab.text import label

FLOAT_KINDS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2")
NIBBLES = ("UINT4", "INT4")  # two codes a byte
UNSIZED = ("STRING", "UNDEFINED")
CODES = ("UINT8", "INT8", "UINT16", "INT16", "INT32", *NIBBLES)


@dataclass(frozen=True)
class Initializer:
    """A constant tensor of a graph; `external` is its file and offset, where it stands apart."""

    proto: Any
    path: str
    external: tuple[str, int] | None

    @property
    def name(self) -> str:
        """The name."""
        return str(self.proto.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, of codes that share bytes too."""
        return tuple(self.proto.dims)

    @property
    def kind(self) -> str:
        """The type as ONNX calls it, e.g. FLOAT16."""
        import onnx

        return str(onnx.TensorProto.DataType.Name(self.proto.data_type))

    def open(self) -> Tensor:
        """Return the values; of types of four bits the bytes that hold them, flat."""
        import onnx

        if not prod(self.shape):
            return Tensor(self.name, np.empty(self.shape, np.float32))
        dtype, shape = onnx.helper.tensor_dtype_to_np_dtype(self.proto.data_type), self.shape
        if self.kind in NIBBLES:
            dtype, shape = np.dtype(np.uint8), (-(-prod(shape) // 2),)
        if self.external:
            file, offset = self.external
            return mapped(self.name, dtype, shape, file, offset)
        if self.proto.raw_data:
            values = np.frombuffer(self.proto.raw_data, dtype)
        elif self.kind in NIBBLES:
            values = _packed(onnx.numpy_helper.to_array(self.proto).astype(np.int8))
        else:
            values = onnx.numpy_helper.to_array(self.proto)
        if values.size != prod(shape):
            raise BadFileError(
                f"holds {values.size} values in {self.name}, where the shape {list(self.shape)} "
                f"takes {prod(shape)}"
            )
        return Tensor(self.name, values.reshape(shape), file_state(self.path))


def _packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return codes of four bits as ONNX packs them, the first in the lower half of a byte."""
    pairs = np.append(codes.reshape(-1), np.zeros(codes.size % 2, np.int8)).view(np.uint8)
    return np.bitwise_or(pairs[::2] & 15, pairs[1::2] << 4, dtype=np.uint8)


class Graph(NamedTuple):
    """The constants of a graph by their names, and its nodes."""

    initializers: dict[str, Initializer]
    nodes: list[Any]


class Onnx(File):
    """The initializers of an ONNX model; integers and what is in codes is left out."""

    format = "onnx"
    needs = ("onnx", "ml_dtypes")

    def _entries(self) -> Iterator[FileEntry]:
        for each in graph(self.path).initializers.values():
            reason = None if each.kind in FLOAT_KINDS else f"{each.kind} is no floating-point type"
            n_bytes = 0 if each.kind in UNSIZED else _n_bytes(each.proto)
            if reason is None:
                each.open()  # holds as many values as its shape says, or raises
            yield FileEntry(each.name, each.shape, each.kind.lower(), each.open, reason, n_bytes)


def graph(path: str) -> Graph:
    """Return the graph of a model; raises ValueError where data stands outside its directory."""
    return _graph(path, file_state(path))


@lru_cache(maxsize=2)
def _graph(path: str, _: tuple[str, int, int]) -> Graph:
    """Read a graph once per state of its file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    found = [_initializer(each, Path(path)) for each in model.graph.initializer]
    names = Counter(each.name for each in found)
    twice = next((name for name, times in names.items() if times > 1), None)
    if twice is not None:
        raise BadFileError(f"holds two initializers of the name '{label(twice)}'")
    return Graph({each.name: each for each in found}, list(model.graph.node))


def _initializer(proto: Any, path: Path) -> Initializer:
    import onnx

    if any(each < 0 for each in proto.dims):
        raise BadFileError(f"gives {proto.name} an impossible shape {list(proto.dims)}")
    if proto.data_location != onnx.TensorProto.EXTERNAL:
        return Initializer(proto, str(path), None)
    about = {entry.key: entry.value for entry in proto.external_data}
    location = path.parent / about.get("location", "")
    near = {path.parent.resolve(), path.resolve().parent}  # a cache has links to files side by side
    if not any(location.resolve().is_relative_to(each) for each in near):
        raise BadFileError(f"puts {proto.name} into {location}, outside its own directory")
    if not location.is_file():
        raise BadFileError(f"needs {location} for {proto.name}, which does not exist")
    if onnx.TensorProto.DataType.Name(proto.data_type) not in (*FLOAT_KINDS, *CODES):
        return Initializer(proto, str(path), None)  # nobody reads it
    offset, size = int(about.get("offset", 0)), _n_bytes(proto)
    if offset < 0 or size != int(about.get("length", size)):
        raise BadFileError(
            f"gives {proto.name} {about.get('length')} bytes at {offset} of {location}, where its "
            f"shape {list(proto.dims)} takes {size}"
        )
    if offset + size > location.stat().st_size:
        raise BadFileError(f"needs {offset + size} bytes of {location} for {proto.name}: it is cut")
    return Initializer(proto, str(path), (str(location), offset))


def _n_bytes(proto: Any) -> int:
    """Return how many bytes the values of a tensor take."""
    import onnx

    size = prod(proto.dims)
    if onnx.TensorProto.DataType.Name(proto.data_type) in NIBBLES:
        return -(-size // 2)
    return size * int(onnx.helper.tensor_dtype_to_np_dtype(proto.data_type).itemsize)


EIGHT_BITS, SCALES = ("FLOAT8E4M3FN", "FLOAT8E5M2"), ("FLOAT", "FLOAT16", "BFLOAT16")
WIDTHS = (2, 4, 8)  # of MatMulNBits
ENDS = re.compile(r"(_DQ)?_Q\d+$|_quantized$|_quant$")  # what follows the name of the original


class OnnxFile(StoredFile):
    """An ONNX model, its data in files beside it or not."""

    format = "onnx"
    needs = ("onnx", "ml_dtypes")

    def _stored(self) -> list[StoredTensor]:
        return list(_decoded(graph(self.path)))


def _decoded(model: Graph) -> Iterator[StoredTensor]:
    used: set[str] = set()
    for found in (*_of_nodes(model), *_dynamic(model)):
        codes, *others = (part.name for part in found.parts)
        if codes not in used:
            used |= {codes, *others}
            yield found
    for each in model.initializers.values():
        if each.kind in FLOAT_KINDS and each.name not in used:
            yield dense(each.open(), each.kind)


def _of_nodes(model: Graph) -> Iterator[StoredTensor]:
    """Yield the weights that nodes decode."""
    decoders = {"DequantizeLinear": (0, _linear), "MatMulNBits": (1, _n_bits)}
    for node in model.nodes:
        first, decode = decoders.get(node.op_type, (0, None))
        inputs = list(node.input)[first:]
        if decode and inputs and inputs[0] in model.initializers:
            keys = zip(("codes", "scale", "zero_point", "g_idx"), inputs, strict=False)
            held = {
                key: model.initializers[name] for key, name in keys if name in model.initializers
            }
            yield _stored(held, _attributes(node), decode)


def _dynamic(model: Graph) -> Iterator[StoredTensor]:
    """Yield the weights of nodes that multiply integers; scales are beside them by name alone."""
    axes = {"MatMulInteger": -1, "ConvInteger": 0}
    for node in model.nodes:
        name = node.input[1] if node.op_type in axes else ""
        base = name.removesuffix("_quantized")
        if name in model.initializers and f"{base}_scale" in model.initializers:
            others = {key: f"{base}_{key}" for key in ("scale", "zero_point")}
            held = {k: model.initializers[n] for k, n in others.items() if n in model.initializers}
            codes = model.initializers[name]
            yield _stored({"codes": codes, **held}, {"axis": axes[node.op_type]}, _linear)


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _stored(held: dict[str, Initializer], attributes: dict[str, Any], decode: Any) -> StoredTensor:
    kinds = {key: (each.kind, each.shape) for key, each in held.items()}
    known = {key: each for key, each in held.items() if each.kind in (*CODES, *FLOAT_KINDS)}
    parts = {key: each.open() for key, each in known.items()}
    name = ENDS.sub("", held["codes"].name)
    return guarded(name, parts, decode, attributes | {"kinds": kinds})


def _linear(name: str, parts: dict[str, Tensor], node: Config) -> StoredTensor:
    kinds, axis, block = node["kinds"], node.get("axis", 1), node.get("block_size", 0)
    _require_kinds(kinds)
    if type(axis) is not int or type(block) is not int or block < 0:
        raise MisfitError(f"has the axis {axis!r} and blocks of {block!r}, which make no sense")
    codes, scale = parts["codes"].array, parts["scale"].array
    kind, shape = kinds["codes"]
    zero = _whole(parts["zero_point"], *kinds["zero_point"]) if "zero_point" in parts else None
    of_scale = _Spread(scale, shape, axis, block)
    of_zero = None if zero is None else _Spread(zero, shape, axis, block)
    width = row_width(shape)

    def rows(which: Which) -> FloatArray:
        q = _rows(codes, which, width, kind)
        if of_zero is not None:
            q = q - of_zero.rows(which)
        values = q.astype(np.float32) * of_scale.rows(which).astype(np.float32)
        return values.astype(scale.dtype).astype(np.float32)

    sharing = f"blocks of {block}" if block else "one scale" if scale.size == 1 else "per channel"
    return StoredTensor(name, shape, f"{kind}, {sharing}", tuple(parts.values()), rows)


def _require_kinds(kinds: dict[str, Any]) -> None:
    """Raise MisfitError unless codes, scale and zero point are of types that make sense."""
    allowed = {"codes": (*CODES, *EIGHT_BITS), "scale": SCALES, "zero_point": (*CODES, *EIGHT_BITS)}
    for key in allowed.keys() & {"codes", "scale", *kinds}:
        if key not in kinds:
            raise MisfitError(f"has no {key}")
        if kinds[key][0] not in allowed[key]:
            raise MisfitError(f"has a {key} of {kinds[key][0]}, which makes no sense")


def _rows(codes: NDArray[Any], which: Which, width: int, kind: str) -> NDArray[Any]:
    """Return the codes of some rows, numbers themselves where they are floats."""
    if kind in EIGHT_BITS:
        return codes.reshape(-1, width)[which].astype(np.float32)
    if kind not in NIBBLES:
        return codes.reshape(-1, width)[which].astype(np.int32)
    places = which[:, None] * width + np.arange(width)
    found = ((codes[places // 2] >> (4 * (places % 2)).astype(np.uint8)) & 15).astype(np.int32)
    return np.where(found > 7, found - 16, found) if kind == "INT4" else found


def _whole(part: Tensor, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    width = prod(shape)
    return _rows(part.array.reshape(-1), np.arange(1), width, kind).reshape(shape)


class _Spread:
    """A scale or zero point of each value of some rows of a tensor."""

    def __init__(self, values: NDArray[Any], shape: tuple[int, ...], axis: int, block: int) -> None:
        n = len(shape)
        if values.size == 1:
            self.values, blocks = values.reshape((1,) * n), (1,) * n
        elif not -n <= axis < n:
            raise MisfitError(f"has an axis {axis} that its shape {list(shape)} does not have")
        elif block:
            blocks = tuple(block if d == axis % n else 1 for d in range(n))
            needed = tuple(-(-each // b) for each, b in zip(shape, blocks, strict=True))
            if values.shape != needed:
                raise MisfitError(f"has scales of {list(values.shape)}, where {list(needed)} fit")
            self.values = values
        elif values.shape != (shape[axis],):
            raise MisfitError(
                f"has scales of {list(values.shape)} for axis {axis} of {list(shape)}"
            )
        else:
            self.values = values.reshape([-1 if d == axis % n else 1 for d in range(n)])
            blocks = (1,) * n
        self.shape, self.blocks = shape, blocks

    def rows(self, which: Which) -> NDArray[Any]:
        """Return what broadcasts to the values of some rows."""
        places = [*np.unravel_index(which, self.shape[:-1])] if len(self.shape) > 1 else []
        last = np.arange(self.shape[-1]) if self.shape else np.arange(1)
        index = [each[:, None] for each in places] + [last[None, :]]
        held = (
            np.zeros_like(each) if n == 1 else each // block
            for each, n, block in zip(index, self.values.shape, self.blocks, strict=True)
        )
        return self.values[tuple(held)] if self.values.ndim else self.values


def _n_bits(name: str, parts: dict[str, Tensor], node: Config) -> StoredTensor:
    """Return the weight of a MatMulNBits, ``[K, N]``, each column of it in blocks."""
    codes, scale = require_parts(parts, codes=("uint8",), scale=FLOATS)
    numbers = [node.get(key) for key in ("K", "N", "bits", "block_size")]
    if not all(isinstance(each, int) and each > 0 for each in numbers) or numbers[2] not in WIDTHS:
        raise MisfitError(f"has {numbers[2]} bits in blocks of {numbers[3]}, which are not decoded")
    inputs, outputs, bits, block = (int(each or 0) for each in numbers)
    blocks, a_byte = -(-inputs // block), 8 // bits
    if codes.size != outputs * blocks * block // a_byte or scale.size != outputs * blocks:
        raise MisfitError(
            f"has codes of {list(codes.shape)} and scales of {list(scale.shape)} for "
            f"{inputs} inputs and {outputs} outputs, which do not fit"
        )
    codes, scale = codes.reshape(outputs, blocks, -1), scale.reshape(outputs, blocks)
    zero = _zero_points(parts, outputs, blocks, bits)

    groups = _groups(parts, inputs, block)
    floats = "g_idx" in parts or ("zero_point" in parts and parts["zero_point"].dtype != "uint8")

    def rows(which: Which) -> FloatArray:
        of, place = which // block, which % block
        q = (codes[:, of, place // a_byte] >> (bits * (place % a_byte))) & (2**bits - 1)
        scales, zeros = scale[:, groups[which]].astype(np.float32), zero[:, groups[which]]
        if floats:  # as ONNX Runtime has it
            values = q.astype(np.float32) * scales - zeros * scales
        else:
            values = (q.astype(np.float32) - zeros) * scales
        return np.ascontiguousarray(values.astype(scale.dtype).T, np.float32)

    dtype = f"MatMulNBits {bits} bits, blocks of {block}"
    return StoredTensor(name, (inputs, outputs), dtype, tuple(parts.values()), rows)


def _groups(parts: dict[str, Tensor], inputs: int, block: int) -> NDArray[Any]:
    """Return the block whose scale each input has."""
    if "g_idx" not in parts:
        return np.arange(inputs) // block
    if "zero_point" in parts:
        raise MisfitError("has a g_idx beside zero points, which is not decoded")
    (of,) = require_parts(parts, g_idx=("int32",))
    if of.size < inputs or int(of.min()) < 0 or int(of.max()) >= -(-inputs // block):
        raise MisfitError(f"has a g_idx of {list(of.shape)} that names no block")
    return of.reshape(-1)


def _zero_points(
    parts: dict[str, Tensor], outputs: int, blocks: int, bits: int
) -> NDArray[np.float32]:
    """Return the zero point of each block, half the range where there is none."""
    if "zero_point" not in parts:
        return np.full((outputs, blocks), 2 ** (bits - 1), np.float32)
    held = parts["zero_point"].array
    if held.dtype != np.uint8:
        if held.size != outputs * blocks:
            raise MisfitError(f"has zero points of {list(held.shape)} for {blocks} blocks a column")
        return held.reshape(outputs, blocks).astype(np.float32)
    a_byte = 8 // bits
    if held.size != outputs * -(-blocks // a_byte):
        raise MisfitError(f"has zero points of {list(held.shape)} for {blocks} blocks a column")
    octets, of = held.reshape(outputs, -1), np.arange(blocks)
    return ((octets[:, of // a_byte] >> (bits * (of % a_byte))) & (2**bits - 1)).astype(np.float32)
