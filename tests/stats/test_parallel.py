import threading
import time

import pytest

from quantlab.stats import parallel
from quantlab.stats.parallel import BLOCK, on_threads

LARGE = 8 * BLOCK


def test_no_thread_works_on_once_another_has_failed():
    done = []

    def part(starts):
        if not starts.start:
            raise ValueError("the first share")
        time.sleep(0.05)
        done.append(starts)

    with pytest.raises(ValueError, match="the first share"):
        on_threads(part, LARGE, 4, BLOCK, BLOCK)
    assert len(done) == 3


def test_tensors_of_all_sizes_share_the_threads_that_were_asked_for():
    parallel._pool.cache_clear()
    before = threading.active_count()
    for shares in range(1, 9):
        on_threads(lambda _: time.sleep(0.01), shares * BLOCK, 8, BLOCK, BLOCK)
    assert threading.active_count() - before <= 8
