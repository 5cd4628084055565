"""Share the blocks of a tensor among threads, and return their results in order."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise, takewhile
from threading import Event
from typing import Any, TypeVar

import numpy as np

from quantlab.stats.reference import CHUNK

MIN_ITEMS = 4  # that pay for threads
T = TypeVar("T")


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache
def keep_freed_memory() -> None:
    """Make glibc keep freed arrays of a block for the next block.

    Else it returns them to the system, which clears each page anew. Freeing one array of 16 MiB
    raises the size up to which it keeps them: mallopt(3), M_MMAP_THRESHOLD.
    """
    np.empty(2**24, np.uint8)


def on_threads(
    function: Callable[[Iterable[int], int], T],
    size: int,
    threads: int,
    min_share: int,
    block_size: int,
) -> list[T]:
    """Give each thread an even share of the blocks, in order; return a result a share.

    ``function(starts, step)`` takes blocks of `step` elements at most, by where they begin: with a
    chunk. A share has `min_share` elements or more, and ends early where another has failed.
    """
    keep_freed_memory()
    n = max(1, min(threads, size // min_share))
    chunks = -(-size // CHUNK)
    step = min(block_size, -(-chunks // n) * CHUNK)
    blocks = -(-size // step)
    ends = [step * (i * blocks // n) for i in range(n)] + [size]
    shares = [range(start, stop, step) for start, stop in pairwise(ends)]
    failed = Event()

    def work(share: range) -> T:
        try:
            return function(takewhile(lambda _: not failed.is_set(), share), step)
        except BaseException:
            failed.set()
            raise

    others = [_pool(threads).submit(work, share) for share in shares[1:]]
    try:
        return [work(shares[0]), *(future.result() for future in others)]
    except BaseException:
        wait(others)  # they use the tensor
        raise


def map_on_threads(function: Callable[[Any], T], items: list[Any], threads: int) -> list[T]:
    """Call a function with each item, and return the results in order."""
    if threads <= 1 or len(items) < MIN_ITEMS:
        return [function(item) for item in items]
    return list(_pool(threads).map(function, items))


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that wait for work: to start them costs as much as a million values."""
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a copy
