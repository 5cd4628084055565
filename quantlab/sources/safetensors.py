"""Checkpoints of the safetensors package, also in several files."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantlab.sources.file import BadFileError, File, FileEntry, mapped, mapped_entry, readable
from quantlab.sources.kinds import awq, bitsandbytes, compressed_tensors, gptq, mlx, mxfp4, scaled
from quantlab.sources.kinds.decoding import Config, StoredTensor, dense
from quantlab.sources.pairing import StoredFile
from quantlab.sources.tensor import Tensor
from quantlab.text import label

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

    def _entries(self) -> Iterator[FileEntry]:
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


KINDS = (awq, gptq, compressed_tensors, bitsandbytes, mlx, mxfp4, scaled)
LARGEST = 2**24  # bytes of a config.json


class SafetensorsFile(StoredFile):
    """A safetensors file, or the ``.index.json`` of a checkpoint in several of them."""

    format = "safetensors"
    needs = ("safetensors", "ml_dtypes")

    def _stored(self) -> list[StoredTensor]:
        return list(_decoded(self.path, _config(Path(self.path).with_name("config.json"))))


def _decoded(path: str, config: Config) -> Iterator[StoredTensor]:
    raw = {each.name: each for each in raw_tensors(path) if each.is_readable}
    tensors = {name: each.open() for name, each in raw.items()}
    for decoder in KINDS:
        found = list(decoder.find(tensors, config))
        yield from found
        used = {part.name for stored in found for part in stored.parts}
        tensors = {name: each for name, each in tensors.items() if name not in used}
    yield from (dense(each) for each in tensors.values() if raw[each.name].kind not in INTEGERS)


def _config(path: Path) -> Config:
    """Return what config.json says of the quantization, nothing where it is not there.

    Raises ValueError when it cannot be read or names a method that no module here decodes.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST:
        raise BadFileError(f"stands beside a config.json of {path.stat().st_size} bytes")
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as reason:
        raise BadFileError(f"stands beside a config.json that is no JSON ({reason})") from None
    content = content if isinstance(content, dict) else {}
    config = content.get("quantization_config") or content.get("quantization") or {}
    if not isinstance(config, dict):
        raise BadFileError("stands beside a config.json whose quantization_config is no mapping")
    known = sorted({method for decoder in KINDS for method in decoder.METHODS})
    method = config.get("quant_method", known[0])
    if method not in known:
        raise BadFileError(
            f"is quantized by {label(repr(method))}, says config.json, which cannot be decoded: "
            f"known are {', '.join(known)}"
        )
    return config
