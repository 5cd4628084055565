"""Transforms of the rows of a tensor before it is quantized, undone afterwards.

Codes and scales are those of the transformed values, every figure is of the values themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import FloatArray
from quantlab.formats.scales import FLOAT16, Array64

MAX_SIZE = 2**9  # that is chosen where none is given: so many rows of it fit the first cache
LEAST_SCALE = 1e-5  # of a column, in float16
CACHED_VALUES = 2**15  # that are transformed at once: columns of them fit the cache


MultiplyHadamard = Callable[[FloatArray], FloatArray]


class Transform(Protocol):
    """A reversible transform of stretches of a row."""

    @property
    def name(self) -> str:
        """Name of the option."""

    def width(self, row: int) -> int:
        """Return how many values of a row of `row` are transformed together; raises UnfitError."""

    def forward(self, x: FloatArray, multiply: MultiplyHadamard) -> FloatArray:
        """Transform float32 values ``(n, width)``; `multiply` is `multiply_hadamard` or as it."""

    def backward(self, y: FloatArray, multiply: MultiplyHadamard) -> FloatArray:
        """Undo `forward`."""

    def tensor_bits(self, row: int) -> int:
        """Return the bits that a tensor with rows of `row` stores of it."""


@dataclass(frozen=True)
class ColumnScales:
    """Each column times a scale before, and divided by it after; `stored` are float16."""

    name: str
    stored: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, scales: Array64) -> "ColumnScales":
        """Round the scales of columns, which are positive, to float16."""
        return cls(name, np.clip(scales, LEAST_SCALE, FLOAT16.largest).astype(np.float16).tobytes())

    @cached_property
    def scales(self) -> FloatArray:
        """The scale of each column as it is stored."""
        return np.frombuffer(self.stored, np.float16).astype(np.float32)

    def width(self, row: int) -> int:
        """Return the length of a row."""
        return row

    def forward(self, x: FloatArray, multiply: MultiplyHadamard) -> FloatArray:  # noqa: ARG002 Transform
        """Multiply columns by their scales."""
        with np.errstate(over="ignore"):  # a value that is not finite is found later
            return x * self.scales

    def backward(self, y: FloatArray, multiply: MultiplyHadamard) -> FloatArray:  # noqa: ARG002
        """Divide columns by their scales."""
        with np.errstate(over="ignore"):
            return y / self.scales

    def tensor_bits(self, row: int) -> int:
        """Return the bits of a float16 a column."""
        return FLOAT16.bits * row


class FittedTransform(ABC):
    """Scales of columns that are chosen for each tensor by the inputs of its layer."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the option."""

    @abstractmethod
    def require_inputs(self, tensor: Any, row: int) -> None:
        """Raise UnfitError where the inputs of a tensor are not known or not those of its rows."""

    @abstractmethod
    def identity(self, tensor: Any) -> str:
        """Return the sha256 of the inputs of a tensor."""

    @abstractmethod
    def gram(self, tensor: Any) -> Array64:
        """Compute the Gram matrix of the inputs of a tensor, ``(row, row)``."""

    @abstractmethod
    def fit(
        self, tensor: Any, absmax: Array64, noise: Callable[[Transform], float]
    ) -> ColumnScales:
        """Return the scales of a tensor whose columns have some largest magnitudes.

        `noise` measures the error of the layer's output with a transform.
        """

    def tensor_bits(self, row: int) -> int:
        """Return the bits of a float16 a column, as `ColumnScales` has."""
        return FLOAT16.bits * row


@dataclass(frozen=True)
class Hadamard:
    """A Hadamard rotation with random signs, y = H D x / sqrt(size), as in QuaRot (2024).

    H is Sylvester's matrix, which is its own inverse but for a factor, and D are signs of columns,
    drawn from `seed`. Any value is spread over all columns, so that outliers vanish. Without a
    `size` it is the largest power of two that divides a row, `MAX_SIZE` at most. The signs are the
    same for all tensors, and take no bits.
    """

    size: int | None = None
    seed: int = 0
    name = "hadamard"

    def __post_init__(self) -> None:
        """Raise ValueError unless `size` is a power of two of 2 or more, or None."""
        is_power = type(self.size) is int and self.size > 1 and not self.size & (self.size - 1)
        if self.size is not None and not is_power:
            raise ValueError(f"transform.size must be a power of two, 2 or more, got {self.size!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"transform.seed must be a whole number from 0 up, got {self.seed!r}")

    def width(self, row: int) -> int:
        """Return the size; raises UnfitError where it does not divide a row."""
        largest = min(row & -row, MAX_SIZE)
        if largest < 2:
            raise UnfitError(f"no power of two divides its rows of {row} values")
        if self.size and row % self.size:
            raise UnfitError(
                f"transform.size={self.size} does not divide its rows of {row} values: "
                f"transform.size={largest} does"
            )
        return self.size or largest

    def forward(self, x: FloatArray, multiply: MultiplyHadamard) -> FloatArray:
        """Transform float32 values ``(n, width)``."""
        return multiply(x * _draw_signs(self.seed, x.shape[1]))

    def backward(self, y: FloatArray, multiply: MultiplyHadamard) -> FloatArray:
        """Undo `forward`."""
        x_hat = multiply(y)
        x_hat *= _draw_signs(self.seed, y.shape[1])
        return x_hat

    def tensor_bits(self, row: int) -> int:  # noqa: ARG002 Transform
        """Return 0: signs are drawn."""
        return 0


@lru_cache
def _draw_signs(seed: int, width: int) -> FloatArray:
    """Draw signs, divided by sqrt(width)."""
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float64), width)
    return (signs / np.sqrt(width)).astype(np.float32)


def multiply_hadamard(x: FloatArray) -> FloatArray:
    """Multiply rows by Sylvester's matrix: sums and differences of halves, one size after another.

    Each row is computed alone, so that its bits do not depend on others.
    """
    rows = max(1, CACHED_VALUES // x.shape[1])
    parts = [_multiply_part(x[start : start + rows]) for start in range(0, len(x), rows)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _multiply_part(x: FloatArray) -> FloatArray:
    n, width = x.shape
    sums, out = np.ascontiguousarray(x.T), np.empty((width, n), np.float32)
    half = 1
    with np.errstate(over="ignore", invalid="ignore"):  # a sum that is not finite is found later
        while half < width:
            pairs, results = (values.reshape(-1, 2, half * n) for values in (sums, out))
            np.add(pairs[:, 0], pairs[:, 1], out=results[:, 0])
            np.subtract(pairs[:, 0], pairs[:, 1], out=results[:, 1])
            sums, out, half = out, sums, 2 * half
    return np.ascontiguousarray(sums.T)
