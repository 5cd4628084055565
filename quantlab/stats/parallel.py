"""Work on the blocks of a tensor, shared among threads, and what it makes of them in order."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise, takewhile
from threading import Event
from typing import Any, TypeVar

import numpy as np

from quantlab.stats.sums import CHUNK

BLOCK = 4 * CHUNK  # elements in work at once: many for the interpreter, few enough for the cache
BLOCKS = 4  # of them pay for a thread of their own
T = TypeVar("T")

# After this is freed, glibc keeps the memory of smaller arrays for those of the next block. Else it
# returns them to the system, which clears each page anew: mallopt(3), M_MMAP_THRESHOLD.
np.empty(2**24, np.uint8)


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_threads(
    part: Callable[[Iterable[int], int], T],
    size: int,
    threads: int,
    least: int,
    block: int,
) -> list[T]:
    """Give each thread an even share of the blocks, in order, and return what it made of them.

    ``part(starts, step)`` takes blocks of `step` elements at most, by where they begin: with a
    chunk. A share has `least` elements or more, and ends early where another has failed.
    """
    n = max(1, min(threads, size // least))
    chunks = -(-size // CHUNK)
    step = min(block, -(-chunks // n) * CHUNK)
    blocks = -(-size // step)
    ends = [step * (i * blocks // n) for i in range(n)] + [size]
    shares = [range(start, stop, step) for start, stop in pairwise(ends)]
    failed = Event()

    def work(share: range) -> T:
        try:
            return part(takewhile(lambda _: not failed.is_set(), share), step)
        except BaseException:
            failed.set()
            raise

    others = [_pool(threads).submit(work, share) for share in shares[1:]]
    try:
        return [work(shares[0]), *(each.result() for each in others)]
    except BaseException:
        wait(others)  # they use the tensor
        raise


def mapped(function: Callable[[Any], T], items: list[Any], threads: int) -> list[T]:
    """Return what a function makes of some items, in order; few are not worth a thread."""
    if threads <= 1 or len(items) < BLOCKS:
        return [function(item) for item in items]
    return list(_pool(threads).map(function, items))


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that wait for work: to start them costs as much as a million values."""
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a copy
