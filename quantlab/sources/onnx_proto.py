"""ONNX models without their large values, which stay in the file: they are mapped, not copied.

A model is one message of protobuf, which reads it whole, and twice. So its fields are walked here,
and the raw values of a tensor become external data, at their own place in the file of the model.
See https://protobuf.dev/programming-guides/encoding for how a message is written.
"""

from collections.abc import Iterable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

MIN_MAPPED_BYTES = 2**12
FIELDS = {  # by type of message, those that lead to tensors: their number and type, of onnx.proto
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
RAW_DATA, FLOAT_DATA, DOUBLE_DATA = 9, 4, 10  # of a tensor
PLAIN_DATA = (RAW_DATA, FLOAT_DATA, DOUBLE_DATA)  # fields whose bytes are those of the values
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  # types on the wire
FIXED_SIZES = {FIXED_64: 8, FIXED_32: 4}


class _DamagedError(Exception):
    """What was read is no message."""


def read_model(path: str, min_mapped_bytes: int = MIN_MAPPED_BYTES) -> Any:
    """Read an ONNX model; large values are external data in the file of the model itself.

    Large are those of `min_mapped_bytes` or more. Raises protobuf's DecodeError where the file is
    no model, OSError where it cannot be read.
    """
    import onnx

    if not Path(path).stat().st_size:  # which cannot be mapped
        return onnx.ModelProto()
    location = own_location(path)
    with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        try:
            values = _Values(location, min_mapped_bytes)
            message = b"".join(_without_values(content, 0, len(content), "model", values))
        except (_DamagedError, IndexError):
            message = content[:]  # protobuf says what is wrong with it
    return onnx.ModelProto.FromString(message)


class _Values(NamedTuple):
    """Where values stay: the name of their file, and the least number of bytes of a tensor's."""

    location: str
    min_bytes: int


def _without_values(
    content: mmap, start: int, stop: int, kind: str, values: _Values
) -> Sequence[bytes]:
    """Return a message, in pieces, without the large values of its tensors."""
    pieces, copied, position = [], start, start
    while position < stop:
        tag, place = _read_varint(content, position)
        field, wire = tag >> 3, tag & 7
        length = 0
        if wire in (VARINT, BYTES):
            length, place = _read_varint(content, place)
        end = place + (length if wire == BYTES else FIXED_SIZES.get(wire, 0))
        if end > stop or wire not in (VARINT, BYTES, *FIXED_SIZES):
            raise _DamagedError
        inner: Iterable[bytes] = ()
        if wire == BYTES and length >= values.min_bytes:
            if field in FIELDS[kind]:
                message = _without_values(content, place, end, FIELDS[kind][field], values)
                inner = (_varint(tag), _varint(sum(map(len, message))), *message)
            elif kind == "tensor" and field in PLAIN_DATA:
                inner = (_external_data(values.location, place, length),)
        if inner:
            pieces += [content[copied:position], *inner]
            copied = end
        position = end
    return [*pieces, content[copied:stop]]


def count_bytes(message: Any, path: str, kind: str = "model") -> int:
    """Return the size that a message of `read_model` of a path has once its values are in it."""
    if kind == "tensor":
        return _count_tensor_bytes(message, path)
    size = int(message.ByteSize())
    for field, value in message.ListFields():
        if inner_kind := FIELDS[kind].get(field.number):
            for inner in [value] if hasattr(value, "ByteSize") else value:
                size -= _field_bytes(inner.ByteSize())
                size += _field_bytes(count_bytes(inner, path, inner_kind))
    return size


def _count_tensor_bytes(tensor: Any, path: str) -> int:
    """Return the size of a tensor with its values, as onnx.load leaves one of external data."""
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return int(tensor.ByteSize())
    about = {entry.key: entry.value for entry in tensor.external_data}
    whole = TensorProto()
    whole.CopyFrom(tensor)
    whole.ClearField("external_data")
    whole.ClearField("data_location")
    if about["location"] != own_location(path):
        whole.data_location = TensorProto.DEFAULT  # which it writes
    length = about.get("length") or _length_behind(Path(path).parent / about["location"], about)
    return int(whole.ByteSize()) + _field_bytes(int(length))


def _length_behind(file: Path, about: dict[str, str]) -> int:
    """Return how many bytes a file has from the offset of a tensor that states no length."""
    return file.stat().st_size - int(about.get("offset", 0))


def _field_bytes(length: int) -> int:
    """Return the size of a field of bytes, or of a message; all numbers here are below 16."""
    return 1 + len(_varint(length)) + length


def own_location(path: str) -> str:
    """Return the name by which a model would find data in its own file."""
    return Path(path).resolve().name  # a cache has links to files of other names


def make_placeholder(
    path: str, name: str, data_type: int, dims: Sequence[int], n_bytes: int
) -> Any:
    """Return a tensor without its values, as `read_model` has those of a path."""
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=data_type, dims=dims)
    tensor.MergeFromString(_external_data(own_location(path), 0, n_bytes))
    return tensor


def _external_data(location: str, offset: int, length: int) -> bytes:
    """Write the fields of a tensor that say where its values are."""
    import onnx

    about = {"location": location, "offset": str(offset), "length": str(length)}
    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in about.items()]
    external = onnx.TensorProto.EXTERNAL
    return bytes(
        onnx.TensorProto(external_data=entries, data_location=external).SerializeToString()
    )


def _read_varint(content: mmap, position: int) -> tuple[int, int]:
    """Read a whole number of seven bits a byte, the lowest first; return it and where it ends."""
    value = shift = 0
    while True:
        octet = content[position]
        value |= (octet & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if octet < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])
