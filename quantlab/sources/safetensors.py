"""Checkpoints of the safetensors package, also in several files."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantlab.sources.file import BadFileError, Entry, File, mapped, mapped_entry, readable
from quantlab.sources.tensor import Tensor

INTEGERS = {
    "I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8",
    "U64": "<u8", "BOOL": "?",
}  # fmt: skip


class RawTensor(NamedTuple):
    """A tensor as the header of its file has it, of any dtype."""

    name: str
    kind: str
    shape: tuple[int, ...]
    path: str
    offset: int
    n_bytes: int

    @property
    def is_readable(self) -> bool:
        """Whether NumPy has its dtype."""
        return self.kind in _dtypes()

    def open(self) -> Tensor:
        """Map the values of a dtype that NumPy has."""
        return mapped(self.name, _dtypes()[self.kind], self.shape, self.path, self.offset)


class Safetensors(File):
    """A safetensors file, or the ``.index.json`` of a checkpoint in several of them."""

    format = "safetensors"
    needs = ("safetensors", "ml_dtypes")

    def _entries(self) -> Iterator[Entry]:
        dtypes = _dtypes()
        for each in raw_tensors(self.path):
            dtype = None if each.kind in (*INTEGERS, "F8_E8M0") else dtypes.get(each.kind)
            reason = f"{each.kind} is no floating-point type"
            yield mapped_entry(
                each.name,
                each.shape,
                each.kind,
                dtype,
                reason,
                each.path,
                each.offset,
                each.n_bytes,
            )


def raw_tensors(path: str) -> Iterator[RawTensor]:
    """Yield every tensor of a file, or of a checkpoint in several."""
    if not path.endswith(".json"):
        yield from _raw_tensors(path)
        return
    for shard, names in _shards(path).items():
        with readable(shard, Safetensors.format):
            tensors = {each.name: each for each in _raw_tensors(shard)}
        missing = [name for name in names if name not in tensors]
        if missing:
            raise BadFileError(f"puts {missing[0]} into {shard}, which does not hold it")
        yield from (tensors[name] for name in names)


def _raw_tensors(path: str) -> Iterator[RawTensor]:
    import safetensors

    with safetensors.safe_open(path, framework="numpy"):
        pass  # it checks the header: lengths, offsets, overlaps
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, about in header.items():
        if name != "__metadata__":
            first, last = about["data_offsets"]
            shape, offset = tuple(about["shape"]), 8 + length + first
            yield RawTensor(name, about["dtype"], shape, path, offset, last - first)


@cache
def _dtypes() -> dict[str, np.dtype[Any]]:
    import ml_dtypes

    return {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),  # of scales alone
        **{kind: np.dtype(dtype) for kind, dtype in INTEGERS.items()},
    }


def _shards(index: str) -> dict[str, list[str]]:
    """Return the names of the tensors in each file of a sharded checkpoint."""
    content = json.loads(Path(index).read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise BadFileError("has no weight_map that says which file holds which tensor")
    shards: dict[str, list[str]] = {}
    for name, file in content["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file:
            raise BadFileError(f"puts {name} into {file}, outside its own directory")
        shards.setdefault(str(Path(index).with_name(file)), []).append(name)
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise BadFileError(f"needs {missing[0]}, which does not exist")
    return shards
