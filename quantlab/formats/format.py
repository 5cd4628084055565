"""A storage format: an element grid, blocks that share a scale, its range, and its type.

The four are chosen independently, and none knows another's insides; what they make of a tensor is
put together in `coder`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from quantlab.formats.blocks import Block, Layout, PerTensor
from quantlab.formats.codec import Codec, Values
from quantlab.formats.element import (
    Bounds,
    ContradictionError,
    Element,
    Fit,
    Store,
)
from quantlab.formats.ranges import AbsMax, Range
from quantlab.formats.scales import ScaleType, scale_type
from quantlab.formats.uniform import Params, Uniform

PLAIN = {"block": "tensor", "block_size": None, "scale_dtype": "float32", "range": "absmax"}


class Quantizer(Protocol):
    """What a mode may be at the least: a uniform quantizer of one block."""

    n_bits: int

    def choose(self, lo: float, hi: float) -> Params:
        """Choose the parameters of a block with the range [lo, hi]."""


class Chosen(Uniform):
    """A quantizer of somebody's own, whose parameters are chosen block by block."""

    symmetric = False
    keeps_zero = False

    def __init__(self, quantizer: Quantizer) -> None:
        """Take a quantizer with ``choose(lo, hi)``."""
        self.quantizer = quantizer
        self.n_bits = quantizer.n_bits

    def choose(self, lo: float, hi: float) -> Params:
        """Choose as the quantizer does."""
        return self.quantizer.choose(lo, hi)

    def fit(self, bounds: Bounds, store: Store) -> Fit:
        """Choose for one block after the other, then round the scales to their type."""
        ends = zip(np.ravel(bounds.lo), np.ravel(bounds.hi), strict=True)
        chosen = [self.quantizer.choose(float(lo), float(hi)) for lo, hi in ends]
        scale, zero_point, replaced, clipped = (
            np.reshape([params[n] for params in chosen], np.shape(bounds.lo)) for n in range(4)
        )
        stored = store(scale)
        params = Params(stored.scale, zero_point, replaced, clipped)
        return Fit(params, stored.saturated, stored.vanished)

    def block_bits(self, scale_bits: int) -> int:
        """Return the bits of a scale and a zero point."""
        return scale_bits + self.n_bits


def as_element(mode: Any) -> Element:
    """Return an element grid; a quantizer that has ``choose`` alone is made one."""
    return mode if hasattr(mode, "round_trip") else Chosen(mode)


@dataclass(frozen=True)
class Format:
    """How a tensor is stored.

    `scale` is the type of the scales, that of the block's setting unless a preset has its own.
    """

    element: Element
    block: Block = field(default_factory=PerTensor)
    range: Range = field(default_factory=AbsMax)
    scale: ScaleType | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when the scale's type is unknown or the range makes no difference."""
        _ = self.scale_type
        if not self.element.ranged and self.range.name != "absmax":
            raise ContradictionError(
                f"range={self.range.name} does not go with mode=log: leave it out"
            )
        if not self.element.ranged and self.scale_type.name != "float32":
            raise ContradictionError(
                f"block.scale={self.scale_type.name} does not go with mode=log, which stores two "
                "float32 a block: leave it out"
            )

    def open(self, tensor: Values) -> "Format":
        """Return the format, which is the same for every tensor; raises UnfitError."""
        self.block.layout(tensor.shape)
        return self

    @property
    def n_bits(self) -> int:
        """The width of a code."""
        return self.element.n_bits

    @property
    def scale_type(self) -> ScaleType:
        """The type that scales are stored in."""
        return self.scale or scale_type(self.block.scale)

    @property
    def plain(self) -> bool:
        """Whether there is one float32 scale over the whole range, as in the lab."""
        return self.describe() == PLAIN

    def describe(self) -> dict[str, Any]:
        """Return the format in full, as each row of results.csv has it."""
        return {
            "block": self.block.name,
            "block_size": self.block.block_size,
            "scale_dtype": self.scale_type.name,
            "range": self.range.name if self.element.ranged else None,
        }

    def bits_per_value(self, layout: Layout) -> float:
        """Return what is stored in all, codes, scales, zero points and constants, over the size."""
        of_blocks = layout.n_blocks * self.element.block_bits(self.scale_type.bits)
        return self.n_bits + (of_blocks + self.scale_type.tensor_bits) / layout.size


def preset(element: Callable[..., Element], block: Block, scale: ScaleType, n_bits: int) -> Format:
    """Return a format that fixes all four choices; `element` takes the width."""
    return Format(element(n_bits=n_bits), block, AbsMax(), scale)


def compose(mode: Any, block: Block, range: Range) -> Format | Codec:
    """Return the format that three choices make; raises ValueError where they contradict."""
    if not isinstance(mode, Format | Codec):
        return Format(as_element(mode), block, range)
    for key, chosen, free in (
        ("block", block.name, "tensor"),
        ("block.scale", block.scale, "float32"),
        ("range", range.name, "absmax"),
    ):
        if chosen != free:
            raise ContradictionError(
                f"{key}={chosen} does not go with a mode that fixes blocks, scales and range: "
                "leave it out"
            )
    return mode
