"""Files that are written whole or not at all, read without trust, their hashes, and locks.

Anybody may have written into the directory of a sweep: a FIFO would hold its reader up, a device
would fill the memory, and deep nesting ends in a RecursionError far from here.
"""

import hashlib
import json
import os
import platform
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from quantlab.text import format_size

if TYPE_CHECKING:
    from omegaconf import DictConfig

TEMPORARY = "partial"  # the suffix of a file that is being written
LOCK_NAME = ".lock"
MAX_JSON_BYTES = 2**30  # the record of a hundred thousand tensors takes half of it
MAX_YAML_BYTES = 2**24  # a command line, which the config of a sweep repeats, is smaller
MAX_DEPTH = 100  # of nested values: Hydra's own configs have 6
MAX_INTEGER = 2**63 - 1  # larger ones are no int64, and some are no float


def to_json(value: Any) -> bytes:
    """Encode as indented UTF-8 JSON; NaN and Inf, which JSON does not know, raise ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # a file's name need not be Unicode


def write(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name, synced, then renamed over what was there."""
    with _drafts([path]):
        _write_draft(path, [content])
        _publish(path)


class Publication:
    """Files of a directory that are written one by one, and take their places together.

    `hashes` are the sha256 of those that were written, by their names; `stale` are files to remove.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hashes: dict[str, str] = {}
        self.stale: list[Path] = []
        self.paths: list[Path] = []

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write the parts of a file under a temporary name, and sync it."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        self.paths.append(path)
        self.hashes[name] = _write_draft(path, parts)


def write_together(
    directory: Path, files: Mapping[str, bytes], voucher: str, stale: Iterable[Path] = ()
) -> None:
    """Write files as a `publication` that removes `stale` ones."""
    with publication(directory, voucher) as published:
        for name, content in files.items():
            published.write(name, [content])
        published.stale = [*stale]


@contextmanager
def publication(directory: Path, voucher: str) -> Iterator[Publication]:
    """Write files of which readers take all or none: those that the `voucher` vouches for.

    All are written and synced under temporary names first: a disk that is full leaves what was
    there. When the block ends the voucher is removed, the others are renamed, stale files are
    removed, and the new voucher, which has hashes of the others, comes last. Whatever ends the
    process between leaves no voucher.
    """
    last, published = directory / voucher, Publication(directory)
    with _drafts(published.paths):
        yield published
        paths = [path for path in published.paths if path != last]
        with _named(last):
            last.unlink(missing_ok=True)
        for path in paths:
            _publish(path)
        for path in published.stale:
            path.unlink()
        _publish(last)
    # Not between: it takes a tenth of a second, in which the voucher would be missing. If a power
    # cut undoes some of the renames, the hashes in the voucher tell.
    for folder in {directory, *(path.parent for path in paths)}:
        _sync(folder)


@contextmanager
def publish_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary paths to write, whose files become those at `paths` when the block ends.

    On an error in it there is none of them. Each is synced first.
    """
    with _drafts(paths):
        yield [_draft(path) for path in paths]
        for path in paths:
            with _named(path), _draft(path).open("rb") as file:
                os.fsync(file.fileno())
        for path in paths:
            _publish(path)
    for folder in {path.parent for path in paths}:
        _sync(folder)


def _draft(path: Path) -> Path:
    """Name the temporary file that becomes `path`; its process is told apart from others."""
    return path.with_name(f".{path.name}.{os.getpid()}.{TEMPORARY}")


def _write_draft(path: Path, parts: Iterable[bytes]) -> str:
    """Write the temporary file of `path`, and return its sha256."""
    sha256 = hashlib.sha256()
    with _named(path), _draft(path).open("wb") as file:
        for part in parts:
            file.write(part)
            sha256.update(part)
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()


def _publish(path: Path) -> None:
    """Rename the temporary file of `path` over it."""
    with _named(path):
        _draft(path).replace(path)


def _sync(directory: Path) -> None:
    """Have the renames in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    with suppress(OSError):  # some file systems of a network cannot
        os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def _drafts(paths: Sequence[Path]) -> Iterator[None]:
    """Remove the temporary files of `paths` that were not renamed in the end."""
    try:
        yield
    finally:
        for path in paths:
            with suppress(OSError):
                _draft(path).unlink()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an OSError, which would name the temporary one."""
    try:
        yield
    except OSError as reason:
        raise OSError(reason.errno, reason.strerror, str(path)) from None


