"""A file of named tensors: what it lists, which tensors are chosen, and how one is opened.

A reader lists what a file holds without reading any values, chooses by name, and opens one tensor
at a time. To add a format: a module with a subclass of `File`, its suffix in `SUFFIXES`, its class
in ``readers.py``, and a yaml in ``conf/dist/file/`` whose ``_target_`` names it.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from heapq import heapify, heapreplace
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from quantlab.sources import hub
from quantlab.sources.names import Family
from quantlab.sources.source import Expected, Source
from quantlab.sources.tensor import FileState, Tensor, dtype_name, map_values
from quantlab.text import (
    Patterns,
    as_list,
    label,
    matches,
    near_misses,
    printable,
    require_packages,
    require_patterns,
)

SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".json": "safetensors",  # the index of a checkpoint in several files
    ".gguf": "gguf",
    ".onnx": "onnx",
}
PLAIN_DTYPES = {  # as GGUF and safetensors call them
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
}
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
SELECTIONS = ("weights", "all")
NO_WEIGHT = "no weight, which dist.select=all measures"
NOT_INCLUDED, EXCLUDED = "not in dist.include", "in dist.exclude"
SENTENCE_TENSORS = 3  # with reasons, in one message


@dataclass(frozen=True)
class FileEntry:
    """A tensor as its file describes it, with the bytes that it takes there.

    `dtype` is what records call its dtype, `numpy_dtype` the name that NumPy has for it;
    `skip_reason` is the reason why it is not measured. `input_axis` is the axis of a weight along
    which the inputs of its layer lie, None where the file does not tell.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    open: Callable[[], Tensor]
    skip_reason: str | None = None
    n_bytes: int = 0
    is_quantized: bool = False
    numpy_dtype: str | None = None
    input_axis: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dtype_name(self) -> str:
        """NumPy's name of the dtype where it has one, else the file's."""
        return self.numpy_dtype or self.dtype


@dataclass(frozen=True)
class MappedArray:
    """An array that lies as it is in a file; `kind` is its dtype as the file calls it.

    `dtype` is None where NumPy has none.
    """

    file: FileState
    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: np.dtype[Any] | None
    offset: int
    n_bytes: int

    def open(self) -> Tensor:
        """Map the values."""
        return map_values(self.name, self.dtype, self.shape, self.file, self.offset)

    def entry(self, skip_reason: str | None, *, is_quantized: bool = False) -> FileEntry:
        """Return the entry of the array in the list of its file."""
        known = dtype_name(self.dtype) if self.dtype else None
        dtype = self.kind if skip_reason or not known else known
        return FileEntry(
            self.name, self.shape, dtype, self.open, skip_reason, self.n_bytes, is_quantized, known
        )


@dataclass(frozen=True)
class _UnreadableTensor(Tensor):
    """A tensor that its file lists but does not yield."""

    reason: str = ""

    def require_finite(self) -> None:
        """Raise ValueError with the reason."""
        raise ValueError(f"tensor '{label(self.name)}' cannot be read: {self.reason}")


