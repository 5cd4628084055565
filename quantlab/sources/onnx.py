"""Weights of ONNX models, also those that stand in files beside them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.sources.file import BadFileError, Entry, File, file_state, mapped
from quantlab.sources.tensor import Tensor
from quantlab.text import label

FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2")
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

    def _entries(self) -> Iterator[Entry]:
        for each in graph(self.path).initializers.values():
            reason = None if each.kind in FLOATS else f"{each.kind} is no floating-point type"
            n_bytes = 0 if each.kind in UNSIZED else _n_bytes(each.proto)
            if reason is None:
                each.open()  # holds as many values as its shape says, or raises
            yield Entry(each.name, each.shape, each.kind.lower(), each.open, reason, n_bytes)


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
    if onnx.TensorProto.DataType.Name(proto.data_type) not in (*FLOATS, *CODES):
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
