"""Files that are written whole or not at all, their hashes, and the lock of a directory."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = "partial"  # the suffix of a file that is being written
LOCK_NAME = ".lock"


def to_json(value: Any) -> bytes:
    """Encode as indented UTF-8 JSON; NaN and Inf, which JSON does not know, raise ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # a file's name need not be Unicode


def write(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name, synced, then renamed over what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as reason:
        raise OSError(reason.errno, reason.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def clear(directory: Path) -> None:
    """Remove partial files of processes that were killed; nobody else may be writing here."""
    for temporary in directory.glob(f".*.{TEMPORARY}"):
        temporary.unlink(missing_ok=True)


@contextmanager
def lock_directory(directory: Path, otherwise: str = "") -> Iterator[None]:
    """Hold a sweep's directory against other writers; raises ValueError, naming who holds it.

    The system gives the lock back when the process that holds it ends, however it ends. The
    sentence of the error ends on what one may do `otherwise` than to wait.
    """
    from filelock import FileLock, Timeout  # takes 0.2 s to import, and no run needs it

    path = directory / LOCK_NAME
    try:
        with FileLock(path, timeout=0):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
            yield
    except Timeout:
        raise ValueError(
            f"{directory} is in use by {path.read_text()}: wait for it to end{otherwise}"
        ) from None


def digest(path: Path) -> str:
    """Compute the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def visible_files(directory: Path) -> Iterator[Path]:
    """Yield the files and links below a directory, sorted; what is hidden is no part of a sweep.

    Launchers and locks hide what is theirs; ``.hydra`` alone belongs to the runs.
    """
    for where, folders, files in os.walk(directory):
        here = Path(where)
        links = [name for name in folders if (here / name).is_symlink()]
        yield from sorted(here / name for name in (*files, *links) if name[0] != ".")
        folders[:] = sorted(name for name in folders if name == ".hydra" or name[0] != ".")


def is_inside(path: Path, directory: Path) -> bool:
    """Test whether a path, its links followed, leads into a directory."""
    return path.resolve().is_relative_to(directory.resolve())
