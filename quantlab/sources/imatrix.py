"""Importance matrices of llama.cpp: the mean square of each input of a layer.

The tool llama-imatrix runs a model over text and writes, for each weight, the sum of the squares of
each input (``NAME.in_sum2``) and how many tokens it saw (``NAME.counts``), one row an expert. Its
older files, ``imatrix.dat``, are a stream of entries, each a name, a number of calls, and the mean
squares times that.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape
from quantlab.formats.element import FloatArray
from quantlab.sources.file import BadFileError, existing_path, file_state, readable
from quantlab.sources.names import gguf_name
from quantlab.text import label, require_packages

MAX_SUM = 1e20  # of squares; with some types the library aborts far beyond it
SUMS, COUNTS = ".in_sum2", ".counts"
GGUF_MAGIC = b"GGUF"
MAX_NAME_BYTES = 2**12


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix, as a GGUF file or the older ``imatrix.dat``.

    Raises ValueError, naming the file, when it is none.
    """

    path: str

    def __post_init__(self) -> None:
        """Read the file, so that a bad one is refused before anything runs."""
        object.__setattr__(self, "path", existing_path(self.path, "imatrix"))  # it is frozen
        require_packages(("gguf",), f"reading {self.path}")
        with readable(self.path, "imatrix"):
            _read_importances(file_state(self.path))

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(self.path).name

    def of(self, name: str, shape: Shape) -> FloatArray | None:
        """Return E[x_j^2] of the columns of a tensor, ``(matrices, columns)``; None where unknown.

        A tensor has the name that llama.cpp gives it, or that of Hugging Face. Raises ValueError
        where the columns are not those of the tensor.
        """
        importances = _read_importances(file_state(self.path))
        importance = importances.get(name)
        if importance is None:
            importance = importances.get(gguf_name(name) or "")
        if importance is None or len(shape) < 2:
            return None
        if len(shape) == 3 and importance.size == shape[0] * shape[2]:
            importance = importance.reshape(shape[0], shape[2])  # matrices that see one input
        is_of_experts = len(shape) == 3 and len(importance) == shape[0]
        if importance.shape[1] != shape[-1] or not (is_of_experts or len(importance) == 1):
            raise ValueError(
                f"{self.path} has importance of {list(importance.shape)} for tensor '{name}', "
                f"whose shape is {list(shape)}: it is of another model"
            )
        return importance


@lru_cache
def _read_importances(state: tuple[str, int, int]) -> dict[str, FloatArray]:
    """Return the importance of each tensor of a file, which is read once per state."""
    with Path(state[0]).open("rb") as content:
        is_gguf = content.read(len(GGUF_MAGIC)) == GGUF_MAGIC
        if not is_gguf:
            content.seek(0)
            return dict(_read_legacy_entries(content))
    return _read_gguf(state[0])


def _read_legacy_entries(content: BinaryIO) -> Iterator[tuple[str, FloatArray]]:
    """Yield the importance of each tensor of an ``imatrix.dat``, as llama-quantize reads it."""
    (n_entries,) = _read_integers(content, 1)
    if n_entries < 1:
        raise BadFileError(f"has {n_entries} entries: it is no importance matrix")
    for _ in range(n_entries):
        (length,) = _read_integers(content, 1)
        if not 0 < length <= MAX_NAME_BYTES:
            raise ValueError(f"it has a name of {length} bytes")
        name = _read_exactly(content, length).decode()
        n_calls, n_values = _read_integers(content, 2)
        if n_values < 1:
            raise ValueError(f"it has {n_values} values of {label(name)}")
        sums = np.frombuffer(_read_exactly(content, 4 * n_values), "<f4")
        if not ((sums < MAX_SUM).all() and (sums >= 0).all()):
            raise BadFileError(f"has sums of {label(name)} that are negative, huge or not finite")
        mean = sums / np.float32(n_calls) if n_calls > 0 else sums
        yield name, mean.astype(np.float32).reshape(1, -1)


def _read_integers(content: BinaryIO, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}i", _read_exactly(content, 4 * count))


def _read_exactly(content: BinaryIO, n_bytes: int) -> bytes:
    # A length that lies would be allocated before it is read.
    left = Path(content.name).stat().st_size - content.tell()
    if n_bytes > left:
        raise ValueError("it ends early")
    return content.read(n_bytes)


def _read_gguf(path: str) -> dict[str, FloatArray]:
    """Return the importance of each tensor of a GGUF file."""
    import gguf

    f32 = gguf.GGMLQuantizationType.F32
    reader = gguf.GGUFReader(path)
    tensors = {entry.name: entry.data for entry in reader.tensors if entry.tensor_type == f32}
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names:
        raise BadFileError(f"has no tensor NAME{SUMS}: it is no importance matrix")
    return {
        name: _mean_square(name, tensors[name + SUMS], tensors.get(name + COUNTS)) for name in names
    }


def _mean_square(name: str, sums: NDArray[Any], counts: NDArray[Any] | None) -> FloatArray:
    """Return sums over counts; an expert that saw no token has no preference, so all are 1."""
    if counts is None or sums.ndim > 2 or counts.size != sums.size // sums.shape[-1]:
        raise BadFileError(f"has no {name}{COUNTS} that goes with {name}{SUMS}")
    counts = np.rint(counts.reshape(-1, 1))  # as llama-quantize does
    sums = sums.reshape(len(counts), -1)
    if not ((sums < MAX_SUM).all() and (sums >= 0).all() and np.isfinite(counts).all()):
        raise BadFileError(f"has sums of squares of {name} that are negative, huge or not finite")
    mean = np.divide(sums, counts, out=np.ones(sums.shape, np.float32), where=counts > 0)
    return np.ascontiguousarray(mean, np.float32)