@dataclass(frozen=True)
class File(Source, ABC):
    """A file of named tensors, of which shell-style patterns choose some.

    Without `include` every floating-point tensor is chosen, or with `select` "weights" those that
    `select_weights` selects. The chosen tensors are divided into `parts` of about as many bytes, of
    which `part`, counted from 0, is opened; where there is one, it may be None. Raises ValueError,
    naming the file, when it is missing or is not of its format.
    """

    path: str
    include: Patterns = None
    exclude: Patterns = None
    expected: Expected | None = None
    parts: int = 1
    part: int | None = None
    select: str = "all"

    format: ClassVar[str]
    needs: ClassVar[Sequence[str]] = ()

    def __post_init__(self) -> None:
        """Read the list of tensors, so that a bad file is refused before anything runs."""
        require_patterns("include", self.include)
        require_patterns("exclude", self.exclude)
        require_part(self.part, self.parts)
        require_select(self.select)
        object.__setattr__(self, "path", existing_path(self.path, self.format))  # it is frozen
        require_packages(self.needs, f"reading {self.path}")
        _ = self.entries

    def require_tensors(self) -> None:
        """Raise ValueError when no tensor is chosen, or a pattern matches none of them."""
        self.require_matches()
        skipped = self.skipped()
        if len(skipped) == len(self.entries):
            reasons = [f"{name}: {why}" for name, why in [*skipped.items()][:SENTENCE_TENSORS]]
            listed = "; ".join(reasons) or "it is empty"
            raise ValueError(f"{self.path} holds no tensor to measure: {listed}")

    def require_matches(self) -> None:
        """Raise ValueError, with near misses, when a pattern matches no tensor."""
        names = [entry.name for entry in self.entries]
        require_matches(names, f"tensors in {self.path}", self.include, self.exclude)

    @abstractmethod
    def _entries(self) -> Iterator[FileEntry]:
        """Yield every tensor of the file."""

    @cached_property
    def entries(self) -> list[FileEntry]:
        """Every tensor of the file, chosen or with the reason why not."""
        with readable(self.path, self.format):
            entries = [self._choose(entry) for entry in self._entries()]
            require_unique(entry.name for entry in entries)
            return self._leave_others(entries)

    def _leave_others(self, entries: list[FileEntry]) -> list[FileEntry]:
        """Leave out the tensors that are no weights, unless all are selected or some are named."""
        if self.select == "all" or self.include is not None:
            return entries
        shapes = {entry.name: entry.shape for entry in entries if not entry.skip_reason}
        others = shapes.keys() - select_weights(shapes)
        return [
            replace(entry, skip_reason=NO_WEIGHT) if entry.name in others else entry
            for entry in entries
        ]

    @property
    def family(self) -> Family:
        """What the file says of its model."""
        return Family()

    @cached_property
    def _part_of(self) -> dict[str, int]:
        """The part of each chosen tensor."""
        chosen = [entry for entry in self.entries if entry.skip_reason is None]
        parts = divide([entry.n_bytes for entry in chosen], self.parts)
        return {entry.name: part for entry, part in zip(chosen, parts, strict=True)}

    def _is_of_part(self, entry: FileEntry) -> bool:
        return self._part_of.get(entry.name) == (self.part or 0)

    def selected_sizes(self) -> dict[str, int]:
        """Return the values of each tensor of the part that the settings select.

        Tensors in codes that cannot be read are among them.
        """
        by_choice = (NO_WEIGHT, NOT_INCLUDED, EXCLUDED)
        return {
            entry.name: entry.size
            for entry in self.entries
            if self._is_of_part(entry)
            or (entry.is_quantized and entry.skip_reason and entry.skip_reason not in by_choice)
        }

    def tensors(self) -> Iterator[Tensor]:
        """Open the tensors of the part one by one; one that cannot be read says so if measured."""
        return (self._open(entry) for entry in self.entries if self._is_of_part(entry))

    def others(self) -> Iterator[Tensor]:
        """Open the tensors of the other parts one by one."""
        chosen = (entry for entry in self.entries if not entry.skip_reason)
        return (self._open(entry) for entry in chosen if not self._is_of_part(entry))

    def _open(self, entry: FileEntry) -> Tensor:
        try:
            with readable(self.path, self.format):
                tensor = entry.open()
        except ValueError as reason:
            return _UnreadableTensor(entry.name, np.empty(0), reason=str(reason))
        axis = entry.input_axis
        return tensor if axis is None else replace(tensor, input_axis=axis)

    def places(self) -> dict[str, int]:
        """Return the index of each tensor in the list of a divided file; of a whole one nothing."""
        return {entry.name: n for n, entry in enumerate(self.entries)} if self.parts > 1 else {}

    def listing(self) -> str | None:
        """Return the sha256 of the list of a divided file, None of a whole one."""
        if self.parts == 1:
            return None
        return hashlib.sha256(json.dumps(self.stored_sizes()).encode()).hexdigest()

    def skipped(self) -> dict[str, str]:
        """Return the tensors that are left out, with the reason."""
        return {entry.name: entry.skip_reason for entry in self.entries if entry.skip_reason}

    def stored_sizes(self) -> dict[str, dict[str, Any]]:
        """Return ``dtype, shape, n_bytes, place`` of every tensor of the file."""
        return {
            entry.name: {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "n_bytes": entry.n_bytes,
                "place": place,
            }
            for place, entry in enumerate(self.entries)
        }

    def n_bytes(self) -> int:
        """Return the size of the tensors of the part as stored."""
        return sum(entry.n_bytes for entry in self.entries if self._is_of_part(entry))

    def _choose(self, entry: FileEntry) -> FileEntry:
        reason = entry.skip_reason
        if self.include is not None and not matches(entry.name, self.include):
            reason = NOT_INCLUDED
        elif matches(entry.name, self.exclude):
            reason = EXCLUDED
        elif not reason and not entry.size:
            reason = "it is empty"
        return replace(entry, skip_reason=reason)


