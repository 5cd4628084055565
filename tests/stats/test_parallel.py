import threading
import time

import pytest

from quantlab.stats import parallel
from quantlab.stats.parallel import on_threads
from quantlab.stats.reference import NumpyEngine

BLOCK = NumpyEngine.block_size
LARGE = 16 * BLOCK


def test_no_thread_works_on_once_another_has_failed():
    done = []

    def part(starts, _):
        for start in starts:
            if not start:
                raise ValueError("the first block")
            time.sleep(0.05)
            done.append(start)

    with pytest.raises(ValueError, match="the first block"):
        on_threads(part, LARGE, 2, BLOCK, BLOCK)
    time.sleep(0.1)
    assert len(done) <= 1  # of eight blocks, the one that was at work


def test_tensors_of_all_sizes_share_the_threads_that_were_asked_for():
    parallel._pool.cache_clear()
    before = threading.active_count()
    for shares in range(1, 9):
        on_threads(lambda *_: time.sleep(0.01), shares * BLOCK, 8, BLOCK, BLOCK)
    assert threading.active_count() - before <= 8
