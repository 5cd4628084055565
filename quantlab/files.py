"""The user's own tensors: files of four formats, memory-mapped where the format allows it.

A reader lists what a file holds without reading any values, chooses by name, and opens one tensor
at a time. To add a format: a subclass of `File` here, its suffix in `FORMATS`, and a yaml in
``conf/dist/file/`` whose ``_target_`` names it.
"""

import difflib
import json
import math
import os
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.lib import format as npy_format

from quantlab.dist import Distribution
from quantlab.predict import Expected
from quantlab.tensor import Tensor, label

HEADER = 2**16  # bytes that describe one array; a longer text was not written by NumPy

Patterns = str | Sequence[str] | None


@dataclass(frozen=True)
class Entry:
    """A tensor as its file describes it; `left_out` is the reason why it is not measured."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    open: Callable[[], Tensor]
    left_out: str | None = None
    itemsize: int = 0

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """The size as stored, where the values can be read."""
        return self.size * self.itemsize


@dataclass(frozen=True)
class _Unreadable(Tensor):
    """A tensor that its file lists but does not yield."""

    reason: str = ""

    def require_finite(self) -> None:
        """Raise ValueError with the reason."""
        raise ValueError(f"tensor '{label(self.name)}' cannot be read: {self.reason}")


@dataclass(frozen=True)
class File(Distribution, ABC):
    """A file of named tensors, of which shell-style patterns choose some.

    Without `include` every floating-point tensor is chosen. Raises ValueError, naming the file,
    when it is missing or is not of its format.
    """

    path: str
    include: Patterns = None
    exclude: Patterns = None
    expected: Expected | None = None

    format: ClassVar[str]
    needs: ClassVar[Sequence[str]] = ()

    def __post_init__(self) -> None:
        """Read the list of tensors, so that a bad file is refused before anything runs."""
        _require_names("include", self.include)
        _require_names("exclude", self.exclude)
        require_file(Path(self.path), self.format)
        _require_packages(self.needs, self.path, self.format)
        _ = self.entries

    def require_tensors(self) -> None:
        """Raise ValueError when no tensor is chosen, or a pattern matches none of them."""
        self.require_matches()
        if all(entry.left_out for entry in self.entries):
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self.skipped().items())[:3])
            raise ValueError(f"{self.path} holds no tensor to measure: {reasons or 'it is empty'}")

    def require_matches(self) -> None:
        """Raise ValueError, with near misses, when a pattern matches no tensor."""
        names = [entry.name for entry in self.entries]
        for key, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in _listed(patterns):
                if not any(_matches(name, pattern) for name in names):
                    raise ValueError(
                        f"dist.{key}={pattern} matches none of the {len(names)} tensors in "
                        f"{self.path}: {_near(pattern, names)}"
                    )

    @abstractmethod
    def _entries(self) -> Iterator[Entry]:
        """Yield every tensor of the file."""

    @cached_property
    def entries(self) -> list[Entry]:
        """Every tensor of the file, chosen or with the reason why not."""
        with _readable(self.path, self.format):
            entries = [self._choose(entry) for entry in self._entries()]
            names = Counter(entry.name for entry in entries)
            twice = next((name for name, times in names.items() if times > 1), None)
            if twice is not None:
                raise _BadFileError(f"holds two tensors of the name '{label(twice)}'")
            return entries

    def tensors(self) -> Iterator[Tensor]:
        """Open the chosen tensors one by one; one that cannot be read says so when measured."""
        for entry in self.entries:
            if entry.left_out is None:
                try:
                    with _readable(self.path, self.format):
                        tensor = entry.open()
                except ValueError as reason:
                    tensor = _Unreadable(entry.name, np.empty(0), reason=str(reason))
                yield tensor

    def skipped(self) -> dict[str, str]:
        """Return why each other tensor is left out."""
        return {entry.name: entry.left_out for entry in self.entries if entry.left_out}

    def n_bytes(self) -> int:
        """Return the size of the chosen tensors as stored."""
        return sum(entry.n_bytes for entry in self.entries if entry.left_out is None)

    def _choose(self, entry: Entry) -> Entry:
        reason = entry.left_out
        if self.include is not None and not _matches(entry.name, self.include):
            reason = "not in dist.include"
        elif _matches(entry.name, self.exclude):
            reason = "in dist.exclude"
        elif not reason and not entry.size:
            reason = "it is empty"
        return replace(entry, left_out=reason)


class Npy(File):
    """One array as NumPy saves it; pickled objects are refused."""

    format = "npy"

    def _entries(self) -> Iterator[Entry]:
        with Path(self.path).open("rb") as file:
            shape, dtype = _npy_header(file)
            needed, held = file.tell() + math.prod(shape) * dtype.itemsize, os.fstat(file.fileno())
        if not dtype.hasobject and held.st_size < needed:
            raise _BadFileError(
                f"is cut off: it has {held.st_size} bytes, where shape {shape} takes {needed}"
            )
        yield _npy_entry(Path(self.path).stem, shape, dtype, self._open)

    def _open(self, name: str) -> Tensor:
        values = npy_format.open_memmap(self.path, mode="r")
        return Tensor(name, np.asarray(values), _state(self.path))


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
                    shape, dtype = _npy_header(file)
                    held = member.file_size - file.tell()
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize > held:
                    raise _BadFileError(f"has a member {name} too short for its shape {shape}")
                entry = _npy_entry(name, shape, dtype, self._open)
                if member.file_size > self.max_bytes:
                    reason = (
                        f"it unpacks to {member.file_size} bytes, above the limit of "
                        f"{self.max_bytes}: raise dist.max_bytes if you trust it"
                    )
                    entry = replace(entry, left_out=reason)
                yield entry

    def _open(self, name: str) -> Tensor:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            values = npy_format.read_array(file, allow_pickle=False)
        return Tensor(name, values, _state(self.path))


class Safetensors(File):
    """A safetensors file, or the ``.index.json`` of a checkpoint in several of them."""

    format = "safetensors"
    needs = ("safetensors", "ml_dtypes")

    def _entries(self) -> Iterator[Entry]:
        if self.path.endswith(".json"):
            for shard, names in _shards(self.path).items():
                with _readable(shard, self.format):
                    entries = {entry.name: entry for entry in self._shard(shard)}
                missing = [name for name in names if name not in entries]
                if missing:
                    raise _BadFileError(f"puts {missing[0]} into {shard}, which does not hold it")
                yield from (entries[name] for name in names)
        else:
            yield from self._shard(self.path)

    def _shard(self, path: str) -> Iterator[Entry]:
        import ml_dtypes
        import safetensors

        with safetensors.safe_open(path, framework="numpy"):
            pass  # it checks the header: lengths, offsets, overlaps
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        dtypes = {
            "F64": np.dtype("<f8"),
            "F32": np.dtype("<f4"),
            "F16": np.dtype("<f2"),
            "BF16": np.dtype(ml_dtypes.bfloat16),
            "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
            "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        }
        for name, about in header.items():
            if name == "__metadata__":
                continue
            kind, offset = about["dtype"], 8 + length + about["data_offsets"][0]
            reason = f"{kind} is no floating-point type"
            yield _mapped_entry(
                name, tuple(about["shape"]), kind, dtypes.get(kind), reason, path, offset
            )


class Gguf(File):
    """A GGUF file; tensors that are quantized already are left out."""

    format = "gguf"
    needs = ("gguf", "ml_dtypes")

    def _entries(self) -> Iterator[Entry]:
        yield from _gguf_entries(_state(self.path))


FORMATS: dict[str, type[File]] = {
    ".npy": Npy,
    ".npz": Npz,
    ".safetensors": Safetensors,
    ".json": Safetensors,
    ".gguf": Gguf,
}


def reader(path: Path) -> type[File]:
    """Return the reader of a file by its suffix; raises ValueError when there is none."""
    require_file(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} has none of the suffixes {', '.join(FORMATS)}: rename it")
    return FORMATS[path.suffix]


def require_file(path: Path, kind: str = "tensor") -> None:
    """Raise ValueError when there is no file at a path."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory: name the {kind} file in it")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name the {kind} file there is")


