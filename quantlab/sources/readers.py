"""Which class reads a file, by the file's suffix, and which decodes what is quantized in it."""

from pathlib import Path

from quantlab.sources.file import SUFFIXES, File, require_file
from quantlab.sources.gguf import Gguf, GgufFile
from quantlab.sources.numpy import Npy, Npz
from quantlab.sources.onnx import Onnx, OnnxFile
from quantlab.sources.pairing import StoredFile
from quantlab.sources.safetensors import Safetensors, SafetensorsFile

READERS: dict[str, type[File]] = {each.format: each for each in (Npy, Npz, Safetensors, Gguf, Onnx)}
DECODERS: dict[str, type[StoredFile]] = {
    each.format: each for each in (GgufFile, SafetensorsFile, OnnxFile)
}


def reader(path: Path) -> type[File]:
    """Return the reader of a file by its suffix; raises ValueError when there is none."""
    require_file(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} has none of the suffixes {', '.join(SUFFIXES)}: name a file of tensors"
        )
    return READERS[SUFFIXES[path.suffix]]
