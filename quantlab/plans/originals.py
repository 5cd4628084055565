"""The tensors of a checkpoint as they were before any format, and what they cost."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlab.records.table import Aggregated
from quantlab.text import label


@dataclass(frozen=True)
class Original:
    """A tensor as its source stores it; `reason` says why it has no figures, None where it has."""

    dist: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int
    reason: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells it apart: source and name."""
        return self.dist, self.name

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


def originals(found: Aggregated) -> list[Original]:
    """Return the tensors of a sweep in their order.

    Raises ValueError where a source has two of one name, as a sweep over checkpoints or seeds has.
    """
    tensors = [_original(each) for each in found.tensors]
    counts = Counter(each.key for each in tensors).most_common(1)
    (dist, name), times = counts[0] if counts else (("", ""), 0)
    if times > 1:
        raise ValueError(
            f"{found.directory} holds {times} tensors '{label(name)}' of {dist}: a plan is of one "
            "checkpoint, so sweep formats alone"
        )
    return tensors


def _original(tensor: Mapping[str, Any]) -> Original:
    shape, dtype = tuple(tensor["shape"]), tensor["dtype"]
    n_bytes = tensor.get("n_bytes")
    bits = math.prod(shape) * width(dtype) if n_bytes is None else 8 * n_bytes
    return Original(tensor["dist"], tensor["name"], dtype, shape, bits, tensor.get("reason"))


def width(dtype: str) -> int:
    """Return the bits of a floating-point dtype.

    >>> width("bfloat16"), width("float8_e4m3fn")
    (16, 8)
    """
    match = re.search(r"float(\d+)", dtype)
    if not match:
        raise ValueError(f"{dtype} is no floating-point dtype")
    return int(match[1])
