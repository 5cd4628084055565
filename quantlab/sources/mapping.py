"""Memory maps of files.

A read of a mapped file that another program has truncated is a signal, SIGBUS, which ends the
process where it stands. Python runs its own handlers between two instructions of Python, which a
loop in C never reaches, so that this one is given to the C library: it says which file it was.
"""

import ctypes
import os
import signal
import sys
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from quantlab.sources.tensor import Tensor, dtype_name

FileState = tuple[str, int, int]  # path, size and time of change
TRUNCATED = (
    "quantlab: {path} was truncated while it was read, and what is recorded stays: once the file "
    "is whole again, run the same command\n"
)
_mapped: dict[FileState, None] = {}


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
    """Have the process end with a sentence and exit code 1 if a mapped file is truncated."""
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
