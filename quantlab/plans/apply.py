"""A checkpoint with every weight as its format brings it back: ``quantlab apply PLAN MODEL OUT``.

The files are copied byte for byte, then the values of the tensors that the plan has in a format are
overwritten where they lie, in their own dtype. So names, shapes, dtypes, metadata and all other
tensors are those of the original, and whatever evaluates it evaluates the plan.
"""

import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from quantlab.plans.planned import Planned
from quantlab.records import disk
from quantlab.sources.file import File, readable
from quantlab.sources.gguf import list_shards
from quantlab.sources.onnx_graph import model_files, read_graph
from quantlab.sources.readers import reader_of
from quantlab.sources.safetensors import list_files
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import reconstruct_into
from quantlab.stats.parallel import usable_cores
from quantlab.text import first_few, label

SENTENCE_TENSORS = 3  # names in one message
MEMBER_SUFFIX = ".npy"  # of an array in an npz


class Applied(NamedTuple):
    """The files that were written, and how many tensors have a format of the plan, and have not."""

    files: Sequence[Path]
    n_replaced: int
    n_copied: int


def apply_plan(plan: Path, model: Path, out: Path, threads: int | None = None) -> Applied:
    """Write a copy of a checkpoint with its weights as the formats of a plan bring them back.

    Parameters
    ----------
    plan
        A plan.json, or the directory that has one.
    model
        The checkpoint: npy, npz, safetensors (or the index of several files), GGUF or ONNX.
    out
        The file to write; of a checkpoint in several files the directory, in which they have their
        names. Nothing is overwritten, and on any error nothing is written.
    threads
        Changes the time and no value; all cores where None.

    Raises
    ------
    ValueError
        Where a file cannot be read or is there already, the plan is of another checkpoint, or a
        weight is stored in codes or comes back with values beyond its dtype.
    """
    planned = Planned(str(plan / "plan.json" if plan.is_dir() else plan))
    source = reader_of(model)(str(model), select="all")
    with readable(source.path, source.format):
        files = [Path(file) for file in _checkpoint_files(source)]
    targets = _targets(files, out)
    tensors = _planned_tensors(planned, source)
    work = _Copy(source, planned.bind(source), tensors, threads or usable_cores())
    with _make_parents(targets), disk.publish_together(targets) as drafts:
        work.write(dict(zip(files, drafts, strict=True)))
    return Applied(targets, len(tensors), len(source.entries) - len(tensors))


def _checkpoint_files(source: File) -> Sequence[str]:
    """List the files that hold a checkpoint, that which was named first."""
    if source.format == "safetensors":
        return list_files(source.path)
    if source.format == "gguf":
        return list_shards(source.path)
    return model_files(source.path) if source.format == "onnx" else [source.path]


def _targets(files: Sequence[Path], out: Path) -> list[Path]:
    """Return the paths of the copies; raises ValueError where one is there already."""
    if len(files) > 1 and out.suffix == files[0].suffix:
        raise ValueError(f"the checkpoint is {len(files)} files: give a directory for {out}")
    is_file = len(files) == 1 and not out.is_dir()
    folder = files[0].parent
    targets = [out] if is_file else [out / file.relative_to(folder) for file in files]
    for file, target in zip(files, targets, strict=True):
        if ".." in file.relative_to(folder).parts:  # would lie outside `out`
            raise ValueError(f"{files[0]} names {file} by way of another directory: not copied")
        if target.exists() or target.is_symlink():
            raise ValueError(f"{target} is there already: name another file, or remove it")
    return targets


@contextmanager
def _make_parents(targets: Sequence[Path]) -> Iterator[None]:
    """Make the directories of files, and remove those that are new where the block fails."""
    parents = {parent for target in targets for parent in target.parents}
    missing = sorted((parent for parent in parents if not parent.exists()), reverse=True)
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:  # those below come first
            with suppress(OSError):
                parent.rmdir()
        raise


