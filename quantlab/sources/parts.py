"""The tensors of a file, divided over several runs."""

from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import Any


def require_part(part: Any, parts: Any) -> None:
    """Raise ValueError unless `part` is one of ``0 .. parts - 1``; of one part it may be None."""
    if type(parts) is not int or parts < 1:
        raise ValueError(f"dist.parts must be a whole number of 1 or more, got {parts!r}")
    if parts == 1 and part in (None, 0):
        return
    if parts == 1:
        raise ValueError(f"dist.part={part!r} takes dist.parts=N, the number of parts: add it")
    if part is None:
        raise ValueError(
            f"dist.parts={parts} takes dist.part=range({parts}) in a sweep, or the number of one "
            "part: add it"
        )
    if type(part) is not int or not 0 <= part < parts:
        raise ValueError(
            f"dist.part must be a whole number from 0 to {parts - 1} with dist.parts={parts}, "
            f"got {part!r}"
        )


def divide(sizes: Sequence[int], parts: int) -> list[int]:
    """Return the part of each size, the sums of the parts about even.

    The largest goes first, into the part that holds least; the first one where several are equal.

    >>> divide([5, 9, 4, 4], 2)
    [1, 0, 1, 0]
    """
    found = [0] * len(sizes)
    loads = [(0, part) for part in range(min(parts, len(sizes)))]  # any more parts stay empty
    heapify(loads)
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        load, part = loads[0]
        found[n] = part
        heapreplace(loads, (load + sizes[n], part))
    return found
