"""What a file of calibration data decides: inputs of layers, scales of columns, static ranges.

Inputs of layers were captured while a model ran. An array has the name of a weight, or that of its
layer, and the shape ``(tokens, in)``; more axes in front, such as that of a batch, count tokens
too. It may be any file of tensors, such as npz or safetensors.

`InputScaling`: a layer computes ``(W diag(s)) (diag(1 / s) x)``: columns whose inputs are large are
stored finer, or large columns and large inputs share what is difficult. ``s`` depends on an
exponent alpha, which is that of a grid whose output has the least error, ``tr(E H E^T)`` with the
Gram matrix H of the inputs. To add a rule: a class with `compute_scales` here, and a yaml in
``conf/transform/``.

`Calibrated`: the range of a tensor is that of another tensor of its name. Scales of activations are
chosen on one set of inputs, and judged on another.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from quantlab.formats.blocks import Block, Shape, UnfitError
from quantlab.formats.element import Bounds, Element, RoundScale
from quantlab.formats.format import NamedTensor, StaticRange, TensorRange
from quantlab.formats.gram import compute_gram, require_inputs
from quantlab.formats.ranges import AbsMax, BlockValues, Entropy, Mse, Percentile, Range
from quantlab.formats.scales import Array64
from quantlab.formats.transform import ColumnScales, FittedTransform, Transform
from quantlab.sources.file import FileEntry, existing_path, file_state
from quantlab.sources.readers import reader_of
from quantlab.sources.tensor import CHUNK_ELEMENTS, FileState, Tensor
from quantlab.text import label

LAYER_SUFFIX = ".weight"  # that the name of a weight adds to that of its layer
ALPHAS = np.arange(21) / 20
RULES: dict[str, Range] = {rule.name: rule for rule in (AbsMax(), Percentile(), Mse(), Entropy())}
T = TypeVar("T")


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


class Magnitudes(NamedTuple):
    """Magnitudes of each column: the mean and the largest of inputs, the largest of weights."""

    mean: Array64
    largest: Array64
    weight: Array64


@dataclass(frozen=True)
class InputScaling(FittedTransform):
    """Scales of columns, by captured `inputs` in a file.

    Raises ValueError, naming the file, where it is missing or is no file of tensors.
    """

    inputs: str
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """List the arrays, so that a bad file is refused before anything runs."""
        _ = self._captured

    @abstractmethod
    def compute_scales(self, magnitudes: Magnitudes, alpha: float) -> Array64:
        """Compute the scales of columns for an exponent."""

    @cached_property
    def _captured(self) -> CapturedInputs:
        return CapturedInputs(self.inputs)

    def require_inputs(self, tensor: NamedTensor, row: int) -> None:
        """Raise UnfitError where the file has no inputs of a tensor, or not one a column."""
        width = self._captured.width(tensor)
        if width is None:
            raise UnfitError(f"{self._captured.name} has no inputs of it")
        if width != row:
            raise UnfitError(f"its rows have {row} values, and its layer {width} inputs")

    def identity(self, tensor: NamedTensor) -> str:
        """Return the sha256 of the inputs of a tensor."""
        return self._require(self._captured.identity(tensor), tensor)

    def gram(self, tensor: NamedTensor) -> Array64:
        """Compute the Gram matrix of the inputs of a tensor, ``(row, row)``."""
        return self._require(self._captured.gram(tensor), tensor)

    def _require(self, known: T | None, tensor: NamedTensor) -> T:
        if known is None:
            raise UnfitError(f"{self._captured.name} has no inputs of '{label(tensor.name)}'")
        return known

    def fit(
        self, tensor: NamedTensor, absmax: Array64, noise: Callable[[Transform], float]
    ) -> ColumnScales:
        """Return the scales of least noise: all 1, or those of an alpha; ties to the first."""
        inputs = self._require(self._captured.open(tensor), tensor)
        magnitudes = Magnitudes(*_measure_columns(inputs), absmax)
        scales = [np.ones(absmax.size)]
        scales += [self.compute_scales(magnitudes, alpha) for alpha in ALPHAS]
        candidates = dict.fromkeys(ColumnScales.of(self.name, column) for column in scales)
        return min(candidates, key=noise)


class Smooth(InputScaling):
    """``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``, as SmoothQuant (Xiao et al., 2022).

    Magnitudes of weights and scales are at least 1e-5, as in its `smooth_ln_fcs`.
    """

    name = "smooth"

    def compute_scales(self, magnitudes: Magnitudes, alpha: float) -> Array64:
        """Compute the scales of columns for an exponent."""
        scales: Array64 = magnitudes.largest**alpha
        return scales / np.maximum(magnitudes.weight, 1e-5) ** (1 - alpha)


class Awq(InputScaling):
    """``s_j = mean|X_j|^alpha / sqrt(max s min s)``, as `auto_scale_block` of llm-awq (Lin, 2023).

    Before they are normalized scales are at least 1e-4.
    """

    name = "awq"

    def compute_scales(self, magnitudes: Magnitudes, alpha: float) -> Array64:
        """Compute the scales of columns for an exponent."""
        scales = np.maximum(magnitudes.mean**alpha, 1e-4)
        normalized: Array64 = scales / np.sqrt(scales.max() * scales.min())
        return normalized


def _measure_columns(inputs: Tensor) -> tuple[Array64, Array64]:
    """Return the mean and the largest magnitude of each column of inputs ``(..., in)``."""
    inputs.require_finite()
    width = inputs.shape[-1]
    total, largest = np.zeros(width), np.zeros(width)
    step = max(1, CHUNK_ELEMENTS // width) * width
    for start in range(0, inputs.size, step):
        x = np.abs(inputs.block(start, min(start + step, inputs.size)).reshape(-1, width))
        total += x.sum(axis=0, dtype=np.float64)
        largest = np.maximum(largest, x.max(axis=0))
    return total / (inputs.size // width), largest


@dataclass(frozen=True)
class CalibratedRange(StaticRange):
    """The range that a rule chooses for the blocks of a calibration `tensor`."""

    rule: Range
    tensor: Tensor
    name: ClassVar[str] = "calibrated"

    def choose(
        self, bounds: Bounds, values: BlockValues, element: Element, store: RoundScale
    ) -> Bounds:
        """Choose the range of blocks of the calibration tensor."""
        return self.rule.choose(bounds, values, element, store)

    def identity(self) -> str:
        """Return the sha256 of the calibration tensor."""
        return self.tensor.sha256()


@dataclass(frozen=True)
class Calibrated(TensorRange):
    """The range of the tensor of the same name in the file `path`, by a rule.

    Values beyond it saturate. Raises ValueError where the file cannot be read, or the rule is none
    of `RULES`; `p` is that of the rule percentile.
    """

    path: str
    rule: str = "absmax"
    p: float = 99.9
    name: ClassVar[str] = "calibrated"

    def __post_init__(self) -> None:
        """Read the list of tensors, so that a bad file is refused before anything runs."""
        _ = self._rule, self._entries

    @cached_property
    def _rule(self) -> Range:
        if self.rule not in RULES:
            raise ValueError(f"range.rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        return Percentile(self.p) if self.rule == Percentile.name else RULES[self.rule]

    @cached_property
    def _entries(self) -> Mapping[str, FileEntry]:
        return _list_entries(file_state(existing_path(self.path)))

    def open(self, tensor: NamedTensor, block: Block) -> CalibratedRange:
        """Return the range of a tensor.

        Raises UnfitError where the file has no floating-point tensor of its name, ValueError where
        that is of another model: of other axes, of rows of another length, or of other blocks.
        """
        entry, file_name = self._entries.get(tensor.name), Path(self.path).name
        if entry is None:
            raise UnfitError(f"{file_name} has no tensor of this name to calibrate it")
        if entry.skip_reason:
            raise UnfitError(f"{file_name} has no range of it: {entry.skip_reason}")
        _require_same_blocks(tensor, entry.shape, block, self.path)
        opened = entry.open()
        # Whatever is wrong with its values is said of this file.
        return CalibratedRange(self._rule, replace(opened, name=f"{tensor.name} in {self.path}"))


def _require_same_blocks(tensor: NamedTensor, shape: Shape, block: Block, path: str) -> None:
    """Raise ValueError unless a calibration tensor of a shape has the blocks of a tensor."""
    sentence = (
        f"tensor '{label(tensor.name)}' has the shape {list(tensor.shape)}, and {list(shape)} in "
        f"{path}"
    )
    if len(shape) != len(tensor.shape) or shape[-1:] != tensor.shape[-1:]:
        raise ValueError(f"{sentence}: calibrate with the same model")
    n_scales = block.layout(shape).n_blocks
    if n_scales != block.layout(tensor.shape).n_blocks:
        raise ValueError(
            f"{sentence}, which has {n_scales} scales of block={block.name}: static scales are "
            "along an axis that counts neither samples nor tokens"
        )
