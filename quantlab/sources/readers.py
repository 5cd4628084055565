"""The class that reads a file, by the file's suffix, and the one that decodes its codes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from quantlab.sources.file import SUFFIXES, File, FileEntry, existing_path
from quantlab.sources.gguf import Gguf, GgufFile
from quantlab.sources.names import Architecture
from quantlab.sources.numpy import Npy, Npz
from quantlab.sources.onnx import Onnx, OnnxFile
from quantlab.sources.pairing import StoredFile
from quantlab.sources.safetensors import Safetensors, SafetensorsFile

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
