"""How far a sweep is: runs done of all, failures, time left; wherever its runs run."""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from quantlab.records import record

INTERVAL = 0.5  # seconds between two looks
LINES = 10.0  # seconds between two lines in a log


class Progress:
    """Shows how many records appear below a directory, in one line or, in a log, in lines.

    It looks at the disk, which is all that a laptop's process and a cluster's node share.
    """

    def __init__(self, directory: Path, total: int) -> None:
        self.directory = directory
        self.seen = {path: _stamp(path) for path in record.find(directory) if path.exists()}
        self.done = self.failed = 0
        self.total, self.started, self.printed = total, time.monotonic(), time.monotonic()
        self.bar = tqdm(total=total, unit="run", disable=None, leave=False)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        """Begin to look."""
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        """Look a last time and say how far it went."""
        self.ended.set()
        self.thread.join()
        self._count_records()
        self.bar.close()
        self._print_line()

    def _watch(self) -> None:
        pause, news = INTERVAL, False
        while not self.ended.wait(pause):
            start, before = time.monotonic(), self.done
            self._count_records()
            news |= self.done > before
            if self.bar.disable and news and start - self.printed > LINES:
                self._print_line()
                news = False
            pause = max(INTERVAL, 20 * (time.monotonic() - start))  # a look costs the runs time

    def _count_records(self) -> None:
        """Count the records that are new since the last look."""
        before = self.done
        for path in record.find(self.directory):
            with suppress(OSError):  # gone, or never to be read
                stamp = _stamp(path)
                if self.seen.get(path) != stamp:
                    self.seen[path] = stamp
                    self.done += 1
                    self.failed += _has_failed(path)
        self.bar.set_postfix_str(f"{self.failed} failed", refresh=False)
        self.bar.update(self.done - before)

    def _print_line(self) -> None:
        self.printed = time.monotonic()
        line = f"{self.done}/{self.total} runs, {self.failed} failed"
        if 0 < self.done < self.total:
            left = (self.printed - self.started) / self.done * (self.total - self.done)
            line += f", {tqdm.format_interval(left)} left"
        print(line, flush=True)


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a record is written again: every write makes a new file."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _has_failed(path: Path) -> bool:
    with suppress(ValueError, AttributeError):
        return json.loads(path.read_bytes()).get("status") == "failed"
    return False
