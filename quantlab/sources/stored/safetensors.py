"""Quantized checkpoints in safetensors files, of every kind that a module here decodes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantlab.sources.file import BadFileError
from quantlab.sources.safetensors import INTEGERS, raw_tensors
from quantlab.sources.stored import (
    awq,
    bitsandbytes,
    compressed_tensors,
    gptq,
    mlx,
    mxfp4,
    scaled,
)
from quantlab.sources.stored.file import StoredFile
from quantlab.sources.stored.tensor import Config, StoredTensor, dense
from quantlab.text import label

DECODERS = (awq, gptq, compressed_tensors, bitsandbytes, mlx, mxfp4, scaled)
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
    for decoder in DECODERS:
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
    known = sorted({method for decoder in DECODERS for method in decoder.METHODS})
    method = config.get("quant_method", known[0])
    if method not in known:
        raise BadFileError(
            f"is quantized by {label(repr(method))}, says config.json, which cannot be decoded: "
            f"known are {', '.join(known)}"
        )
    return config
