"""One array as NumPy saves it, memory-mapped."""

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from quantlab.sources.file import BadFileError, Entry, File, file_state
from quantlab.sources.tensor import Tensor

HEADER = 2**16  # bytes that describe one array; a longer text was not written by NumPy


class Npy(File):
    """One array as NumPy saves it; pickled objects are refused."""

    format = "npy"

    def _entries(self) -> Iterator[Entry]:
        with Path(self.path).open("rb") as file:
            shape, dtype = read_header(file)
            needed, held = file.tell() + math.prod(shape) * dtype.itemsize, os.fstat(file.fileno())
        if not dtype.hasobject and held.st_size < needed:
            raise BadFileError(
                f"is cut off: it has {held.st_size} bytes, where shape {shape} takes {needed}"
            )
        yield array_entry(Path(self.path).stem, shape, dtype, self._open)

    def _open(self, name: str) -> Tensor:
        values = npy_format.open_memmap(self.path, mode="r")
        return Tensor(name, np.asarray(values), file_state(self.path))


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype, leaving the file where the values begin."""
    version = npy_format.read_magic(file)
    start = file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if version not in ((1, 0), (2, 0), (3, 0)) or length > HEADER:
        raise BadFileError(f"has an npy header of version {version} and {length} bytes")
    file.seek(start)
    if version == (1, 0):
        shape, _, dtype = npy_format.read_array_header_1_0(file)
    else:
        shape, _, dtype = npy_format.read_array_header_2_0(file)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise BadFileError(f"has an impossible shape {shape}")
    return shape, dtype


def array_entry(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], open_: Callable[[str], Tensor]
) -> Entry:
    """Describe an array by what its header says; `open_` opens it by its name."""
    reason = None
    if dtype.hasobject:
        reason = "it holds pickled Python objects, which are refused"
    elif dtype.kind != "f":
        reason = f"{dtype.name} is no floating-point type"
    n_bytes = math.prod(shape) * dtype.itemsize
    return Entry(name, shape, dtype.name, partial(open_, name), reason, n_bytes)
