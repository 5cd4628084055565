"""A quantized file as a format: each tensor comes back as the file has it.

To add a kind of file: a subclass of `StoredFile` here beside, and a yaml in ``conf/mode/file/``
whose ``_target_`` names it.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantlab.formats.blocks import Read, UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.format import Codec, NamedTensor, Reconstruction
from quantlab.sources.file import BadFileError, FileEntry, readable, require_file, require_packages
from quantlab.sources.kinds.decoding import StoredTensor, Which
from quantlab.sources.names import (
    PERMUTED,
    Architecture,
    gguf_name,
    partners,
    row_order,
    shift,
)
from quantlab.text import label


@dataclass(frozen=True)
class Pair:
    """A stored tensor, its rows in the order of the original, and in that which it might have.

    `shift` is what the original has more than the stored tensor.
    """

    tensor: StoredTensor
    order: Which | None = None
    other: tuple[str, Which | None] | None = None
    shift: float = 0.0


class StoredFile(Codec):
    """A quantized file; raises ValueError, naming it, when it is missing or not of its kind.

    Its widths are its own: `n_bits` must be None.
    """

    format: ClassVar[str]
    needs: ClassVar[Sequence[str]] = ()

    def __init__(self, path: str, n_bits: int | None = None) -> None:
        if n_bits is not None:
            raise ContradictionError(
                f"n_bits={n_bits} does not go with mode=file/{self.format}: a file has widths of "
                "its own, leave it out"
            )
        require_file(Path(path), self.format)
        require_packages(self.needs, path, self.format)
        self.path, self.n_bits = path, None
        _ = self.tensors

    @abstractmethod
    def _stored(self) -> list[StoredTensor]:
        """Return every tensor of real numbers in the file."""

    def architecture(self) -> Architecture | None:
        """Return what the file says of its model, if anything."""
        return None

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of real numbers in the file, by the name of its original."""
        with readable(self.path, self.format):
            tensors = self._stored()
            names = Counter(each.name for each in tensors)
            twice = next((name for name, times in names.items() if times > 1), None)
            if twice is not None:
                raise BadFileError(f"holds two tensors of the name '{label(twice)}'")
            return {each.name: each for each in tensors}

    @property
    def file_name(self) -> str:
        """The name of the file and its directory: many are called model.safetensors."""
        return "/".join(Path(self.path).parts[-2:])

    def bind(self, source: Any) -> "Bound":
        """Return the codec of a source: each of its tensors with the stored one."""
        return Bound(self, source)

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return what a tensor comes back as, the one that is stored under its name."""
        if tensor.name not in self.tensors:
            raise UnfitError(f"{self.file_name} has no such tensor")
        return self.reconstruction(tensor, Pair(self.tensors[tensor.name]))

    def reconstruction(self, tensor: NamedTensor, pair: Pair) -> Reconstruction:
        """Return a tensor as it is stored; raises ValueError where it is another, or damaged."""
        stored = pair.tensor
        where = f"tensor '{label(tensor.name)}' in {self.path}"
        if stored.fault:
            raise ValueError(f"{where} {stored.fault}")
        if stored.shape != tensor.shape:
            hint = ": it is transposed" if stored.shape == tensor.shape[::-1] else ""
            raise ValueError(
                f"{where} has the shape {list(stored.shape)}, the original {list(tensor.shape)}"
                f"{hint}"
            )
        return Reconstruction(
            read=_shifted(stored.reader(stored.rows, pair.order), pair.shift),
            dtype=stored.dtype,
            bits=stored.bits,
            sha256=stored.sha256(),
            source=self.file_name,
            readings={k: stored.reader(each, pair.order) for k, each in stored.readings.items()},
            rearranged=_rearranged(pair),
            remark=stored.remark,
        )


def _shifted(read: Read, shift: float) -> Read:
    """Return what reads values that are all greater by as much."""
    if not shift:
        return read
    return lambda start, stop: read(start, stop) + np.float32(shift)


def _rearranged(pair: Pair) -> Mapping[str, Any]:
    """Return the readings of a pair that put values in other places."""
    stored = pair.tensor
    found = {name: stored.reader(rows, pair.order) for name, rows in stored.rearranged.items()}
    if pair.other:
        name, order = pair.other
        found[name] = stored.reader(stored.rows, order)
    return found


class Bound(Codec):
    """A quantized file beside the originals of one source."""

    def __init__(self, stored: StoredFile, source: Any) -> None:
        self.stored, self.n_bits = stored, None
        self._of_source = source.architecture() if hasattr(source, "architecture") else None
        entries = list(getattr(source, "entries", ()))
        self.pairs = self._pairs([entry.name for entry in entries])
        self._require_original(source, entries)

    def _require_original(self, source: Any, entries: Sequence[FileEntry]) -> None:
        """Raise ValueError where the source is quantized itself and the file is not."""
        for each in entries:
            pair = self.pairs.get(each.name)
            if pair and each.is_quantized and len(pair.tensor.parts) == 1 and pair.tensor.is_dense:
                raise ValueError(
                    f"{source.path} holds {label(each.name)} in {each.dtype} and "
                    f"{self.stored.file_name} in {pair.tensor.dtype}: dist.path takes the "
                    "original, mode.path the quantized file"
                )

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return what a tensor comes back as."""
        pair = self.pairs.get(tensor.name) or self._pairs([tensor.name]).get(tensor.name)
        if pair is None:
            raise UnfitError(f"{self.stored.file_name} has no tensor of this name")
        return self.stored.reconstruction(tensor, pair)

    def unmatched(self) -> Mapping[str, str]:
        """Return the stored tensors without an original."""
        matched = {pair.tensor.name for pair in self.pairs.values()}
        reason = f"only {self.stored.file_name} has it"
        return {name: reason for name in self.stored.tensors if name not in matched}

    def _pairs(self, names: Sequence[str]) -> dict[str, Pair]:
        """Pair by equal names, then by llama.cpp's, then by what else a tensor may be called."""
        tensors = self.stored.tensors
        pairs = {name: Pair(tensors[name]) for name in names if name in tensors}
        pairs |= self._translated([name for name in names if name not in pairs])
        used = {pair.tensor.name for pair in pairs.values()}
        left = partners(set(names) - set(pairs), set(tensors) - used)
        return pairs | {name: Pair(tensors[other]) for name, other in left.items()}

    def _translated(self, names: Sequence[str]) -> dict[str, Pair]:
        """Return the pairs of which one name is llama.cpp's and the other Hugging Face's."""
        stored, theirs = self.stored.architecture(), self._of_source
        tensors = self.stored.tensors
        if stored and not theirs:
            known = {name: gguf_name(name, stored.name) for name in names}
            return {
                name: _converted(tensors[other], other, name, stored, inverse=True)
                for name, other in known.items()
                if other and other in tensors
            }
        if theirs and not stored:
            originals = {gguf_name(name, theirs.name): name for name in tensors}
            return {
                name: _converted(
                    tensors[originals[name]], name, originals[name], theirs, inverse=False
                )
                for name in names
                if name in originals
            }
        return {}


def _converted(
    tensor: StoredTensor, name: str, hf_name: str, architecture: Architecture, *, inverse: bool
) -> Pair:
    """Return a stored tensor as the original has it, what llama.cpp's converter did undone.

    `name` is llama.cpp's, `hf_name` Hugging Face's; `inverse` says that llama.cpp's is stored.
    """
    if more := shift(hf_name, architecture):
        return Pair(tensor, shift=-more if inverse else more)
    rows = tensor.shape[0] if len(tensor.shape) in (1, 2) else 0
    order = row_order(name, rows, architecture) if rows else None
    if order is None:
        return Pair(tensor)
    order = np.argsort(order) if inverse else order
    if architecture.name in PERMUTED:
        return Pair(tensor, order, ("without llama.cpp's order of the rows of q and k", None))
    return Pair(tensor, None, ("with llama.cpp's order of the rows of q and k", order))
