"""What benchmarks measure with: the least time of some rounds, and memory that no file backs."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS = 0.002  # between two looks at the memory of a process


def least_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the least time of some rounds, in seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def anonymous_mib(process: str = "self") -> float:
    """Return the MiB of a process that no file backs; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def peak_mib(work: Callable[[], object]) -> float:
    """Return the most memory that this process has while it does some work."""
    most, ended = [anonymous_mib()], threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            most[0] = max(most[0], anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    ended.set()
    watcher.join()
    return most[0]
