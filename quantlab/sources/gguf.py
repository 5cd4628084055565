"""Files of llama.cpp."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from quantlab.sources.file import BadFileError, Entry, File, file_state, mapped_entry


class Gguf(File):
    """A GGUF file; tensors that are quantized already are left out."""

    format = "gguf"
    needs = ("gguf", "ml_dtypes")

    def _entries(self) -> Iterator[Entry]:
        yield from _entries_of(file_state(self.path))


@lru_cache
def _entries_of(state: tuple[str, int, int]) -> list[Entry]:
    """List a GGUF file once per state: its reader takes seconds where there is a vocabulary."""
    import gguf
    import ml_dtypes

    dtypes = {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
    }
    path, *_ = state
    reader = gguf.GGUFReader(path)
    if reader.endianess == gguf.GGUFEndian.BIG:
        raise BadFileError("is big-endian: convert it with gguf's gguf-convert-endian first")
    entries = []
    for tensor in reader.tensors:
        kind, shape = tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1])
        integer = kind in ("I8", "I16", "I32", "I64")
        reason = f"{kind} is {'no floating-point type' if integer else 'quantized already'}"
        offset = int(tensor.data_offset)
        entries.append(
            mapped_entry(tensor.name, shape, kind, dtypes.get(kind), reason, path, offset)
        )
    return entries