class _BadFileError(ValueError):
    """What is wrong with a file, as the rest of a sentence that begins with its path."""


@contextmanager
def _readable(path: str, kind: str) -> Iterator[None]:
    """Name the file in every error of a reader: the packages raise whatever they stumble over."""
    try:
        yield
    except _BadFileError as reason:
        raise ValueError(f"{path} {reason}") from None
    except Exception as stumble:
        other = FORMATS.get(Path(path).suffix)
        hint = f"; its suffix is that of {other.format}" if other and other.format != kind else ""
        what = " ".join(str(stumble).split()) or repr(stumble)
        raise ValueError(
            f"{path} is no {kind} file, or is cut off or damaged{hint} ({what})"
        ) from stumble


def _require_packages(needs: Sequence[str], path: str, extra: str) -> None:
    for package in needs:
        try:
            import_module(package)
        except ModuleNotFoundError:
            raise ValueError(
                f"reading {path} takes the package {package}: pip install 'quantlab[{extra}]'"
            ) from None


def _listed(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def _require_names(key: str, patterns: Patterns) -> None:
    """Raise ValueError unless patterns are text: YAML takes 0, true and nan for something else."""
    if patterns is None:
        return
    one = isinstance(patterns, str) or not isinstance(patterns, Sequence)
    for each in [patterns] if one else patterns:
        if not isinstance(each, str):
            raise ValueError(
                f"dist.{key} takes names or patterns, got {each!r}: quote it twice, "
                f"dist.{key}=\"'{each}'\""
            )


def _matches(name: str, patterns: Patterns) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in _listed(patterns))