def _planned_tensors(planned: Planned, source: File) -> list[Tensor]:
    """Open the tensors that have a format; raises ValueError if one is not there as planned."""
    named = {name for name, spec in planned.specs.items() if spec}
    skipped = {name: why for name, why in source.skipped().items() if name in named}
    missing = named - {entry.name for entry in source.entries}
    if missing:
        names = ", ".join(
            first_few([label(name) for name in sorted(missing)], SENTENCE_TENSORS, "{} more".format)
        )
        raise ValueError(
            f"{source.path} has no {names}, which {planned.path} stores in a format: it is the "
            "plan of another checkpoint"
        )
    if skipped:
        name, why = next(iter(skipped.items()))
        raise ValueError(f"{source.path}: '{label(name)}' cannot be replaced: {why}")
    return [tensor for tensor in source.tensors() if tensor.name in named]


class _Place(NamedTuple):
    """Where the values of a tensor begin, and the order that they lie in."""

    file: str
    offset: int
    order: Literal["F", "C"] = "C"


@dataclass(frozen=True)
class _Copy:
    """A copy of the files of a checkpoint, with some tensors as a plan brings them back."""

    source: File
    planned: Planned
    tensors: Sequence[Tensor]
    threads: int

    def write(self, drafts: Mapping[Path, Path]) -> None:
        """Write each file as its draft."""
        if self.source.format == "npz":
            ((path, draft),) = drafts.items()
            self._write_zip(path, draft)
            return
        for path, draft in drafts.items():
            shutil.copyfile(path, draft)
        resolved = {str(path.resolve()): draft for path, draft in drafts.items()}
        names: dict[_Place, str] = {}
        for tensor, place in self._places():
            if names.setdefault(place, tensor.name) != tensor.name:
                raise ValueError(
                    f"{self.source.path} has '{label(names[place])}' and '{label(tensor.name)}' in "
                    "one place: a plan cannot tell them apart"
                )
            dtype, shape, order = tensor.array.dtype, tensor.shape, place.order
            values = np.memmap(resolved[place.file], dtype, "r+", place.offset, shape, order)
            self._replace(tensor, values)
            values.flush()

    def _places(self) -> Iterator[tuple[Tensor, "_Place"]]:
        """Yield each tensor with the place of its values."""
        if self.source.format == "npy":
            array: Any = npy_format.open_memmap(self.source.path, mode="r")
            order: Literal["F", "C"] = "C" if array.flags.c_contiguous else "F"
            file = str(Path(self.source.path).resolve())
            yield from ((tensor, _Place(file, array.offset, order)) for tensor in self.tensors)
            return
        states = {tensor.name: tensor.state for tensor in self.tensors}
        if self.source.format == "onnx":  # whose smaller values were not mapped
            constants = read_graph(self.source.path, min_mapped_bytes=1).constants
            states |= {c.name: c.open().state for c in constants if c.name in states}
        for tensor in self.tensors:
            match states[tensor.name]:
                case (str(file), _, _, int(offset), _, _):
                    yield tensor, _Place(file, offset)
                case _:
                    raise ValueError(
                        f"{self.source.path}: '{label(tensor.name)}' cannot be replaced: it is "
                        "stored in codes, or as single numbers"
                    )

    def _write_zip(self, path: Path, draft: Path) -> None:
        """Write an npz: arrays that are not replaced are copied byte for byte."""
        tensors = {tensor.name: tensor for tensor in self.tensors}
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(draft, "w") as copied:
            for member in archive.infolist():
                tensor = tensors.get(member.filename.removesuffix(MEMBER_SUFFIX))
                header = copy(member)
                large = member.file_size >= 2**31
                with copied.open(header, "w", force_zip64=large) as file:
                    if tensor is None:
                        with archive.open(member) as content:
                            shutil.copyfileobj(content, file)
                        continue
                    values = np.empty_like(tensor.array)
                    self._replace(tensor, values)
                    npy_format.write_array(file, values, allow_pickle=False)

    def _replace(self, tensor: Tensor, out: NDArray[Any]) -> None:
        """Write what a tensor comes back as; raises ValueError where its dtype cannot hold it."""
        form = self.planned.open_format(tensor)
        if not reconstruct_into(tensor, form, out, self.threads):
            raise ValueError(
                f"'{label(tensor.name)}' comes back with values beyond {tensor.dtype}, its dtype"
            )
