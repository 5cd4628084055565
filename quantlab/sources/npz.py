"""A zip of arrays as NumPy saves it."""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from numpy.lib import format as npy_format

from quantlab.sources.file import BadFileError, Entry, File, file_state
from quantlab.sources.npy import array_entry, read_header
from quantlab.sources.tensor import Tensor


@dataclass(frozen=True)
class Npz(File):
    """A zip of arrays as NumPy saves it; each is read into memory in its turn.

    `max_bytes` bounds the size that a member may declare, as a small file can unpack to a huge one.
    """

    max_bytes: int = 2**32

    format = "npz"

    def _entries(self) -> Iterator[Entry]:
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name == member.filename:
                    yield Entry(name, (), "unknown", partial(self._open, name), "it is no array")
                    continue
                with archive.open(member) as file:
                    shape, dtype = read_header(file)
                    held = member.file_size - file.tell()
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize > held:
                    raise BadFileError(f"has a member {name} too short for its shape {shape}")
                entry = array_entry(name, shape, dtype, self._open)
                if member.file_size > self.max_bytes:
                    reason = (
                        f"it unpacks to {member.file_size} bytes, above the limit of "
                        f"{self.max_bytes}: raise dist.max_bytes if you trust it"
                    )
                    entry = replace(entry, skip_reason=reason)
                yield entry

    def _open(self, name: str) -> Tensor:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            values = npy_format.read_array(file, allow_pickle=False)
        return Tensor(name, values, file_state(self.path))
