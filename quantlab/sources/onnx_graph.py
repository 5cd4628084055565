"""The graph of an ONNX model: its constants, its nodes, and the bodies of If, Loop and Scan in it.

Values are read when they are asked for, also those in files beside the model.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.sources import hub
from quantlab.sources.file import BadFileError, file_state, require_unique
from quantlab.sources.kinds.decoding import MisfitError
from quantlab.sources.kinds.onnx import EIGHT_BIT_FLOATS, PACKED, Operand, Quantization, kind_bits
from quantlab.sources.onnx_proto import MIN_MAPPED_BYTES, read_model
from quantlab.sources.tensor import FileState, Tensor, expect_truncation, map_values

VALUES = ("float16", "bfloat16", "float32", "float64", *EIGHT_BIT_FLOATS)
UNKNOWN = "type "  # begins the name of a dtype that onnx does not have
MAX_DEPTH = 4  # operators between a constant and its weight
COPIES = ("Identity", "QuantizeLinear")
MOVES = ("Gather", "Reshape", "Squeeze", "Unsqueeze")  # put values in other places


@dataclass(frozen=True)
class Constant:
    """A tensor whose values stand in a model; `name` is the only one of its file."""

    name: str
    proto: Any
    path: str
    state: Hashable

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, of codes that share bytes too."""
        return tuple(self.proto.dims)

    @cached_property
    def kind(self) -> str:
        """Name of the dtype."""
        return kind_name(self.proto.data_type)

    @property
    def is_known(self) -> bool:
        """Whether ONNX has the dtype."""
        return not self.kind.startswith(UNKNOWN)

    @property
    def n_bytes(self) -> int:
        """Number of bytes that the values take; 0 where that cannot be told."""
        if not self.is_known or self.kind == "string" or min(self.shape, default=0) < 0:
            return 0
        bits = kind_bits(self.kind) if self.kind in PACKED else 8 * np.dtype(self.kind).itemsize
        return -(-prod(self.shape) * bits // 8)

    @cached_property
    def fault(self) -> str | None:
        """The reason why it cannot be read, as the rest of a sentence; None where it can."""
        try:
            self.open()
        except BadFileError as reason:
            return str(reason)
        return None

    def open(self) -> Tensor:
        """Return the values, packed ones as the bytes that hold them, flat; raises BadFileError."""
        if not self.is_known:
            raise BadFileError(f"holds {self.name} of {self.kind}, which onnx does not have")
        if any(n < 0 for n in self.shape):
            raise BadFileError(f"gives {self.name} an impossible shape {list(self.shape)}")
        if not prod(self.shape):
            return Tensor(self.name, np.empty(self.shape, np.float32))
        try:
            return self._open_external() if self.is_external else self._open_inline()
        except BadFileError:
            raise
        except Exception as error:  # files hold anything: a fault costs one tensor
            reason = f"{type(error).__name__}: {error}"
            raise BadFileError(f"holds {self.name}, which cannot be read ({reason})") from None

    @property
    def is_external(self) -> bool:
        """Whether the values stand in a file beside the model."""
        import onnx

        return bool(self.proto.data_location == onnx.TensorProto.EXTERNAL)

    @property
    def _stored(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and shape of the array that holds the values."""
        if self.kind in PACKED:
            return np.dtype(np.uint8), (self.n_bytes,)
        return np.dtype(self.kind), self.shape

    def _open_inline(self) -> Tensor:
        import onnx

        dtype, shape = self._stored
        if self.proto.raw_data:
            count = len(self.proto.raw_data) / dtype.itemsize
            values = np.frombuffer(self.proto.raw_data, dtype, int(count))
        else:
            values = onnx.numpy_helper.to_array(self.proto)
            if self.kind in PACKED:
                values = _pack(values, self.kind)
            count = values.size
        if count != prod(shape):
            raise BadFileError(
                f"holds {count:.10g} values in {self.name}, where the shape {list(self.shape)} "
                f"takes {prod(shape)}"
            )
        return Tensor(self.name, values.reshape(shape), self.state)

    def locate_data(self, name: str) -> Path:
        """Return the path of a file beside the model, which is fetched from the hub if need be.

        Raises BadFileError where it is outside the model's directory; it may not exist.
        """
        path = Path(self.path)
        # A cache has links to files side by side: the directory of the link or of its target.
        directories = path.parent.resolve(), path.resolve().parent
        hub.fetch_beside(path.parent / name)
        places = [directory / name for directory in directories]
        location = next((place for place in places if place.is_file()), places[0])
        if not any(location.resolve().is_relative_to(directory) for directory in directories):
            raise BadFileError(f"puts {self.name} into {location}, outside its own directory")
        return location

    def _open_external(self) -> Tensor:
        """Map the values in a file beside the model."""
        about = {entry.key: entry.value for entry in self.proto.external_data}
        location = self.locate_data(about.get("location", ""))
        if not location.is_file():
            raise BadFileError(f"needs {location} for {self.name}, which does not exist")
        offset, size = int(about.get("offset", 0)), self.n_bytes
        if offset < 0 or size != int(about.get("length", size)):
            raise BadFileError(
                f"gives {self.name} {about.get('length')} bytes at {offset} of {location}, where "
                f"its shape {list(self.shape)} takes {size}"
            )
        if offset + size > location.stat().st_size:
            raise BadFileError(
                f"needs {offset + size} bytes of {location} for {self.name}: it is cut"
            )
        return map_values(self.name, *self._stored, file_state(str(location)), offset)

    def values(self) -> Tensor:
        """Return the values as `open` does; raises MisfitError."""
        try:
            return self.open()
        except BadFileError as reason:
            raise MisfitError(str(reason)) from None

    def operand(self) -> Operand:
        """Return the values as an input of a node; raises MisfitError where they are not read."""
        if self.kind == "string":  # which every use of an operand refuses by its kind
            return Operand(self.shape, self.kind, lambda _: np.empty((0, 0)))
        tensor = self.values()
        if self.kind in PACKED:
            return Operand.of_packed(tensor, self.kind, self.shape)
        return Operand.of_array(tensor.array, self.kind, tensor)


def _pack(codes: NDArray[Any], kind: str) -> NDArray[np.uint8]:
    """Pack codes as ONNX does, the first in the lowest bits of a byte."""
    bits = kind_bits(kind)
    octets = codes.reshape(-1).view(np.uint8) & np.uint8(2**bits - 1)
    padding = np.zeros(-octets.size % (8 // bits), np.uint8)
    groups = np.append(octets, padding).reshape(-1, 8 // bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(groups << shifts, axis=1, dtype=np.uint8)


@dataclass(frozen=True)
class Scope:
    """A graph, or a body in one, which sees the names of those around it.

    `constants` and `producers`, the node of each output, are by their names in the model.
    """

    nodes: Sequence[Any]
    parent: "Scope | None" = None
    constants: dict[str, Constant] = field(default_factory=dict)
    producers: dict[str, Any] = field(default_factory=dict)

    def find_owner(self, name: str) -> "Scope | None":
        """Return the graph that a name is of, None where it is none."""
        if name and (name in self.constants or name in self.producers):
            return self
        return self.parent.find_owner(name) if self.parent else None

    def find_constant(self, name: str) -> Constant | None:
        """Return the constant of a name, None where it is none."""
        owner = self.find_owner(name)
        return owner.constants.get(name) if owner else None

    def find_producer(self, name: str) -> Any:
        """Return the node that computes a name, None where none does."""
        owner = self.find_owner(name)
        return owner.producers.get(name) if owner else None

    def find_source(self, name: str) -> Constant | None:
        """Return the constant whose values a name has, quantized or moved to other places."""
        is_moved = False
        for _ in range(MAX_DEPTH):
            if constant := self.find_constant(name):
                # Floats that are looked up before they are quantized are activations.
                return None if is_moved and constant.kind in VALUES else constant
            node = self.find_producer(name)
            if not node or node.op_type not in (*COPIES, *MOVES):
                return None
            is_moved |= node.op_type in MOVES
            name = input_name(node, 0)
        return None

    def find_behind(self, name: str, depth: int = 0) -> Iterator[Constant]:
        """Yield the constants that a scale or a zero point is dequantized from."""
        node = self.find_producer(name)
        if constant := self.find_constant(name):
            yield constant
        elif node and depth < MAX_DEPTH and node.op_type in ("DequantizeLinear", *COPIES):
            for place in range(len(node.input)):
                yield from self.find_behind(input_name(node, place), depth + 1)

    def operand(self, name: str, role: str, depth: int = 0) -> Operand:
        """Return what a name stands for; raises MisfitError unless it comes from constants."""
        if constant := self.find_constant(name):
            return constant.operand()
        node = self.find_producer(name) if depth < MAX_DEPTH else None
        if node and node.op_type in ("DequantizeLinear", *COPIES):
            values = self.operand(input_name(node, 0), role, depth + 1)
            if node.op_type == "Identity":
                return values
            quantization = self.quantization(node, depth + 1)
            is_quantized = node.op_type == "QuantizeLinear"
            return (quantization.quantize if is_quantized else quantization.dequantize)(values)
        raise MisfitError(f"has no {role} that is constant")

    def quantization(self, node: Any, depth: int = 0) -> Quantization:
        """Return scales and zero points of a DequantizeLinear or QuantizeLinear."""
        attributes = read_attributes(node)
        scale, zero_point = input_name(node, 1), input_name(node, 2)
        output = attributes.get("output_dtype")
        return Quantization(
            self.operand(scale, "scale", depth),
            self.operand(zero_point, "zero_point", depth) if zero_point else None,
            attributes.get("axis", 1),
            attributes.get("block_size", 0),
            kind=kind_name(output) if output else None,
        )


class Graph(NamedTuple):
    """The constants of a model, its graph and the bodies in it, outer ones first, and its proto."""

    constants: list[Constant]
    scopes: list[Scope]
    model: Any


def kind_name(data_type: int) -> str:
    """Return the name of a dtype of ONNX, that of NumPy or ml_dtypes where they have one.

    >>> kind_name(1), kind_name(23), kind_name(8), kind_name(99)
    ('float32', 'float4_e2m1fn', 'string', 'type 99')
    """
    import onnx

    try:
        name = str(onnx.helper.tensor_dtype_to_np_dtype(data_type).name)
    except KeyError:
        return f"type {data_type}"
    return "string" if name == "object" else name


def input_name(node: Any, place: int | None) -> str:
    """Return the name of an input of a node, empty where there is none."""
    return as_text(node.input[place]) if place is not None and place < len(node.input) else ""


def as_text(name: str | bytes) -> str:
    """Return a string of a model, which protobuf returns in bytes where it is no UTF-8."""
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")


def read_attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by their names."""
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def model_files(path: str) -> list[str]:
    """List a model and the files beside it that hold its values.

    Raises BadFileError where one is outside the model's directory.
    """
    own = Path(path).resolve().name
    beside = {
        entry.value: constant
        for constant in read_graph(path).constants
        for entry in constant.proto.external_data
        if entry.key == "location" and entry.value != own
    }
    for name, constant in beside.items():
        constant.locate_data(name)
    return [path, *sorted({str(Path(path).parent / name) for name in beside})]


def read_graph(path: str, min_mapped_bytes: int = MIN_MAPPED_BYTES) -> Graph:
    """Return the constants and nodes of a model; no values are read.

    Constants of at least `min_mapped_bytes` are mapped when they are opened.
    """
    return _read_graph(path, file_state(path), min_mapped_bytes)


@lru_cache(maxsize=2)
def _read_graph(path: str, state: FileState, min_mapped_bytes: int) -> Graph:
    """Read a graph once per state of its file."""
    scopes: list[Scope] = []
    expect_truncation(state)  # of what read_model maps
    model = read_model(path, min_mapped_bytes)
    for body, protos in _qualified_protos(model.graph):
        require_unique((name for name, _, _ in protos), "initializers")
        constants = {
            name: Constant(qualified, proto, path, state) for name, qualified, proto in protos
        }
        nodes = [node for node in body.graph.node if node.op_type != "Constant"]
        producers = {as_text(name): node for node in nodes for name in node.output}
        parent = None if body.parent is None else scopes[body.parent]
        scopes.append(Scope(nodes, parent, constants, producers))
    listed = [constant for scope in scopes for constant in scope.constants.values()]
    require_unique((constant.name for constant in listed), "initializers")
    return Graph(listed, scopes, model)


def constant_protos(graph: Any) -> dict[str, Any]:
    """Return the tensors of a graph and of the bodies in it, by the names that `read_graph` has.

    To write to one changes the graph: what Constant nodes have as plain numbers becomes a tensor.
    """
    from onnx import AttributeProto, helper

    for body in _find_bodies(graph):
        for node in body.graph.node:
            kinds = AttributeProto.FLOAT, AttributeProto.FLOATS
            if node.op_type == "Constant" and node.attribute and node.attribute[0].type in kinds:
                values = _constant_proto(node.attribute[0])
                node.attribute[0].CopyFrom(helper.make_attribute("value", values))
    return {
        qualified: proto for _, protos in _qualified_protos(graph) for _, qualified, proto in protos
    }


def _qualified_protos(graph: Any) -> list[tuple["_Body", list[tuple[str, str, Any]]]]:
    """Return each body with its tensors, under its own names and those that are unique."""
    bodies = _find_bodies(graph)
    protos = [list(_named_protos(body.graph)) for body in bodies]
    times = Counter(name for body_protos in protos for name, _ in body_protos)
    return [
        (
            body,
            [(n, body.qualify(n) if times[n] > 1 else n, proto) for n, proto in body_protos],
        )
        for body, body_protos in zip(bodies, protos, strict=True)
    ]


class _Body(NamedTuple):
    """A graph, the names of the nodes around it, and the number of the graph that they are in."""

    graph: Any
    path: str = ""
    parent: int | None = None

    def qualify(self, name: str) -> str:
        """Return a name of this graph as the only one of its model."""
        return f"{self.path}.{name}" if self.path else name


def _find_bodies(graph: Any) -> list[_Body]:
    """Return a graph and the bodies of If, Loop and Scan in it, each after the one around it."""
    from onnx import AttributeProto

    bodies = [_Body(graph)]
    for number, body in enumerate(bodies):  # the list grows by what is inside
        for node in body.graph.node:
            for attribute in node.attribute:
                if attribute.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                    continue
                owner = as_text(node.name or (node.output[0] if node.output else "body"))
                path = body.qualify(f"{owner}.{as_text(attribute.name)}")
                graphs = (
                    [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
                )
                bodies.extend(_Body(inner, path, number) for inner in graphs)
    return bodies


def _named_protos(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield the initializers of a graph and the values of its Constant nodes, by their names."""
    for proto in graph.initializer:
        yield as_text(proto.name), proto
    for node in graph.node:
        if node.op_type == "Constant" and node.output and node.attribute:
            yield as_text(node.output[0]), _constant_proto(node.attribute[0])


def _constant_proto(attribute: Any) -> Any:
    """Return the tensor that an attribute of a Constant node holds; of no type where it is none."""
    from onnx import AttributeProto, TensorProto, helper, numpy_helper

    if attribute.type == AttributeProto.TENSOR:
        return attribute.t
    dtypes = {
        **dict.fromkeys((AttributeProto.FLOAT, AttributeProto.FLOATS), np.float32),
        **dict.fromkeys((AttributeProto.INT, AttributeProto.INTS), np.int64),
        **dict.fromkeys((AttributeProto.STRING, AttributeProto.STRINGS), object),
    }
    if attribute.type not in dtypes:
        return TensorProto(dims=attribute.sparse_tensor.dims)
    values = helper.get_attribute_value(attribute)
    return numpy_helper.from_array(np.array(values, dtypes[attribute.type]))
