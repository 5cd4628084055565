"""Types that scales are stored in: chosen in float64, rounded once.

The codes are computed with the scale that is stored. Beyond the largest value of its type a scale
saturates; where it rounds to 0 it has vanished, and its block comes back as 0.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array64 = NDArray[np.float64]


class RoundedScale(NamedTuple):
    """Scales as they are stored, one a block, and which of them saturated or vanished."""

    scale: NDArray[np.float32]
    saturated: NDArray[np.bool_]
    vanished: NDArray[np.bool_]


class ScaleType(ABC):
    """A type that scales are stored in.

    `bits` are those of one scale, `tensor_bits` those of what a tensor stores once.
    """

    name: str
    bits: int
    tensor_bits: int = 0

    @abstractmethod
    def store(self, scale: ArrayLike, absmax: float) -> RoundedScale:
        """Round scales, of blocks of a tensor whose largest magnitude is `absmax`."""


@dataclass(frozen=True)
class FloatType(ScaleType):
    """A binary floating-point type: its bits, those of its mantissa, least exponent and maximum."""

    name: str
    bits: int
    mantissa_bits: int
    min_exponent: int  # of a normal number
    largest: float
    dtype: type[np.floating[Any]] | None = None  # that NumPy has of it

    def store(self, scale: ArrayLike, absmax: float = 0.0) -> RoundedScale:  # noqa: ARG002 ScaleType
        """Round to nearest, ties to even, subnormal numbers included; saturate."""
        exact = np.asarray(scale, np.float64)
        rounded = self.round(exact)
        saturated = rounded > self.largest
        stored = np.minimum(rounded, self.largest).astype(np.float32)
        return RoundedScale(stored, saturated, (stored == 0) & (exact > 0))

    def round(self, values: Array64) -> Any:
        """Round float64 values to this type's precision; beyond its maximum they may be inf."""
        # ml_dtypes has the other types, but goes from float64 by way of float32: it rounds twice.
        if self.dtype:
            with np.errstate(over="ignore"):
                return values.astype(self.dtype)
        _, exponent = np.frexp(values)
        step = np.ldexp(1.0, np.maximum(exponent - 1, self.min_exponent) - self.mantissa_bits)
        return np.rint(values / step) * step


FLOAT32 = FloatType("float32", 32, 23, -126, float(np.finfo(np.float32).max), np.float32)
FLOAT16 = FloatType("float16", 16, 10, -14, 65504.0, np.float16)
BFLOAT16 = FloatType("bfloat16", 16, 7, -126, 2.0**127 * (2 - 2.0**-7))
FLOAT8_E4M3 = FloatType("float8_e4m3", 8, 3, -6, 448.0)
FLOAT_TYPES = {dtype.name: dtype for dtype in (FLOAT32, FLOAT16, BFLOAT16)}


@dataclass(frozen=True)
class PowerOfTwo(ScaleType):
    """A power of two near the scale, from 2^-127 to 2^127 (E8M0), by one of the rules in use.

    floor   not above it; the largest values of a block may saturate (OCP MX 1.0)
    rceil   not below ``absmax / largest``, so that nothing does (cuBLAS, Transformer Engine)
    even    floor, of a largest magnitude rounded to the mantissa of the elements

    `headroom` is the largest number of the elements over the power of two below it, and
    `mantissa_bits` those of the elements.
    """

    rule: str = "floor"
    headroom: float = 1.0
    mantissa_bits: int = 0
    name = "e8m0"
    bits = 8

    def __post_init__(self) -> None:
        """Raise ValueError unless the rule is known."""
        if self.rule not in SCALE_RULES:
            raise ValueError(
                f"mode.scale_rule must be one of {', '.join(SCALE_RULES)}, got {self.rule!r}"
            )

    def store(self, scale: ArrayLike, absmax: float = 0.0) -> RoundedScale:  # noqa: ARG002 ScaleType
        """Round by the rule; a block of zeros takes the least scale."""
        exact = np.asarray(scale, np.float64)
        exponent = np.where(exact > 0, self._exponent(exact), -127)
        stored = np.ldexp(1.0, np.clip(exponent, -127, 127)).astype(np.float32)
        return RoundedScale(stored, exponent > 127, np.zeros(stored.shape, bool))

    def _exponent(self, scale: Array64) -> Any:
        if self.rule == "rceil":
            # In float32, as torchao and MLX take it: next to a power of two that decides.
            ratio = np.where(scale > 0, scale / self.headroom, 1).astype(np.float32)
            return np.ceil(np.log2(ratio.astype(np.float64)).astype(np.float32)).astype(np.int64)
        mantissa, exponent = np.frexp(scale)
        rolls_over = mantissa >= 1 - 2.0 ** -(self.mantissa_bits + 2)
        return exponent - 1 + (rolls_over if self.rule == "even" else 0)


SCALE_RULES = ("floor", "rceil", "even")


@dataclass(frozen=True)
class TwoLevel(ScaleType):
    """A float8_e4m3 scale a block, in units of a float32 scale of the tensor (NVFP4).

    `element_max` is the largest value of the elements: 6 for e2m1. Block scales are at least
    `clamp` units, if there is one; without it, as in Model-Optimizer, small ones vanish.
    """

    element_max: float = 6.0
    clamp: float | None = None
    name = "float8_e4m3"
    bits = 8
    tensor_bits = 32

    def __post_init__(self) -> None:
        """Raise ValueError unless `clamp` is a number that a block scale can be."""
        is_number = isinstance(self.clamp, int | float) and not isinstance(self.clamp, bool)
        if self.clamp is None:
            return
        if not is_number or self.clamp <= 0 or FLOAT8_E4M3.store(self.clamp).scale != self.clamp:
            raise ValueError(
                "mode.scale.clamp must be a number of float8_e4m3 above 0, such as 0.015625, or "
                f"null, got {self.clamp!r}"
            )

    def store(self, scale: ArrayLike, absmax: float) -> RoundedScale:
        """Round to multiples of the tensor's scale, ``float32(absmax / (element_max * 448))``."""
        exact = np.asarray(scale, np.float64)
        unit = np.float32(absmax / (self.element_max * FLOAT8_E4M3.largest))
        if not unit:
            return RoundedScale(np.zeros(exact.shape, np.float32), exact < 0, exact > 0)
        stored = FLOAT8_E4M3.store(np.maximum(exact / np.float64(unit), self.clamp or 0.0))
        return stored._replace(scale=stored.scale * unit)


def scale_type(name: str) -> ScaleType:
    """Return a type by its name; raises ValueError where there is none."""
    if name not in FLOAT_TYPES:
        raise ValueError(f"block.scale must be one of {', '.join(FLOAT_TYPES)}, got {name!r}")
    return FLOAT_TYPES[name]
