"""A named tensor, in memory or memory-mapped, read as flat float32 blocks."""

import ctypes
import hashlib
import math
import os
import signal
import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.formats.uniform import empty_error, not_finite_error
from quantlab.text import label

CHUNK_ELEMENTS = 2**20  # hashed or searched at once
_hashes: dict[Hashable, str] = {}
FileState = tuple[str, int, int]  # path, size and time of change
TRUNCATED = (
    "quantlab: {path} was truncated while it was read, and what is recorded stays: once the file "
    "is whole again, run the same command\n"
)
_mapped: dict[FileState, None] = {}


@dataclass(frozen=True)
class Tensor:
    """Values of any float dtype, byte order and layout, under a name.

    Elements are counted in C order. `state` identifies what the values were read from, e.g. a
    file's path, size and time of change, and where they lie in it; tensors of one state and name
    are hashed once. `input_axis` is the axis of a weight along which the inputs of its layer lie,
    None where it is not known.
    """

    name: str
    array: NDArray[Any] = field(repr=False)
    state: Hashable = None
    input_axis: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as stored."""
        return self.array.shape

    @property
    def dtype(self) -> str:
        """Name of the dtype as stored, e.g. bfloat16."""
        return dtype_name(self.array.dtype)

    @property
    def itemsize(self) -> int:
        """Number of bytes that an element takes as stored."""
        return self.array.itemsize

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.array.size

    @property
    def n_bytes(self) -> int:
        """Number of bytes as stored."""
        return self.array.nbytes

    @cached_property
    def _flat(self) -> Any:
        """Values in C order: a view where there is one, else an iterator that slices."""
        return self.array.reshape(-1) if self.array.flags.c_contiguous else self.array.flat

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements `start` to `stop` in their own dtype."""
        return self._flat[start:stop]

    def block(self, start: int, stop: int) -> FloatArray:
        """Return elements `start` to `stop` as float32; what it cannot hold becomes inf."""
        stored = self.stored(start, stop)
        if stored.dtype == np.float32:
            return stored
        with np.errstate(over="ignore", invalid="ignore"):
            return stored.astype(np.float32)

    def underflows(self, start: int, block: FloatArray) -> int:
        """Count the elements from `start` on that are 0 in their float32 `block` alone."""
        zeros = 0 if self.itemsize <= 4 else block.size - int(np.count_nonzero(block))
        if not zeros:
            return 0
        stored = self.stored(start, start + block.size)
        return zeros - (block.size - int(np.count_nonzero(stored)))

    def rows(self, width: int, index: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return the elements of rows of `width` elements, and the indices of the elements."""
        spans = [(int(row) * width, min(int(row) * width + width, self.size)) for row in index]
        values = np.concatenate([self.block(*span) for span in spans])
        return values, np.concatenate([np.arange(*span) for span in spans])

    def require_finite(self) -> None:
        """Raise ValueError when empty, or with NaN, Inf or values beyond float32: how many, where.

        Reads the whole tensor; meant for one whose range is known to be wrong.
        """
        if not self.size:
            raise empty_error(label(self.name), self.shape)
        starts = range(0, self.size, CHUNK_ELEMENTS)
        chunks = [
            start + np.flatnonzero(~np.isfinite(self.block(start, start + CHUNK_ELEMENTS)))
            for start in starts
        ]
        places = np.concatenate(chunks)
        if not places.size:
            return
        first = int(places[0])
        value = self.stored(first, first + 1)[0]
        index = [int(i) for i in np.unravel_index(first, self.shape)]
        raise not_finite_error(label(self.name), places.size, self.size, value, index)

    def identity(self) -> dict[str, Any]:
        """Return ``shape, dtype, sha256``, which tell a tensor from another of its name."""
        return {"shape": list(self.shape), "dtype": self.dtype, "sha256": self.sha256()}

    def sha256(self) -> str:
        """Return the sha256 of the stored values, in C order and their own byte order."""
        if self.state is None:
            return self._hash()
        key = (self.state, self.name)
        if key not in _hashes:
            _hashes[key] = self._hash()
        return _hashes[key]

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, self.size, CHUNK_ELEMENTS):
            values = np.ascontiguousarray(self.stored(start, start + CHUNK_ELEMENTS))
            digest.update(values.view(np.uint8).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class MovedAxis(Tensor):
    """The values of an `original` with one of its axes moved to the end, read a stretch at a time.

    `array` is ``(matrices, rows, width)``: what lies along the `axis` is a row.
    """

    original: Tensor = field(kw_only=True, repr=False)
    axis: int = field(kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the axis at the end."""
        shape = self.original.shape
        return (*shape[: self.axis], *shape[self.axis + 1 :], shape[self.axis])

    @classmethod
    def of(cls, tensor: Tensor, axis: int) -> "MovedAxis":
        """Move an axis to the end; nothing is copied, but what is decoded is decoded as a whole."""
        shape, array = tensor.shape, tensor.array
        values = array if array.shape == shape else tensor.stored(0, tensor.size)
        matrices = values.reshape(math.prod(shape[:axis]), shape[axis], -1)
        state = None if tensor.state is None else (tensor.state, axis)
        return cls(tensor.name, matrices.transpose(0, 2, 1), state, original=tensor, axis=axis)

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements `start` to `stop` in their own dtype."""
        stretches = [np.ravel(part) for part in self._parts(start, min(stop, self.size))]
        return np.concatenate(stretches) if stretches else np.empty(0, self.array.dtype)

    def _parts(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Yield parts of rows, rows and matrices that cover a stretch."""
        _, rows, width = self.array.shape
        while start < stop:
            row, within = divmod(start, width)
            matrix, row = divmod(row, rows)
            n = (stop - start) // width
            if within or not n:
                part = self.array[matrix, row, within : within + stop - start]
            elif row or n < rows:
                # As they lie in memory first, then turned in the cache: twice as fast.
                part = np.ascontiguousarray(self.array[matrix, row : row + n].T).T
            else:
                part = self.array[matrix : matrix + n // rows]
            yield part
            start += part.size

    def restore(self, values: FloatArray) -> FloatArray:
        """Return values of this shape in the shape of the original."""
        return np.moveaxis(values, -1, self.axis)

    def require_finite(self) -> None:
        """Raise ValueError as the original does, whose indices it names."""
        self.original.require_finite()

    def find_original(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of elements in the C order of the original."""
        matrices, rows, width = self.array.shape
        matrix, row, place = np.unravel_index(indices, self.array.shape)
        return np.ravel_multi_index((matrix, place, row), (matrices, width, rows))


@cache  # NumPy composes it anew each time, which a list of many tensors notices
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, e.g. bfloat16."""
    return dtype.name


def map_values(
    name: str, dtype: Any, shape: tuple[int, ...], file: FileState, offset: int
) -> Tensor:
    """Map values that lie as they are in a file of a known state."""
    values = np.ndarray(shape, dtype, buffer=_map_file(file), offset=offset)
    return Tensor(name, values, (*file, offset, shape, dtype_name(values.dtype)))


@lru_cache(maxsize=16)
def _map_file(state: FileState) -> Any:
    """Map a file as a whole: a process has a thousand descriptors, a checkpoint more tensors."""
    expect_truncation(state)
    return np.memmap(state[0], dtype=np.uint8, mode="r")


def expect_truncation(state: FileState) -> None:
    """Have the process end with a sentence and exit code 1 if a mapped file is truncated.

    A read of a mapped file that another program has truncated is a signal, SIGBUS, which ends the
    process where it stands. Python runs its own handlers between two instructions of Python, which
    a loop in C never reaches, so that this one is given to the C library: it names the file.
    """
    _mapped[state] = None
    _install_handler()


@cache
def _install_handler() -> Any:
    """Handle SIGBUS in C; returns the handler, which has to live as long as the process."""
    bus_error = getattr(signal, "SIGBUS", None)  # which Windows has not
    if bus_error is None:
        return None
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_exit_truncated)
    ctypes.CDLL(None).signal(bus_error, handler)
    return handler


def _exit_truncated(bus_error: int) -> None:
    """End the process, in the thread that was reading, if a mapped file was truncated."""
    paths = [path for path, size, _ in _mapped if _size(path) < size]
    if not paths:  # a fault of something else, which repeats, now as the system has it
        ctypes.CDLL(None).signal(bus_error, ctypes.c_void_p(signal.SIG_DFL.value))
        return
    sentence = TRUNCATED.format(path=" or ".join(paths))
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, sentence.encode())
    os._exit(1)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
