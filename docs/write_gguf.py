"""Write a safetensors checkpoint as GGUF: in float16, and in types of llama.cpp by its own code.

``python docs/write_gguf.py MODEL.safetensors DIR TYPE...`` writes ``DIR/MODEL-F16.gguf`` and
``DIR/MODEL-TYPE.gguf``. A tensor that a type cannot hold stays in float16, one of a single
dimension in float32, as llama.cpp has them.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quantlab.formats.blocks import UnfitError
from quantlab.measurement import load_mode
from quantlab.sources.safetensors import Safetensors
from quantlab.sources.tensor import Tensor


def write(path: Path, tensors: Iterable[Tensor], kind: str | None) -> None:
    """Write tensors in float16, or in a type of ggml."""
    ggml = load_mode(f"ggml/{kind}", None) if kind else None
    writer = gguf.GGUFWriter(path, "checkpoint")
    for tensor in tensors:
        x = tensor.block(0, tensor.size).reshape(tensor.shape)
        values, dtype = _stored(tensor, x, ggml)
        writer.add_tensor(tensor.name, values, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stored(tensor: Tensor, x: Any, ggml: Any) -> tuple[Any, gguf.GGMLQuantizationType | None]:
    if x.ndim < 2:
        return x, None
    halves = x.astype(np.float16)
    try:
        if ggml:
            ggml.open(tensor)
            codes = ggml.quantize(halves.astype(np.float32).reshape(-1, x.shape[-1]))
            return codes.reshape(*x.shape[:-1], -1), gguf.GGMLQuantizationType[ggml.type.upper()]
    except UnfitError:
        pass
    return halves, None


if __name__ == "__main__":
    model, directory, *kinds = sys.argv[1:]
    for each in (None, *kinds):
        name = f"{Path(model).stem}-{each or 'F16'}.gguf"
        write(Path(directory) / name, Safetensors(model).tensors(), each)
