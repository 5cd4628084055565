"""Checkpoints of the safetensors package, also in several files, and those that are quantized."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantlab.formats.format import NamedTensor, Reconstruction
from quantlab.sources import hub
from quantlab.sources.file import (
    PLAIN_DTYPES,
    BadFileError,
    File,
    FileEntry,
    MappedArray,
    file_state,
    readable,
)
from quantlab.sources.kinds import packed, scaled, small_floats
from quantlab.sources.kinds.decoding import Config, StoredTensor, dense_tensor
from quantlab.sources.names import Family
from quantlab.sources.pairing import Pair, StoredFile

DTYPES = PLAIN_DTYPES | {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),  # of scales alone
    "BOOL": np.dtype(bool),
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
}
INTEGERS = {kind for kind, dtype in DTYPES.items() if dtype.kind in "iub"}
PLAIN = ("F64", "F32", "F16", "BF16")
MAX_CONFIG_BYTES = 2**24
# Scales of activations and of KV caches, and a mark that a file has them.
OF_ACTIVATIONS = re.compile(
    r"(^|[._])(input_scale|scale_input|activation_scale|qscale_act|input_global_scale"
    r"|[kvq]_scale|output_scale|scaled_fp8)$"
)

OF_INPUTS = ("input_scale", "input_global_scale", "scale_input", "activation_scale", "qscale_act")
OF_CACHE = ("k_scale", "v_scale")
OF_TENSOR = ("weight_scale_2", "weight_global_scale")
FUSED = (  # layers that runtimes join to one
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)

# Each takes its tensors from those that are left: small floats before words of the same names.
MODULES = (small_floats, packed, scaled)


class Safetensors(File):
    """A safetensors file, or the ``.index.json`` of a checkpoint in several of them.

    Weights that are stored in codes are decoded, and their scales are no tensors of their own.
    """

    format = "safetensors"
    needs = ("safetensors", "ml_dtypes")

    @property
    def family(self) -> Family:
        """What the config.json beside the file says of its model; many leave out the last."""
        config = read_model_config(self.path)
        name, ties = config.get("model_type"), config.get("tie_word_embeddings")
        return Family(None, name if isinstance(name, str) else None, ties is not False)

    def _entries(self) -> Iterator[FileEntry]:
        arrays = list(read_arrays(self.path))
        decoded = _decode_arrays(self.path, arrays)
        weights = {tensor.parts[0].name: tensor for tensor in decoded}
        used = {part.name for tensor in decoded for part in tensor.parts}
        for array in arrays:
            if array.name in weights:
                yield weights[array.name].entry()
            elif array.name not in used:
                yield array.entry(_skip_reason(array))


class Companions:
    """The scales of a file that stand beside weights: of activations, KV caches and fused layers.

    They change no weight, but what a runtime computes with it. Each fault is a sentence of the
    weight beside which the scale stands. Nothing is read before a weight is opened.
    """

    def __init__(self, arrays: Iterable[MappedArray]) -> None:
        self._arrays = {array.name: array for array in arrays if array.dtype is not None}

    def find_faults(self, name: str) -> Iterator[str]:
        """Yield what is wrong with the scales beside a weight, each a sentence."""
        layer = name.removesuffix(".weight")
        for key in OF_INPUTS:
            values = self._read(f"{layer}.{key}")
            bad = values[(values == 0) | ~np.isfinite(values)]
            if bad.size:
                yield f"its {key} is {bad[0]:g}, with which no activation is computed"
        if layer.endswith(("k_proj", "v_proj")) and self._has_unit_cache:
            yield "every k_scale and v_scale of the file is 1, as where no KV cache was calibrated"
        yield from self._compare_fused(layer)

    def _compare_fused(self, layer: str) -> Iterator[str]:
        """Yield that the scales of layers that runtimes join are not the same."""
        path, dot, projection = layer.rpartition(".")
        names = next((names for names in FUSED if projection in names), ())
        for key in OF_TENSOR:
            scales = {name: self._read(f"{path}{dot}{name}.{key}") for name in names}
            sizes = {values.size for values in scales.values()} - {0}
            if not scales or sizes != {1} or not scales[projection].size:
                continue
            others = [
                name
                for name, values in scales.items()
                if values.size and values.item() != scales[projection].item()
            ]
            if others:
                listed = " and ".join(others)
                yield (
                    f"its {key} is not that of {listed}: vLLM joins the layers and takes the "
                    "largest for all"
                )

    @cached_property
    def _has_unit_cache(self) -> bool:
        """True where there are scales of KV caches, and all of them are 1."""
        names = [name for name in self._arrays if name.rpartition(".")[2] in OF_CACHE]
        return bool(names) and all((self._read(name) == 1).all() for name in names)

    def _read(self, name: str) -> NDArray[Any]:
        """Read a scale as float32; it is empty where there is none."""
        array = self._arrays.get(name)
        if array is None:
            return np.empty(0, np.float32)
        return array.open().array.astype(np.float32).reshape(-1)


class SafetensorsFile(StoredFile):
    """A safetensors file, or the ``.index.json`` of a checkpoint in several of them."""

    format = "safetensors"
    needs = ("safetensors", "ml_dtypes")

    @property
    def is_of_mlx(self) -> bool:
        """True where MLX has written the file, as its metadata say."""
        with readable(self.path, self.format):
            is_index = self.path.endswith(".json")
            paths = [*_read_shards(self.path)][:1] if is_index else [self.path]
            return _read_metadata(paths).get("format") == "mlx"

    @cached_property
    def _companions(self) -> Companions:
        return Companions(self._arrays)

    @cached_property
    def _arrays(self) -> list[MappedArray]:
        return list(read_arrays(self.path))

    def reconstruct(self, tensor: NamedTensor, pair: Pair) -> Reconstruction:
        """Return a tensor as it is stored, with the faults of the scales beside it."""
        opened = super().reconstruct(tensor, pair)
        names = pair.tensor.members
        faults = dict.fromkeys(f for name in names for f in self._companions.find_faults(name))
        remarks = [*([opened.remark] if opened.remark else []), *faults]
        return replace(opened, remark="; ".join(remarks) or None)

    def _decode(self) -> Iterator[StoredTensor]:
        decoded = _decode_arrays(self.path, self._arrays)
        yield from decoded
        used = {part.name for tensor in decoded for part in tensor.parts}
        for array in self._arrays:
            if array.dtype is not None and not _skip_reason(array) and array.name not in used:
                yield dense_tensor(array.open())


def _decode_arrays(path: str, arrays: Sequence[MappedArray]) -> list[StoredTensor]:
    """Decode the weights that are stored in codes, or give the fault of each."""
    if all(array.kind in PLAIN for array in arrays):
        return []
    config = dict(_read_config(Path(path).with_name("config.json")))
    if any(array.name.endswith(scaled.TORCHAO_CODES) for array in arrays):
        config["torchao"] = scaled.parse_torchao_metadata(
            _read_metadata({array.file[0] for array in arrays})
        )
    tensors = {array.name: array.open() for array in arrays if array.dtype is not None}
    typed = [array for array in arrays if array.kind in small_floats.BITS]
    tensors |= {array.name: small_floats.PackedTensor.of(array) for array in typed}
    weights = []
    for kind in (kind for module in MODULES for kind in module.KINDS):
        found = list(kind.find(tensors, config))
        weights += found
        for name in {part.name for tensor in found for part in tensor.parts}:
            del tensors[name]
    return weights


def _skip_reason(array: MappedArray) -> str | None:
    """Return the reason why an array holds no values of a weight, if any."""
    if array.dtype is None:
        return f"{array.kind} is no type that is read"
    if array.kind in INTEGERS or array.kind == "F8_E8M0":
        return f"{array.kind} is no floating-point type"  # a part of the keys of runs
    if OF_ACTIVATIONS.search(array.name):
        return "it is a scale of activations"
    return None


def read_arrays(path: str) -> Iterator[MappedArray]:
    """Yield every array of a file, or of a checkpoint in several."""
    if not path.endswith(".json"):
        yield from _read_file(path)
        return
    for shard, names in _read_shards(path).items():
        with readable(shard, Safetensors.format):
            arrays = {array.name: array for array in _read_file(shard)}
        missing = [name for name in names if name not in arrays]
        if missing:
            raise BadFileError(f"puts {missing[0]} into {shard}, which does not hold it")
        yield from (arrays[name] for name in names)


def _read_file(path: str) -> Iterator[MappedArray]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # it checks the header: lengths, offsets, overlaps
    except safetensors.SafetensorError as reason:
        if "unknown variant" not in str(reason):  # of a type, which costs its tensors alone
            raise
    file = file_state(path)
    length, header = _read_header(path)
    for name, about in header.items():
        if name != "__metadata__":
            start, stop = about["data_offsets"]
            kind, shape = about["dtype"], tuple(about["shape"])
            offset = 8 + length + start
            yield MappedArray(file, name, shape, kind, DTYPES.get(kind), offset, stop - start)


def _read_header(path: str) -> tuple[int, dict[str, Any]]:
    """Return the length of a file's header, and the header."""
    with Path(path).open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        return length, json.loads(content.read(length))


