"""Scales of the columns of a weight, chosen by the inputs that its layer has met.

A layer computes ``(W diag(s)) (diag(1 / s) x)``: columns whose inputs are large are stored finer,
or large columns and large inputs share what is difficult. ``s`` depends on an exponent alpha, which
is that of a grid whose output has the least error, ``tr(E H E^T)`` with the Gram matrix H of the
inputs. To add a rule: a class with `compute_scales` here, and a yaml in ``conf/transform/``.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from quantlab.formats.blocks import UnfitError
from quantlab.formats.format import NamedTensor
from quantlab.formats.scales import Array64
from quantlab.formats.transform import ColumnScales, FittedTransform, Transform
from quantlab.sources.captured import CapturedInputs
from quantlab.sources.tensor import CHUNK_ELEMENTS, Tensor
from quantlab.text import label

ALPHAS = np.arange(21) / 20
T = TypeVar("T")


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

    def tensor_bits(self, row: int) -> int:
        """Return the bits of a float16 a column."""
        return 16 * row


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