def _near(pattern: str, names: list[str]) -> str:
    """Say what a pattern that matches no name may have meant."""
    bare = pattern.strip("*")
    holding = [name for name in names if bare.lower() in name.lower()]
    if holding and bare:
        return f"patterns match whole names in their case, and {holding[0]} holds '{bare}'"
    close = difflib.get_close_matches(bare, names, n=3, cutoff=0.3)
    return f"near misses are {', '.join(close)}" if close else "none comes close"


def _mapped(name: str, dtype: Any, shape: tuple[int, ...], path: str, offset: int) -> Tensor:
    """Map values that lie as they are in a file."""
    values = np.memmap(path, dtype=dtype, mode="r", shape=shape, offset=offset)
    return Tensor(name, np.asarray(values), _state(path))


def _mapped_entry(
    name: str,
    shape: tuple[int, ...],
    kind: str,
    dtype: np.dtype[Any] | None,
    otherwise: str,
    path: str,
    offset: int,
) -> Entry:
    """Describe values of a `kind` of the file's own, left out `otherwise` than with a dtype."""
    open_ = partial(_mapped, name, dtype, shape, path, offset)
    if dtype is None:
        return Entry(name, shape, kind, open_, otherwise)
    return Entry(name, shape, dtype.name, open_, itemsize=dtype.itemsize)


@lru_cache
def _gguf_entries(state: tuple[str, int, int]) -> list[Entry]:
    """List a GGUF file once per state: its reader takes seconds where there is a vocabulary."""
    import gguf
    import ml_dtypes

    dtypes = {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
    }
    path, *_ = state
    reader = gguf.GGUFReader(path)
    if reader.endianess == gguf.GGUFEndian.BIG:
        raise _BadFileError("is big-endian: convert it with gguf's gguf-convert-endian first")
    entries = []
    for tensor in reader.tensors:
        kind, shape = tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1])
        integer = kind in ("I8", "I16", "I32", "I64")
        reason = f"{kind} is {'no floating-point type' if integer else 'quantized already'}"
        offset = int(tensor.data_offset)
        entries.append(
            _mapped_entry(tensor.name, shape, kind, dtypes.get(kind), reason, path, offset)
        )
    return entries


def _state(path: str) -> tuple[str, int, int]:
    """Return what changes when a file's content does."""
    stat = Path(path).stat()
    return str(Path(path).resolve()), stat.st_size, stat.st_mtime_ns


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype, leaving the file where the values begin."""
    version = npy_format.read_magic(file)
    start = file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if version not in ((1, 0), (2, 0), (3, 0)) or length > HEADER:
        raise _BadFileError(f"has an npy header of version {version} and {length} bytes")
    file.seek(start)
    if version == (1, 0):
        shape, _, dtype = npy_format.read_array_header_1_0(file)
    else:
        shape, _, dtype = npy_format.read_array_header_2_0(file)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise _BadFileError(f"has an impossible shape {shape}")
    return shape, dtype


def _npy_entry(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], open_: Callable[[str], Tensor]
) -> Entry:
    reason = None
    if dtype.hasobject:
        reason = "it holds pickled Python objects, which are refused"
    elif dtype.kind != "f":
        reason = f"{dtype.name} is no floating-point type"
    return Entry(name, shape, dtype.name, partial(open_, name), reason, dtype.itemsize)


def _shards(index: str) -> dict[str, list[str]]:
    """Return the names of the tensors in each file of a sharded checkpoint."""
    content = json.loads(Path(index).read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise _BadFileError("has no weight_map that says which file holds which tensor")
    shards: dict[str, list[str]] = {}
    for name, file in content["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file:
            raise _BadFileError(f"puts {name} into {file}, outside its own directory")
        shards.setdefault(str(Path(index).with_name(file)), []).append(name)
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise _BadFileError(f"needs {missing[0]}, which does not exist")
    return shards
