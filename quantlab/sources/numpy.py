"""Files of NumPy: one array, memory-mapped, and zips of arrays."""

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from quantlab.sources.file import BadFileError, File, FileEntry, file_state
from quantlab.sources.tensor import Tensor, expect_truncation

MAX_HEADER_BYTES = 2**16  # of one array; a longer text was not written by NumPy


class Npy(File):
    """One array as NumPy saves it; pickled objects are refused."""

    format = "npy"

    def _entries(self) -> Iterator[FileEntry]:
        with Path(self.path).open("rb") as file:
            shape, dtype = read_header(file)
            needed = file.tell() + math.prod(shape) * dtype.itemsize
            n_bytes = os.fstat(file.fileno()).st_size
        if not dtype.hasobject and n_bytes < needed:
            raise BadFileError(
                f"is cut off: it has {n_bytes} bytes, where shape {shape} takes {needed}"
            )
        yield array_entry(Path(self.path).stem, shape, dtype, self._open_array)

    def _open_array(self, name: str) -> Tensor:
        state = file_state(self.path)
        expect_truncation(state)
        values = npy_format.open_memmap(self.path, mode="r")
        return Tensor(name, np.asarray(values), state)


@dataclass(frozen=True)
class Npz(File):
    """A zip of arrays as NumPy saves it; each is read into memory in its turn.

    `max_bytes` bounds the size that a member may declare, as a small file can unpack to a huge one.
    """

    max_bytes: int = 2**32

    format = "npz"

    def _entries(self) -> Iterator[FileEntry]:
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                yield self._member_entry(archive, member)

    def _member_entry(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> FileEntry:
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            open_ = partial(self._open_array, name)
            return FileEntry(name, (), "unknown", open_, "it is no array")
        with archive.open(member) as file:
            shape, dtype = read_header(file)
            n_bytes = member.file_size - file.tell()
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > n_bytes:
            raise BadFileError(f"has a member {name} too short for its shape {shape}")
        entry = array_entry(name, shape, dtype, self._open_array)
        if member.file_size <= self.max_bytes:
            return entry
        reason = (
            f"it unpacks to {member.file_size} bytes, above the limit of {self.max_bytes}: raise "
            "dist.max_bytes if you trust it"
        )
        return replace(entry, skip_reason=reason)

    def _open_array(self, name: str) -> Tensor:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            values = npy_format.read_array(file, allow_pickle=False)
        return Tensor(name, values, file_state(self.path))


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype, leaving the file where the values begin."""
    version = npy_format.read_magic(file)
    start = file.tell()
    # The length is read first: NumPy would read a header of any length, and evaluate it.
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if version not in ((1, 0), (2, 0), (3, 0)) or length > MAX_HEADER_BYTES:
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
) -> FileEntry:
    """Describe an array by its header; `open_` opens it by its name."""
    reason = None
    if dtype.hasobject:
        reason = "it holds pickled Python objects, which are refused"
    elif dtype.kind != "f":
        reason = f"{dtype.name} is no floating-point type"
    n_bytes = math.prod(shape) * dtype.itemsize
    return FileEntry(name, shape, dtype.name, partial(open_, name), reason, n_bytes)