def select_weights(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Select the weights by their shapes: those with two axes or more that are longer than 1.

    Norms, biases and constants are none. Where there is no weight at all, all are selected.
    """
    weights = {name for name, shape in shapes.items() if sum(n > 1 for n in shape) > 1}
    return weights or set(shapes)


def require_select(select: Any) -> None:
    """Raise ValueError unless `select` is one of `SELECTIONS`."""
    if select not in SELECTIONS:
        raise ValueError(f"dist.select must be {' or '.join(SELECTIONS)}, got {select!r}")


class BadFileError(ValueError):
    """A fault of a file, as the rest of a sentence that begins with its path."""


def require_unique(names: Iterable[str], things: str = "tensors") -> None:
    """Raise BadFileError when a file holds two things of one name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise BadFileError(f"holds two {things} of the name '{label(repeated[0])}'")


def expand_home(path: str | Path) -> Path:
    """Expand ``~`` in a path as shells do: a name of no user, as in ``~a.npy``, stays.

    >>> expand_home("~a.npy").name
    '~a.npy'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def existing_path(path: str | Path, kind: str = "tensor") -> str:
    """Expand ``~`` in a path; raises ValueError unless it is a file with content to read.

    A file of the hub, ``hf://org/model/file``, is downloaded, and has its path in the cache.
    """
    if hub.is_hub_id(path):
        require_unpickled(path)
        suffixes = [end for end, name in SUFFIXES.items() if kind in (name, "tensor")]
        path = hub.locate(path, suffixes)
    expanded = expand_home(path)
    try:
        if expanded.is_dir():
            raise ValueError(f"{path} is a directory: name the {kind} file in it")
        if not expanded.is_file():
            raise ValueError(f"{path}: no such file")
        if not expanded.stat().st_size:
            raise ValueError(f"{path} is empty (0 bytes)")
        require_unpickled(path)
        expanded.open("rb").close()  # packages report a file without permission as a missing one
    except OSError as reason:
        raise ValueError(f"{path} cannot be read: {reason.strerror or reason}") from None
    return str(expanded)


def require_unpickled(path: str | Path) -> None:
    """Raise ValueError where the suffix of a file is that of pickled objects."""
    if Path(path).suffix in PICKLED:
        raise ValueError(
            f"{path} holds pickled objects, which run code when they are loaded: convert it to "
            "safetensors"
        )


@contextmanager
def readable(path: str, kind: str) -> Iterator[None]:
    """Name the file in every error of a reader: the packages raise whatever they stumble over."""
    try:
        yield
    except OSError as reason:
        other = reason.filename and str(reason.filename) != path
        what = f"{path} needs {reason.filename}, which" if other else path
        raise ValueError(f"{what} cannot be read: {reason.strerror or reason}") from None
    except BadFileError as reason:
        raise ValueError(f"{path} {printable(str(reason))}") from None
    except Exception as error:
        other = SUFFIXES.get(Path(path).suffix, kind)
        hint = f"; its suffix is that of {other}" if other != kind else ""
        cause = printable(" ".join(str(error).split())) or repr(error)
        raise ValueError(
            f"{path} is no {kind} file, or is cut off or damaged{hint} ({cause})"
        ) from error


def file_state(path: str) -> FileState:
    """Return path, size and time of change, which identify the content of a file."""
    expanded = expand_home(path)
    stat = expanded.stat()
    return str(expanded.resolve()), stat.st_size, stat.st_mtime_ns


def require_matches(names: Sequence[str], where: str, include: Patterns, exclude: Patterns) -> None:
    """Raise ValueError, with near misses, when a pattern matches none of some names."""
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in as_list(patterns):
            if not any(matches(name, pattern) for name in names):
                raise ValueError(
                    f"dist.{key}={pattern} matches none of the {len(names)} {where}: "
                    f"{near_misses(pattern, list(names))}"
                )


def file_sha256(path: str) -> str:
    """Compute the sha256 of a file, once in a process for each state of it."""
    return _sha256(file_state(path))


@lru_cache(maxsize=2**12)
def _sha256(state: FileState) -> str:
    with Path(state[0]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_part(part: Any, parts: Any) -> None:
    """Raise ValueError unless `part` is one of ``0 .. parts - 1``; of one part it may be None."""
    if type(parts) is not int or parts < 1:
        raise ValueError(f"dist.parts must be a whole number of 1 or more, got {parts!r}")
    if parts == 1 and part in (None, 0):
        return
    if parts == 1:
        raise ValueError(f"dist.part={part!r} takes dist.parts=N, the number of parts: add it")
    if part is None:
        raise ValueError(
            f"dist.parts={parts} takes dist.part=range({parts}) in a sweep, or the number of one "
            "part: add it"
        )
    if type(part) is not int or not 0 <= part < parts:
        raise ValueError(
            f"dist.part must be a whole number from 0 to {parts - 1} with dist.parts={parts}, "
            f"got {part!r}"
        )


def divide(sizes: Sequence[int], parts: int) -> list[int]:
    """Return the part of each size, the sums of the parts about even.

    The largest goes first, into the part that holds least; the first one where several are equal.

    >>> divide([5, 9, 4, 4], 2)
    [1, 0, 1, 0]
    """
    part_of = [0] * len(sizes)
    loads = [(0, part) for part in range(min(parts, len(sizes)))]  # any more parts stay empty
    heapify(loads)
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        load, part = loads[0]
        part_of[n] = part
        heapreplace(loads, (load + sizes[n], part))
    return part_of
