"""A format whose codes are not ours: those of a library, or of a file that is quantized already.

A codec says what a tensor comes back as; which codes lead there is its own affair.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from quantlab.formats.blocks import Read, Shape
from quantlab.formats.element import FloatArray


class Values(Protocol):
    """A named tensor, as a codec sees it."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def shape(self) -> Shape:
        """The shape."""

    def block(self, start: int, stop: int) -> FloatArray:
        """Return elements `start` to `stop`, flat in C order."""


@dataclass(frozen=True)
class Reconstruction:
    """What one tensor comes back as.

    `read` returns float32 elements `start` to `stop`, flat in C order, whatever thread asks;
    `dtype` names the type that holds them, and `bits` is the size of all that is stored. Of what
    is stored in a file there is the `sha256`, and the name of the file is `source`. `readings` are
    other known readings of the same words, by what they suppose, `rearranged` those that put values
    in other places; `remark` is what is wrong with the file itself. `slow` says that a thread pays
    for few values.
    """

    read: Read
    dtype: str
    bits: int
    sha256: str | None = None
    source: str = ""
    readings: Mapping[str, Read] = field(default_factory=dict)
    rearranged: Mapping[str, Read] = field(default_factory=dict)
    remark: str | None = None
    slow: bool = False


class Codec(ABC):
    """Stores whole tensors; `versions` are those of the packages that its values depend on."""

    n_bits: int | None
    versions: Mapping[str, str] = {}

    @abstractmethod
    def open(self, tensor: Values) -> Reconstruction:
        """Return what a tensor comes back as.

        Raises UnfitError where it is not stored, ValueError where it is and something is wrong.
        """

    def bind(self, source: Any) -> "Codec":  # noqa: ARG002 files look for its tensors
        """Return the codec for the tensors of one source."""
        return self

    def unmatched(self) -> Mapping[str, str]:
        """Return what is stored and not of the source it is bound to, with the reason."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the columns of a format, which are those of other formats: all null."""
        return dict.fromkeys(("block", "block_size", "scale_dtype", "range"))
