"""Checkpoints of the safetensors package, also in several files."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quantlab.sources.file import BadFileError, Entry, File, mapped_entry, readable


class Safetensors(File):
    """A safetensors file, or the ``.index.json`` of a checkpoint in several of them."""

    format = "safetensors"
    needs = ("safetensors", "ml_dtypes")

    def _entries(self) -> Iterator[Entry]:
        if self.path.endswith(".json"):
            for shard, names in _shards(self.path).items():
                with readable(shard, self.format):
                    entries = {entry.name: entry for entry in self._shard(shard)}
                missing = [name for name in names if name not in entries]
                if missing:
                    raise BadFileError(f"puts {missing[0]} into {shard}, which does not hold it")
                yield from (entries[name] for name in names)
        else:
            yield from self._shard(self.path)

    def _shard(self, path: str) -> Iterator[Entry]:
        import ml_dtypes
        import safetensors

        with safetensors.safe_open(path, framework="numpy"):
            pass  # it checks the header: lengths, offsets, overlaps
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        dtypes = {
            "F64": np.dtype("<f8"),
            "F32": np.dtype("<f4"),
            "F16": np.dtype("<f2"),
            "BF16": np.dtype(ml_dtypes.bfloat16),
            "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
            "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        }
        for name, about in header.items():
            if name == "__metadata__":
                continue
            kind, offset = about["dtype"], 8 + length + about["data_offsets"][0]
            reason = f"{kind} is no floating-point type"
            yield mapped_entry(
                name, tuple(about["shape"]), kind, dtypes.get(kind), reason, path, offset
            )


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
