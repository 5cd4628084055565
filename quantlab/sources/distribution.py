"""What a run measures: a source of named tensors."""

from collections.abc import Iterator
from typing import Any, Protocol

from quantlab.sources.expected import Expected
from quantlab.sources.tensor import Tensor


class Distribution(Protocol):
    """A source of named tensors."""

    @property
    def expected(self) -> Expected | None:
        """What is believed of the tensors before they are seen, if anything is."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield each tensor."""

    def others(self) -> Iterator[Tensor]:
        """Yield the tensors that other runs measure, where the source is divided into parts."""
        return iter(())

    def places(self) -> dict[str, int]:
        """Return where each tensor of a divided source stands in it; nothing of a whole one."""
        return {}

    def listing(self) -> str | None:
        """Return what identifies the list of tensors that is divided; None of a whole source."""
        return None

    def skipped(self) -> dict[str, str]:
        """Return the tensors that are left out, with the reason."""
        return {}

    def stored_sizes(self) -> dict[str, dict[str, Any]]:
        """Return ``dtype, shape, n_bytes, place`` of each stored tensor, measured or not."""
        return {}

    def n_bytes(self) -> int | None:
        """Return how much there is to read, if that is known beforehand."""
        return None

    def require_tensors(self) -> None:
        """Raise ValueError when there is nothing to measure."""
        return  # a source that is no file always has something
