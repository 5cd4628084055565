"""The class that reads a file, by the file's suffix, and the one that decodes its codes."""

from pathlib import Path

from quantlab.sources.file import SUFFIXES, File, existing_path
from quantlab.sources.gguf import Gguf, GgufFile
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
    existing_path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} has none of the suffixes {', '.join(SUFFIXES)}: name a file of tensors"
        )
    return READERS[SUFFIXES[path.suffix]]
