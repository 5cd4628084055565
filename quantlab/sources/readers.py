"""What is read by the suffix of a file: its tensors, its codes, and the sizes of its model.

Of a file of the hub the list of tensors is read without their values: `without_values` writes a
copy that has the headers, and holes where values are. To add a container: a line in `READERS`, one
in `DECODERS` if it holds codes, and a function in `COPIERS`.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quantlab.sources import gguf, hub
from quantlab.sources.file import SUFFIXES, File, FileEntry, existing_path, require_unpickled
from quantlab.sources.gguf import Gguf, GgufFile, read_fields
from quantlab.sources.names import Family
from quantlab.sources.numpy import Npy, Npz
from quantlab.sources.onnx import Onnx, OnnxFile
from quantlab.sources.pairing import StoredFile
from quantlab.sources.safetensors import (
    INTEGERS,
    PLAIN,
    Safetensors,
    SafetensorsFile,
    list_shards,
    read_arrays,
    read_model_config,
)
from quantlab.text import require_packages

FIRST_BYTES = 2**18  # that are read of a file: most headers are shorter
MAX_HEADER_BYTES = 2**27
SETTING_BYTES = 2**12  # of an array of whole numbers that may say how others are decoded
CONNECTIONS = 8
LATENT = "kv_lora_rank"  # of a model whose keys and values are compressed
READERS: dict[str, type[File]] = {cls.format: cls for cls in (Npy, Npz, Safetensors, Gguf, Onnx)}
DECODERS: dict[str, type[StoredFile]] = {
    cls.format: cls for cls in (GgufFile, SafetensorsFile, OnnxFile)
}


def reader_of(path: Path) -> type[File]:
    """Return the reader of a file by its suffix; raises ValueError when there is none."""
    suffix = Path(existing_path(path)).suffix
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path} has none of the suffixes {', '.join(SUFFIXES)}: name a file of tensors"
        )
    return READERS[SUFFIXES[suffix]]


def open_stored(path: str) -> StoredFile:
    """Open a file whose tensors may be in codes; raises ValueError where its kind has none."""
    kind = reader_of(Path(path)).format
    if kind not in DECODERS:
        kinds = " or ".join(DECODERS)
        raise ValueError(f"{path} is an {kind} file, which holds no codes: name one of {kinds}")
    return DECODERS[kind](path)


@dataclass(frozen=True)
class DecodedFile(File):
    """Every tensor of real numbers in a file, decoded where it is stored in codes."""

    format = "quantized"

    def __post_init__(self) -> None:
        """Open the file, so that its own reader says what is wrong with it."""
        _ = self.stored
        super().__post_init__()

    @cached_property
    def stored(self) -> StoredFile:
        """The file with its codes."""
        return open_stored(self.path)

    @cached_property
    def family(self) -> Family:
        """What the file says of its model."""
        return READERS[self.stored.format](self.path, select="all").family

    def _entries(self) -> Iterator[FileEntry]:
        for tensor in self.stored.tensors.values():
            yield replace(tensor.entry(), is_quantized=False)


def count_cached_values(path: str) -> int | None:
    """Count the keys and values that the attention of a model keeps of a token, in all layers.

    A layer keeps ``kv_heads * (key_length + value_length)``. Windows, latent attention and layers
    that share them keep fewer, so that this is what is needed at most.

    None where its metadata, those of a GGUF file or the config.json beside safetensors, lack the
    number of layers, of heads, or their size.
    """
    counts = _read_gguf(path) if path.endswith(".gguf") else _read_config(path)
    if counts is None or any(type(n) is not int or n < 0 for n in counts):
        return None
    heads_of_all_layers, key_length, value_length = counts
    return heads_of_all_layers * (key_length + value_length)


def _read_gguf(path: str) -> tuple[Any, Any, Any] | None:
    fields = read_fields(path)
    prefix = f"{fields.get('general.architecture')}."
    own = {key.removeprefix(prefix): value for key, value in fields.items()}
    heads, layers = own.get("attention.head_count"), own.get("block_count")
    kv_heads = own.get("attention.head_count_kv", heads)
    length = _divide(own.get("embedding_length"), heads)
    lengths = (own.get(f"attention.{part}_length", length) for part in ("key", "value"))
    if f"attention.{LATENT}" in own:
        return None
    return _all_heads(kv_heads, layers), *lengths


def _read_config(path: str) -> tuple[Any, Any, Any] | None:
    config = read_model_config(path)
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    kv_heads = config.get("num_key_value_heads") or heads
    length = config.get("head_dim") or _divide(config.get("hidden_size"), heads)
    if LATENT in config:
        return None
    return _all_heads(kv_heads, layers), length, length


def _all_heads(kv_heads: Any, layers: Any) -> Any:
    """Return the number of heads of all layers, each of which may have a number of its own."""
    if isinstance(kv_heads, list):
        return sum(kv_heads) if all(type(n) is int for n in kv_heads) else None
    return kv_heads * layers if type(kv_heads) is int and type(layers) is int else None


def _divide(width: Any, heads: Any) -> int | None:
    return width // heads if type(width) is int and type(heads) is int and heads else None


@contextmanager
def without_values(path: str | Path) -> Iterator[Path]:
    """Yield a path that lists the tensors of a file: a copy without values of one of the hub.

    It is the path itself for any other file. Raises ValueError where the header cannot be had; in
    it the copy is called by its id.
    """
    if not hub.is_hub_id(path):
        yield Path(path)
        return
    require_unpickled(path)
    require_packages((hub.PACKAGE,), f"reading {path}")
    if hub.is_offline():
        yield Path(hub.locate(path, [*SUFFIXES]))
        return
    remote = hub.RemoteFile.find(path, [*SUFFIXES])
    kind = SUFFIXES.get(Path(remote.name).suffix)
    if kind not in COPIERS:
        yield Path(hub.locate(path, [*SUFFIXES]))
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, Path(remote.name).name)
        try:
            with hub.explained(remote.id):
                COPIERS[kind](remote, copy)
            yield copy
        except ValueError as reason:
            place = remote.id.rpartition("/")[0]  # of its shards too
            raise ValueError(str(reason).replace(folder, place)) from None


def _copy_safetensors(remote: hub.RemoteFile, copy: Path) -> None:
    """Copy a file, or the index of several and each of them, and the config.json beside it."""
    if config := remote.read_beside("config.json"):
        copy.with_name("config.json").write_bytes(config)
    if remote.name.endswith(".json"):
        copy.write_bytes(remote.read(0, MAX_HEADER_BYTES))
        shards: list[Path] = []
        with suppress(ValueError):  # who reads the copy says what is wrong with it
            shards = [Path(shard) for shard in list_shards(str(copy))]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda shard: _copy_file(remote.beside(shard.name), shard), shards))
    else:
        _copy_file(remote, copy)


def _copy_file(remote: hub.RemoteFile, copy: Path) -> None:
    head = remote.read(0, FIRST_BYTES)
    length = 8 + int.from_bytes(head[:8], "little")
    if len(head) < length <= MAX_HEADER_BYTES:
        head += remote.read(len(head), length)
    _write_with_hole(copy, head[:length], remote.size)
    with ThreadPoolExecutor(CONNECTIONS) as pool, copy.open("r+b") as content:
        spans = _find_settings(copy)
        values = pool.map(lambda span: remote.read(*span), spans)
        for (start, _), octets in zip(spans, values, strict=True):
            content.seek(start)
            content.write(octets)


def _find_settings(copy: Path) -> list[tuple[int, int]]:
    """Find the bytes of the arrays without which codes cannot be listed, such as their shapes."""
    try:
        arrays = list(read_arrays(str(copy)))
    except Exception:  # who reads the copy says what is wrong with it
        return []
    if all(array.kind in PLAIN for array in arrays):
        return []
    settings = (a for a in arrays if a.kind in INTEGERS and 0 < a.n_bytes <= SETTING_BYTES)
    return [(array.offset, array.offset + array.n_bytes) for array in settings]


def _copy_gguf(remote: hub.RemoteFile, copy: Path) -> None:
    """Copy a file, or those that a split one consists of."""
    for name in gguf.list_shards(remote.name):
        shard = remote.beside(Path(name).name)
        _copy_gguf_file(shard, copy.with_name(Path(name).name))


def _copy_gguf_file(remote: hub.RemoteFile, copy: Path) -> None:
    """Read ever more of a file until its header, whose length it does not say, is whole."""
    head = b""
    while True:
        more = remote.read(len(head), min(max(2 * len(head), FIRST_BYTES), remote.size))
        head += more
        copy.write_bytes(head)
        try:
            gguf.open_reader(str(copy))
            break
        except Exception:  # whatever the package raises where a header is cut
            if not more or len(head) >= min(remote.size, MAX_HEADER_BYTES):
                break  # who reads the copy says what is wrong with it
    _write_with_hole(copy, head, remote.size)


def _write_with_hole(copy: Path, head: bytes, size: int) -> None:
    with copy.open("wb") as content:
        content.write(head)
        content.truncate(max(size, len(head)))


COPIERS: dict[str, Callable[[hub.RemoteFile, Path], None]] = {
    "safetensors": _copy_safetensors,
    "gguf": _copy_gguf,
}