def require_writable(directory: Path, advice: str) -> None:
    """Raise ValueError, which ends on `advice`, if files cannot be written into a directory.

    It is asked before work whose end they are.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ValueError(f"{directory} cannot be written: {advice}")


def clear(directory: Path, names: Collection[str] = ()) -> None:
    """Remove partial files of processes that were killed, of all files or of those `names`.

    Nobody else may be writing them.
    """
    for temporary in directory.glob(f".*.{TEMPORARY}"):
        name = temporary.name[1:].rsplit(".", 2)[0]  # as `_draft` makes it
        if not names or name in names:
            temporary.unlink(missing_ok=True)


@contextmanager
def lock_directory(directory: Path, otherwise: str = "") -> Iterator[None]:
    """Hold a sweep's directory against other writers; raises ValueError, naming who holds it.

    The system gives the lock back when the process that holds it ends, however it ends. The
    sentence of the error ends on what one may do `otherwise` than to wait.
    """
    from filelock import FileLock, Timeout  # takes 0.2 s to import, and no run needs it

    path = directory / LOCK_NAME
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is no regular file: remove it")
    try:
        with FileLock(path, timeout=0):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
            yield
    except Timeout:
        raise ValueError(
            f"{directory} is in use by {path.read_text()}: wait for it to end{otherwise}"
        ) from None


@contextmanager
def open_file(path: Path, inside: Path | None = None) -> Iterator[BufferedReader]:
    """Open a regular file to read its bytes; links are not followed out of the directory `inside`.

    Raises OSError if it cannot be opened, ValueError, naming the file, if it is none. Neither waits
    for the writer of a FIFO.
    """
    if inside and not is_inside(path, inside):
        raise ValueError(f"{path} is a link out of the sweep")
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is no regular file")
        yield file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path, inside: Path | None = None, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file, see `open_file`, of at most `max_bytes`.

    Raises ValueError, naming the file, also if it is larger, or grows meanwhile.
    """
    with open_file(path, inside) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, max_bytes) + 1)  # no more, whatever its size is said to be
    if len(content) > max_bytes:
        raise ValueError(f"{path} is larger than {format_size(max_bytes)}")
    if len(content) > size:
        raise ValueError(f"{path} grew while it was read")
    return content


def read_json(path: Path, inside: Path | None = None, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file whose values others can walk and compute with; see `require_plain`.

    Raises OSError if it cannot be opened, ValueError, naming the file, if it holds anything else.
    """
    content = read_file(path, inside, max_bytes)
    try:
        return parse_json(content)
    except ValueError as reason:
        raise ValueError(f"{path} is no readable JSON ({reason})") from None


def parse_json(content: bytes) -> Any:
    """Parse JSON; raises ValueError if it is none, or nothing to compute with: `require_plain`."""
    # orjson takes a quarter of the time. What it refuses, or makes a float of that may have been an
    # integer, json reads, or says what is wrong with it.
    with suppress(ValueError):
        value = orjson.loads(content)
        require_plain(value, max_float=MAX_INTEGER)
        return value
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    require_plain(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not JSON")


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"


def require_plain(value: Any, max_float: float = sys.float_info.max) -> None:
    """Raise ValueError if JSON is nested more than `MAX_DEPTH` deep, or a number is too large."""
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        nodes: list[Any] = []
        for node in level:
            for child in node.values() if type(node) is dict else node:
                kind = type(child)
                if kind is dict or kind is list:
                    nodes.append(child)
                elif kind is int:
                    if not -MAX_INTEGER <= child <= MAX_INTEGER:
                        raise ValueError("it holds an integer beyond 64 bits")
                elif kind is float and not -max_float <= child <= max_float:
                    raise ValueError("it holds a number beyond float64")
        if not nodes:
            return
        level = nodes
    raise ValueError(_TOO_DEEP)


def read_yaml(path: Path, inside: Path | None = None) -> "DictConfig":
    """Read a config that Hydra wrote.

    Raises OSError if it cannot be opened, ValueError, naming the file, if it is no such config.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf  # which half of the commands do without
    from omegaconf.errors import OmegaConfBaseException

    content = read_file(path, inside, MAX_YAML_BYTES)
    try:
        text = content.decode()
        _require_flat_yaml(text)
        config = OmegaConf.load(StringIO(text))
    except (OSError, UnicodeError, yaml.YAMLError, OmegaConfBaseException) as reason:
        raise ValueError(f"{path} is no config ({' '.join(str(reason).split())})") from None
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} is no config: it is no mapping")
    return config


@contextmanager
def reading_config(path: Path) -> Iterator[None]:
    """Raise ValueError, naming the file, where a config has values of other types than Hydra's."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (AttributeError, KeyError, TypeError, OmegaConfBaseException):
        raise ValueError(f"{path} is no config of a sweep, as Hydra writes it") from None


def _require_flat_yaml(text: str) -> None:
    """Raise YAMLError if a text is nested too deep, or repeats parts of itself.

    Aliases of aliases make a gigabyte of ten lines.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):  # libyaml refuses names that are no Unicode
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(_TOO_DEEP)


def digest(path: Path) -> str:
    """Compute the sha256 of a regular file; raises as `open_file` does."""
    with open_file(path) as file:
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
    # Path.resolve raises RuntimeError where a link leads to itself
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))
