"""What an element grid is: which values a code can stand for, whatever shares a scale.

`fit` chooses the parameters of blocks from their bounds, `round_trip` applies them; the two never
mix. Arrays of parameters have one entry a block; values have one axis more, their place in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.scales import Array64, Stored

FloatArray = NDArray[np.float32]
Codes = NDArray[np.int8] | NDArray[np.int16]
Store = Callable[[Array64], Stored]
LARGEST = float(np.finfo(np.float32).max)


class ContradictionError(ValueError):
    """Settings that are fine alone and do not go together."""


class NotFiniteError(ValueError):
    """Blocks hold a value that is not finite; which, their tensor knows."""


class Bounds(NamedTuple):
    """The least and greatest value of blocks; `least` is the smallest magnitude that is not 0.

    `least` is inf where a block is all zeros or where nobody asked for it.
    """

    lo: Any  # float64, one a block
    hi: Any
    least: Any

    @property
    def absmax(self) -> Array64:
        """The largest magnitude."""
        return np.maximum(-self.lo, self.hi)


class Fit(NamedTuple):
    """The parameters of blocks, and of which the scale saturated or vanished when it was stored."""

    params: Any  # a named tuple of arrays; `scale` is one of them
    saturated: NDArray[np.bool_]
    vanished: NDArray[np.bool_]


class Trip(NamedTuple):
    """Codes, the values they stand for, and which values lay beyond the grid, if any did."""

    codes: Codes | None  # None where they are not ours
    x_hat: FloatArray
    clipped: NDArray[np.bool_] | None


class Element(Protocol):
    """An element grid of `n_bits`.

    `symmetric` says that a range reaches as far below 0 as above; `ranged` that a range can be
    chosen; `least` that `fit` asks for the smallest magnitude; `keeps_zero` that 0 comes back as
    0.
    """

    @property
    def n_bits(self) -> int: ...  # noqa: D102 said above
    @property
    def symmetric(self) -> bool: ...  # noqa: D102
    @property
    def ranged(self) -> bool: ...  # noqa: D102
    @property
    def least(self) -> bool: ...  # noqa: D102
    @property
    def keeps_zero(self) -> bool: ...  # noqa: D102

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Choose the parameters of blocks from their bounds."""

    def round_trip(self, x: FloatArray, params: Any) -> Trip:
        """Take values to codes and back; `params` broadcast to the shape of `x`.

        Codes are from ``-2 ** (n_bits - 1)`` to ``2 ** (n_bits - 1) - 1``.
        """

    def reconstruct(self, x: FloatArray, params: Any) -> FloatArray:
        """Return what values come back as, without their codes."""

    def block_bits(self, scale_bits: int) -> int:
        """Return how many bits a block stores beside its codes."""


class Scaled(NamedTuple):
    """The one parameter of a grid that is scaled to its block."""

    scale: FloatArray


class ScaledGrid(ABC):
    """What grids share that are scaled to the largest magnitude of a block, and hold 0."""

    symmetric: ClassVar[bool] = True
    ranged: ClassVar[bool] = True
    least: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True

    @abstractmethod
    def round_trip(self, x: FloatArray, params: Scaled) -> Trip:
        """Take values to codes and back."""

    def reconstruct(self, x: FloatArray, params: Scaled) -> FloatArray:
        """Return what values come back as."""
        return self.round_trip(x, params).x_hat

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits of a scale."""
        return scale_bits


def fit_scale(scale: Array64, store: Store) -> Fit:
    """Return the fit of a grid that has a scale and nothing else."""
    stored = store(scale)
    return Fit(Scaled(stored.scale), stored.saturated, stored.vanished)


def in_units(x: FloatArray, scale: FloatArray | np.float32) -> FloatArray:
    """Return ``float32(x / scale)``; where a scale has vanished, 0."""
    if not np.all(scale):
        scale = np.where(scale == 0, np.float32(np.inf), scale)
    with np.errstate(over="ignore"):
        return np.divide(x, scale, dtype=np.float32)


def times_scale(values: FloatArray, scale: FloatArray | np.float32, largest: float) -> FloatArray:
    """Multiply values, of magnitudes up to `largest`, by scales in place, short of infinity.

    A scale that was rounded up may take the largest value beyond float32.
    """
    if float(np.max(scale)) * largest < LARGEST:
        return np.multiply(values, scale, out=values)
    with np.errstate(over="ignore"):
        values *= scale
    return np.clip(values, -LARGEST, LARGEST, out=values)


def per_value(params: Any) -> Any:
    """Return parameters, one entry a block, as they broadcast to the values of the blocks."""
    return type(params)(*(each[..., None] for each in params))


def require_width(n_bits: int, own: int, what: str) -> None:
    """Raise ValueError unless the width asked for is the grid's own."""
    if n_bits != own:
        raise ContradictionError(
            f"n_bits must be {own}, the width of {what}, got {n_bits!r}: leave it out"
        )


def code_dtype(n_bits: int) -> Any:
    """Return the type of codes: int8 up to 8 bits, int16 above."""
    return np.int8 if n_bits <= 8 else np.int16


def some(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return a mask, or None where it holds nothing."""
    return mask if mask.any() else None