def _read_metadata(paths: Iterable[str]) -> dict[str, Any]:
    """Return the metadata of files, by their keys."""
    metadata: dict[str, Any] = {}
    for path in paths:
        _, header = _read_header(path)
        stated = header.get("__metadata__")
        metadata |= stated if isinstance(stated, dict) else {}
    return metadata


def list_shards(index: str) -> dict[str, list[str]]:
    """Return the names of the tensors in each file of a sharded checkpoint."""
    content = json.loads(Path(index).read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise BadFileError("has no weight_map that says which file holds which tensor")
    shards: dict[str, list[str]] = {}
    for name, file in content["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file:
            raise BadFileError(f"puts {name} into {file}, outside its own directory")
        shards.setdefault(str(Path(index).with_name(file)), []).append(name)
    return shards


def list_files(path: str) -> list[str]:
    """List the files of a checkpoint, that which was named first."""
    return [path, *(_read_shards(path) if path.endswith(".json") else ())]


def _read_shards(index: str) -> dict[str, list[str]]:
    """List the shards, which have to be there."""
    shards = list_shards(index)
    for shard in shards:
        hub.fetch_beside(shard)
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise BadFileError(f"needs {missing[0]}, which does not exist")
    for shard in shards:
        Path(shard).open("rb").close()  # the package reports one without permission as missing
    return shards


def read_model_config(path: str) -> Config:
    """Return the config.json beside a checkpoint; empty where there is none."""
    with readable(path, Safetensors.format):
        model: Config = _read_config(Path(path).with_name("config.json")).get("model", {})
    return model


def _read_config(path: Path) -> Config:
    """Return the quantization's config in config.json, and the model's; empty where there is none.

    A method that it names refuses nothing: what the tensors hold decides. Raises BadFileError when
    it cannot be read.
    """
    hub.fetch_beside(path)
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise BadFileError(f"stands beside a config.json of {path.stat().st_size} bytes")
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as reason:
        raise BadFileError(f"stands beside a config.json that is no JSON ({reason})") from None
    content = content if isinstance(content, dict) else {}
    config = content.get("quantization_config") or content.get("quantization") or {}
    if not isinstance(config, dict):
        raise BadFileError("stands beside a config.json whose quantization_config is no mapping")
    return {**config, "model": content}
