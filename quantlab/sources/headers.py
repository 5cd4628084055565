"""Lists of tensors in files of the hub, without their values.

Copies of files are written that have the headers, and holes where values are: a reader lists them
as it lists the files themselves. To add a container: a function in `COPIERS`.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from quantlab.sources import gguf, hub
from quantlab.sources.file import SUFFIXES, require_unpickled
from quantlab.sources.safetensors import INTEGERS, PLAIN, list_shards, read_arrays
from quantlab.text import require_packages

FIRST_BYTES = 2**18  # that are read of a file: most headers are shorter
MAX_HEADER_BYTES = 2**27
SETTING_BYTES = 2**12  # of an array of whole numbers that may say how others are decoded
CONNECTIONS = 8


@contextmanager
def without_values(path: str | Path) -> Iterator[Path]:
    """Yield a path that lists the tensors of a file: a copy without values of one of the hub.

    It is the path itself for any other file. Raises ValueError where the header cannot be had; in
    it the copy is called by its id.
    """
    if not hub.is_hub_id(path):
        yield Path(path)
        return
    require_unpickled(path)
    require_packages((hub.PACKAGE,), f"reading {path}")
    if hub.is_offline():
        yield Path(hub.locate(path, [*SUFFIXES]))
        return
    remote = hub.RemoteFile.find(path, [*SUFFIXES])
    kind = SUFFIXES.get(Path(remote.name).suffix)
    if kind not in COPIERS:
        yield Path(hub.locate(path, [*SUFFIXES]))
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, Path(remote.name).name)
        try:
            with hub.explained(remote.id):
                COPIERS[kind](remote, copy)
            yield copy
        except ValueError as reason:
            place = remote.id.rpartition("/")[0]  # of its shards too
            raise ValueError(str(reason).replace(folder, place)) from None


def _copy_safetensors(remote: hub.RemoteFile, copy: Path) -> None:
    """Copy a file, or the index of several and each of them, and the config.json beside it."""
    if config := remote.read_beside("config.json"):
        copy.with_name("config.json").write_bytes(config)
    if remote.name.endswith(".json"):
        copy.write_bytes(remote.read(0, MAX_HEADER_BYTES))
        shards: list[Path] = []
        with suppress(ValueError):  # who reads the copy says what is wrong with it
            shards = [Path(shard) for shard in list_shards(str(copy))]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda shard: _copy_file(remote.beside(shard.name), shard), shards))
    else:
        _copy_file(remote, copy)


def _copy_file(remote: hub.RemoteFile, copy: Path) -> None:
    head = remote.read(0, FIRST_BYTES)
    length = 8 + int.from_bytes(head[:8], "little")
    if len(head) < length <= MAX_HEADER_BYTES:
        head += remote.read(len(head), length)
    _write_with_hole(copy, head[:length], remote.size)
    with ThreadPoolExecutor(CONNECTIONS) as pool, copy.open("r+b") as content:
        spans = _find_settings(copy)
        values = pool.map(lambda span: remote.read(*span), spans)
        for (start, _), octets in zip(spans, values, strict=True):
            content.seek(start)
            content.write(octets)


def _find_settings(copy: Path) -> list[tuple[int, int]]:
    """Find the bytes of the arrays without which codes cannot be listed, such as their shapes."""
    try:
        arrays = list(read_arrays(str(copy)))
    except Exception:  # who reads the copy says what is wrong with it
        return []
    if all(array.kind in PLAIN for array in arrays):
        return []
    settings = (a for a in arrays if a.kind in INTEGERS and 0 < a.n_bytes <= SETTING_BYTES)
    return [(array.offset, array.offset + array.n_bytes) for array in settings]


def _copy_gguf(remote: hub.RemoteFile, copy: Path) -> None:
    """Copy a file, or those that a split one consists of."""
    for name in gguf.list_shards(remote.name):
        shard = remote.beside(Path(name).name)
        _copy_gguf_file(shard, copy.with_name(Path(name).name))


def _copy_gguf_file(remote: hub.RemoteFile, copy: Path) -> None:
    """Read ever more of a file until its header, whose length it does not say, is whole."""
    head = b""
    while True:
        more = remote.read(len(head), min(max(2 * len(head), FIRST_BYTES), remote.size))
        head += more
        copy.write_bytes(head)
        try:
            gguf.open_reader(str(copy))
            break
        except Exception:  # whatever the package raises where a header is cut
            if not more or len(head) >= min(remote.size, MAX_HEADER_BYTES):
                break  # who reads the copy says what is wrong with it
    _write_with_hole(copy, head, remote.size)


def _write_with_hole(copy: Path, head: bytes, size: int) -> None:
    with copy.open("wb") as content:
        content.write(head)
        content.truncate(max(size, len(head)))


COPIERS: dict[str, Callable[[hub.RemoteFile, Path], None]] = {
    "safetensors": _copy_safetensors,
    "gguf": _copy_gguf,
}
