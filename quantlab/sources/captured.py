"""Inputs of layers, captured while a model ran: a file with an array for each weight.

An array has the name of the weight, or that of its layer, and the shape ``(tokens, in)``; more axes
in front, such as that of a batch, count tokens too. It may be any file of tensors, such as npz or
safetensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from quantlab.formats.blocks import Shape
from quantlab.formats.format import NamedTensor
from quantlab.formats.gram import compute_gram, require_inputs
from quantlab.formats.scales import Array64
from quantlab.sources.file import FileEntry, existing_path, file_state
from quantlab.sources.mapping import FileState
from quantlab.sources.readers import reader_of
from quantlab.sources.tensor import Tensor
from quantlab.text import label

LAYER_SUFFIX = ".weight"  # that the name of a weight adds to that of its layer


@dataclass(frozen=True)
class CapturedInputs:
    """The captured inputs of the weights of a model, in a file.

    Raises ValueError, naming the file, where it is missing or is no file of tensors.
    """

    path: str

    def __post_init__(self) -> None:
        """List the arrays, so that a bad file is refused before anything runs."""
        object.__setattr__(self, "path", existing_path(self.path))  # it is frozen
        _list_entries(file_state(self.path))

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(self.path).name

    def open(self, tensor: NamedTensor) -> Tensor | None:
        """Open the inputs of a weight, ``(..., tokens, in)``; None where the file has none.

        Raises ValueError where they are not those of a weight of this shape.
        """
        entry = self._find_entry(tensor)
        return None if entry is None else entry.open()

    def width(self, tensor: NamedTensor) -> int | None:
        """Return the number of inputs of a weight; None where unknown. Raises as `open` does."""
        entry = self._find_entry(tensor)
        return None if entry is None else entry.shape[-1]

    def gram(self, tensor: NamedTensor) -> Array64 | None:
        """Compute the Gram matrix of the inputs of a weight, ``(in, in)``; None where unknown.

        Raises ValueError as `open` does, and where an input is no finite float32.
        """
        entry = self._find_entry(tensor)
        return None if entry is None else _compute_gram(file_state(self.path), entry.name)

    def identity(self, tensor: NamedTensor) -> str | None:
        """Return the sha256 of the inputs of a weight; None where unknown."""
        entry = self._find_entry(tensor)
        return None if entry is None else _hash_inputs(file_state(self.path), entry.name)

    def _find_entry(self, tensor: NamedTensor) -> FileEntry | None:
        entries = _list_entries(file_state(self.path))
        names = tensor.name, tensor.name.removesuffix(LAYER_SUFFIX)
        entry = next((entries[name] for name in names if name in entries), None)
        if entry is None:
            return None
        if entry.skip_reason:
            raise ValueError(f"{self.path} has '{label(entry.name)}', but {entry.skip_reason}")
        require_inputs(_width(entry.shape), tensor, self.path)
        return entry


@dataclass(frozen=True)
class ArrayInputs:
    """Inputs of weights that are in memory, by the names of the weights."""

    arrays: Mapping[str, Tensor]
    name = "inputs"
    _latest: dict[str, Array64] = field(default_factory=dict, repr=False)

    def width(self, tensor: NamedTensor) -> int | None:
        """Return the number of inputs of a weight; None where unknown.

        Raises ValueError where they are not those of a weight of this shape.
        """
        inputs = self.arrays.get(tensor.name)
        if inputs is None:
            return None
        require_inputs(_width(inputs.shape), tensor, self.name)
        return inputs.shape[-1]

    def gram(self, tensor: NamedTensor) -> Array64 | None:
        """Compute the Gram matrix of the inputs of a weight, ``(in, in)``; None where unknown.

        Raises ValueError as `width` does, and where an input is no finite float32.
        """
        inputs = self.arrays.get(tensor.name)
        if inputs is None or self.width(tensor) is None:
            return None
        if tensor.name not in self._latest:
            self._latest.clear()
            self._latest[tensor.name] = _gram_of(inputs)
        return self._latest[tensor.name]

    def identity(self, tensor: NamedTensor) -> str | None:
        """Return the sha256 of the inputs of a weight; None where unknown."""
        inputs = self.arrays.get(tensor.name)
        return None if inputs is None else inputs.sha256()


@lru_cache(maxsize=2)
def _list_entries(state: FileState) -> Mapping[str, FileEntry]:
    return {entry.name: entry for entry in reader_of(Path(state[0]))(state[0]).entries}


@lru_cache(maxsize=1)
def _compute_gram(state: FileState, name: str) -> Array64:
    return _gram_of(_list_entries(state)[name].open())


def _gram_of(inputs: Tensor) -> Array64:
    inputs.require_finite()
    gram = compute_gram(inputs.block, inputs.size, inputs.shape[-1])
    gram.flags.writeable = False  # it is shared
    return gram


def _width(shape: Shape) -> int:
    return shape[-1] if shape else 0


@lru_cache(maxsize=2**12)
def _hash_inputs(state: FileState, name: str) -> str:
    return _list_entries(state)[name].open().sha256()
