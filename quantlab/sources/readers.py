"""What is read by the suffix of a file: its tensors, its codes, and the sizes of its model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from quantlab.sources.file import SUFFIXES, File, FileEntry, existing_path
from quantlab.sources.gguf import Gguf, GgufFile, read_fields
from quantlab.sources.names import Architecture
from quantlab.sources.numpy import Npy, Npz
from quantlab.sources.onnx import Onnx, OnnxFile
from quantlab.sources.pairing import StoredFile
from quantlab.sources.safetensors import Safetensors, SafetensorsFile, read_model_config

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
        raise ValueError(f"{path} is of {kind}: name a file of {', '.join(DECODERS)}")
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
    def _plain(self) -> File:
        return READERS[self.stored.format](self.path, select="all")

    @property
    def architecture(self) -> Architecture | None:
        """The model's family, where the file names it."""
        return self.stored.architecture

    @property
    def model_type(self) -> str | None:
        """The model's family as Hugging Face calls it."""
        return self._plain.model_type

    @property
    def ties_embeddings(self) -> bool:
        """False where the model is known to have an output layer that is not its embedding."""
        return self._plain.ties_embeddings

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
