"""The interface of an element grid: the values that a code can stand for, whatever shares a scale.

`fit` chooses the parameters of blocks from their bounds, `round_trip` applies them; the two never
mix. Arrays of parameters have one entry a block; values have one axis more, their place in it.

A grid that the loops of `stats.kernel` know says so in `compiled_grid`; any other goes through
NumPy. To add a grid: a class with the attributes of `Element`, and a yaml in ``conf/mode/``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.scales import Array64, RoundedScale

FloatArray = NDArray[np.float32]
Codes = NDArray[np.int8] | NDArray[np.int16]
RoundScale = Callable[[Array64], RoundedScale]  # to the type that stores it
FLOAT32_MAX = float(np.finfo(np.float32).max)
NO_FLOATS = np.empty(0, np.float32)


class ContradictionError(ValueError):
    """Settings that are fine alone and do not go together."""


class NotFiniteError(ValueError):
    """Blocks hold NaN or Inf; their tensor knows where."""


class Bounds(NamedTuple):
    """Bounds of the values of each block, float64.

    `min_magnitude` is the smallest that is not 0: inf where a block is all zeros, or where the
    grid does not need it.
    """

    lo: Any
    hi: Any
    min_magnitude: Any

    @property
    def absmax(self) -> Array64:
        """The largest magnitude."""
        return np.maximum(-self.lo, self.hi)


class BlockParams(NamedTuple):
    """The parameters of blocks, and whether each scale saturated or vanished when it was stored."""

    params: Any  # a named tuple of arrays; `scale` is one of them
    saturated: NDArray[np.bool_]
    vanished: NDArray[np.bool_]


class Quantized(NamedTuple):
    """Codes, the values they stand for, and a mask of the values beyond the grid, if there are any.

    `codes` are None where a library or a file has its own.
    """

    codes: Codes | None
    x_hat: FloatArray
    clipped: NDArray[np.bool_] | None


class GridKind(IntEnum):
    """The loops of `stats.kernel` that take values through a grid."""

    GIVEN = 0  # no grid: the values have been through their format already
    UNIFORM = 1
    FLOAT = 2
    FIXED_POINT = 3
    LEVELS = 4


class CompiledGrid(NamedTuple):
    """An element grid as the loops of `stats.kernel` take it.

    Codes begin at ``-2 ** (n_bits - 1)`` and saturate at `largest_code`. Of floats `smallest` and
    `largest` are the normal numbers at the ends; of levels the ends beyond which a value counts as
    clipped. `midpoints` are those between the sorted `levels`.
    """

    kind: int
    n_bits: int
    largest_code: int = 0
    mantissa_bits: int = 0
    smallest: float = 0.0
    largest: float = 0.0
    levels: FloatArray = NO_FLOATS
    midpoints: FloatArray = NO_FLOATS


class Element(ABC):
    """An element grid of `n_bits`, by default one that is scaled to the magnitudes of a block.

    `symmetric` says that a range reaches as far below 0 as above, `accepts_range` that one can be
    chosen, `needs_min_magnitude` that `fit` needs the smallest magnitude of a block that is not 0,
    `scales_ends` that the ends of the grid are multiples of the scale: `range=mse` then gives up
    ranges early. Optional is ``compiled_grid()``, see `compiled_grid_of`.
    """

    n_bits: int
    symmetric: ClassVar[bool] = True
    accepts_range: ClassVar[bool] = True
    needs_min_magnitude: ClassVar[bool] = False
    scales_ends: ClassVar[bool] = False

    @abstractmethod
    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Choose the parameters of blocks from their bounds."""

    @abstractmethod
    def round_trip(self, x: FloatArray, params: Any) -> Quantized:
        """Take values to codes and back; `params` broadcast to the shape of `x`.

        Codes are from ``-2 ** (n_bits - 1)`` to ``2 ** (n_bits - 1) - 1``.
        """

    def reconstruct(self, x: FloatArray, params: Any) -> FloatArray:
        """Reconstruct values without their codes."""
        return self.round_trip(x, params).x_hat

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits that a block stores beside its codes: of a scale."""
        return scale_bits


class Scaled(NamedTuple):
    """The one parameter of a grid that is scaled to its block."""

    scale: FloatArray


def compiled_grid_of(element: Any) -> CompiledGrid | None:
    """Return what an element's ``compiled_grid()`` does; None where NumPy has to do.

    The loops know the round trip of the class that defines `compiled_grid`: a subclass that rounds
    in a way of its own is not taken for its parent.
    """
    for cls in type(element).__mro__:
        if "compiled_grid" in vars(cls):
            grid: CompiledGrid | None = element.compiled_grid()
            return grid
        if {"round_trip", "reconstruct"} & vars(cls).keys():
            return None
    return None


def fit_scale(scale: Array64, store: RoundScale) -> BlockParams:
    """Make the parameters of a grid that has a scale and nothing else."""
    stored = store(scale)
    return BlockParams(Scaled(stored.scale), stored.saturated, stored.vanished)


def divide_by_scale(x: FloatArray, scale: FloatArray | np.float32) -> FloatArray:
    """Return ``float32(x / scale)``; where a scale has vanished, 0."""
    if not np.all(scale):
        scale = np.where(scale == 0, np.float32(np.inf), scale)
    with np.errstate(over="ignore"):
        return np.divide(x, scale, dtype=np.float32)


def multiply_by_scale(
    values: FloatArray, scale: FloatArray | np.float32, largest: float
) -> FloatArray:
    """Multiply values, of magnitudes up to `largest`, by scales in place, short of infinity.

    A scale that was rounded up may take the largest value beyond float32.
    """
    if float(np.max(scale)) * largest < FLOAT32_MAX:
        return np.multiply(values, scale, out=values)
    with np.errstate(over="ignore"):
        values *= scale
    return np.clip(values, -FLOAT32_MAX, FLOAT32_MAX, out=values)


def per_value(params: Any) -> Any:
    """Broadcast parameters, one entry a block, to the values of the blocks."""
    return type(params)(*(field[..., None] for field in params))


def select_params(params: Any, index: Any) -> Any:
    """Index every field of the parameters of blocks."""
    return type(params)(*(field[index] for field in params))


def require_width(n_bits: Any, widths: Sequence[int], grid: str) -> None:
    """Raise ContradictionError unless `n_bits` is one of the widths that a grid or a mode has."""
    if n_bits in widths:
        return
    if len(widths) == 1:
        rule, hint = f"{widths[0]}, the width of {grid}", ": leave it out"
    else:
        rule, hint = f"{', '.join(map(str, widths[:-1]))} or {widths[-1]}, the widths of {grid}", ""
    raise ContradictionError(f"n_bits must be {rule}, got {n_bits!r}{hint}")


def require_no_width(n_bits: Any, mode: str, reason: str) -> None:
    """Raise ContradictionError unless `n_bits` is None, for a `reason` that begins with which."""
    if n_bits is not None:
        raise ContradictionError(
            f"n_bits={n_bits} does not go with mode={mode}, {reason}: leave it out"
        )


def code_dtype(n_bits: int) -> Any:
    """Return the type of codes: int8 up to 8 bits, int16 above."""
    return np.int8 if n_bits <= 8 else np.int16


def mask_or_none(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return a mask, or None if nothing is set."""
    return mask if mask.any() else None
