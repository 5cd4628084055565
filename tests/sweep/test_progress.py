import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from contextlib import suppress

import pytest

from quantlab.records import disk, record
from quantlab.sweep import progress
from quantlab.sweep.progress import Progress
from tests.conftest import RUN, SWEEP


def finish(directory, name, status="completed"):
    (directory / name).mkdir(exist_ok=True)
    disk.write(directory / name / record.NAME, disk.to_json({"status": status}))


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    monkeypatch.setattr(progress, "LINES", 0.0)


def test_it_counts_what_appears_and_not_what_was_there(tmp_path, capsys):
    finish(tmp_path, "before")
    finish(tmp_path, "again", "failed")
    with Progress(tmp_path, 4):
        finish(tmp_path, "a")
        finish(tmp_path, "b", "failed")
        time.sleep(0.3)
        finish(tmp_path, "again")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert last == "3/4 runs, 1 failed, 00:00 left"
    assert first.endswith("left") or first == "0/4 runs, 0 failed"
    assert "\r" not in first


def test_a_record_that_cannot_be_read_is_done_all_the_same(tmp_path, capsys):
    with Progress(tmp_path, 2):
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn" / record.NAME).write_text("[")
        (tmp_path / "gone").mkdir()
        (tmp_path / "gone" / record.NAME).symlink_to("nowhere")
    assert capsys.readouterr().out.splitlines()[-1].startswith("1/2 runs, 0 failed")


def test_a_terminal_has_one_line_that_moves(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        os.execv(sys.executable, [*RUN, *SWEEP, f"hydra.sweep.dir={tmp_path}"])
    shown = b""
    with suppress(OSError):  # the terminal of a process that ended
        while more := os.read(terminal, 4096):
            shown += more
    assert os.waitpid(pid, 0)[1] == 0
    moving, _, rest = shown.decode().partition("28/28 runs, 0 failed\r\n")
    assert "\n" not in moving
    assert re.search(r"\r *\d+%\|.*\| \d+/28 \[00:0\d<00:0\d, .*run/s, 0 failed\]", moving)
    assert "results.csv" in rest
