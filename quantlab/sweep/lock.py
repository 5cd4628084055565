"""One sweep at a time in a directory."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a sweep's directory against a second sweep; raises ValueError, naming who holds it.

    The system gives the lock back when the process that holds it ends, however it ends.
    """
    path = directory / NAME
    try:
        with FileLock(path, timeout=0):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
            yield
    except Timeout:
        raise ValueError(
            f"{directory} is in use by another sweep, {path.read_text()}: wait for it to end, or "
            "sweep into another directory with hydra.sweep.dir=..."
        ) from None
