"""Files that are written whole or not at all, and their hashes."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

TEMPORARY = "partial"  # the suffix of a file that is being written


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
