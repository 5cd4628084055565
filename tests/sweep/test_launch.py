"""Sweeps that are killed, fail, or are out of room, in processes of their own."""

import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress

import numpy as np
import pytest

from quantlab.records import disk, record
from quantlab.sweep import launch
from quantlab.sweep.launch import Progress
from tests.conftest import ALL, ROOT, RUN, SWEEP, require_same, run, start, wait_for_records


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_as_one_left_alone(undisturbed, tmp_path):
    sweep = [*SWEEP, f"hydra.sweep.dir={tmp_path}"]
    luck = random.Random(int(os.environ.get("KILL_SEED", "0")))
    for _ in range(10):
        process = start(*sweep)
        time.sleep(luck.uniform(0.3, 2.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for path in tmp_path.glob("*/record.json"):
            record.read(path)  # whole, or not there
    done = run(*sweep)
    assert done.returncode == 0, done.stderr
    require_same(tmp_path, undisturbed)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB; skips where none can be mounted."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(where)]
    try:
        subprocess.run(mount, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as reason:
        # It takes root; test_record injects the same fault where there is none.
        pytest.skip(f"no small file system can be mounted: {getattr(reason, 'stderr', reason)}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["basic", "joblib"])
def test_a_full_disk_is_one_error_and_damages_nothing(undisturbed, small_disk, engine):
    sweep = [*SWEEP, f"hydra.sweep.dir={small_disk}/s", f"hydra/launcher={engine}"]
    full = run(*sweep)
    assert full.returncode == 1
    (line,) = full.stderr.splitlines()
    assert "No space left on device" in line
    records = {path: path.read_bytes() for path in small_disk.glob("s/*/record.json")}
    assert 0 < len(records) < ALL
    again = run(*sweep)  # still full
    assert again.returncode == 1
    assert len(again.stderr.splitlines()) == 1
    for path, content in records.items():
        assert path.read_bytes() == content
        record.read(path)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    done = run(*sweep)
    assert done.returncode == 0, done.stderr
    assert f"{len(records)} complete" in done.stdout
    require_same(small_disk / "s", undisturbed)


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_named(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path, line in (
        (
            small_disk / "s",
            f"quantlab: {small_disk}/s cannot be made (Read-only file system): run where you may "
            "write, or name another directory with hydra.sweep.dir=...\n",
        ),
        (small_disk, f"quantlab: {small_disk}/.lock: Read-only file system\n"),
    ):
        done = run(*SWEEP, f"hydra.sweep.dir={path}")
        assert done.returncode == 1
        assert done.stderr == line


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_runs_that_share_a_directory_are_reported(tmp_path):
    slow = ["dist=hidden", "dist.n=20000000"]  # enough for a look at the disk between the two
    done = run("-m", *slow, "n_bits=4,8", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=same")
    assert done.returncode == 1
    assert "1 of 2 runs left no record of their own: hydra.sweep.subdir is the same" in done.stderr


@pytest.mark.usefixtures("undrawn")
def test_another_sweep_s_failures_are_shown_and_cost_nothing(tmp_path):
    np.save(tmp_path / "bad.npy", np.float32([np.nan]))
    np.save(tmp_path / "good.npy", np.float32([1]))
    sweep = ["-m", "dist=file/npy", f"hydra.sweep.dir={tmp_path}/s"]
    bad = run(*sweep, f"dist.path={tmp_path}/bad.npy,{tmp_path}/good.npy")
    assert bad.returncode == 1
    assert "1 of 2 runs failed; to retry them, run: python" in bad.stderr
    good = run(*sweep, f"dist.path={tmp_path}/good.npy")
    assert good.returncode == 0, good.stderr
    assert "bad.npy failed: " in good.stdout


@pytest.mark.usefixtures("undrawn")
def test_the_command_that_goes_on_is_the_one_typed(tmp_path):
    config = (ROOT / "conf" / "config.yaml").read_text()
    (tmp_path / "other.yaml").write_text(config.replace("seed: 42", "seed: 7"))
    np.save(tmp_path / "bad.npy", np.float32([np.nan]))
    flags = ["--config-name", "other", "--config-dir", str(tmp_path)]
    sweep = ["dist=file/npy", f"dist.path={tmp_path}/bad.npy", f"hydra.sweep.dir={tmp_path}/s"]
    done = run("-m", *sweep, "resume=false", *flags)
    assert done.stderr.endswith(f"python {RUN[1]} -m {' '.join([*sweep, *flags])}\n")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["command"].startswith(f"python run.py -m {' '.join(flags)} dist=file/npy")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_second_sweep_into_a_directory_is_informed_who_holds_it(tmp_path):
    sweep = ["-m", "dist=hidden", "n_bits=range(2,9)"]
    first = start(*sweep, f"hydra.sweep.dir={tmp_path}")
    wait_for_records(tmp_path)
    os.killpg(first.pid, signal.SIGSTOP)  # it shall not end before the second begins
    second = run(*sweep, f"hydra.sweep.dir={tmp_path}")
    assert second.returncode == 1
    assert f"is in use by process {first.pid} on" in second.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    third = run(*sweep, f"hydra.sweep.dir={tmp_path}")  # the lock of the dead holds nobody up
    assert third.returncode == 0, third.stderr


@pytest.mark.slow
def test_what_is_complete_is_not_done_again(undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    paths = sorted(copy.glob("*/record.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    missing, failed, torn, foreign, *complete = paths
    missing.unlink()
    failed.write_bytes(disk.to_json(record.read(failed) | {"status": "failed"}))
    torn.write_bytes(torn.read_bytes()[:1000])
    foreign.write_bytes(complete[0].read_bytes())  # it answers another question
    done = run(*SWEEP, f"hydra.sweep.dir={copy}")
    assert done.returncode == 0, done.stderr
    said = "resuming: 24 complete, 1 failed, 1 missing, 1 unreadable, 1 changed; 4 to do"
    assert said in done.stdout
    assert "4/4 runs, 0 failed" in done.stdout
    require_same(copy, undisturbed)
    assert all(path.stat().st_mtime_ns == before[path] for path in complete)


@pytest.mark.slow
def test_resume_false_does_all_again(lab_sweep, tmp_path):
    copy = shutil.copytree(lab_sweep[0], tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/record.json")}
    done = run("experiment=lab", f"hydra.sweep.dir={copy}", "resume=false")
    assert "6/6 runs, 0 failed" in done.stdout
    assert set(copy.glob("*/record.json")) == set(before)
    assert all(path.stat().st_mtime_ns != old for path, old in before.items())
    require_same(copy, lab_sweep[0])


def finish(directory, name, status="completed"):
    (directory / name).mkdir(exist_ok=True)
    disk.write(directory / name / record.NAME, disk.to_json({"status": status, "tensors": {}}))


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(launch, "LINE_SECONDS", 0.0)


@pytest.mark.usefixtures("hurried")
def test_progress_counts_what_appears_and_not_what_was_there(tmp_path, capsys):
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


@pytest.mark.usefixtures("hurried")
def test_a_run_that_a_cluster_repeats_is_counted_once(tmp_path, capsys):
    with Progress(tmp_path, 1):
        finish(tmp_path, "a", "failed")
        time.sleep(0.3)
        finish(tmp_path, "a")
    assert capsys.readouterr().out.splitlines()[-1] == "1/1 runs, 0 failed"


@pytest.mark.usefixtures("hurried")
def test_a_record_that_cannot_be_read_is_done_all_the_same(tmp_path, capsys):
    with Progress(tmp_path, 2):
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn" / record.NAME).write_text("[")
        (tmp_path / "gone").mkdir()
        (tmp_path / "gone" / record.NAME).symlink_to("nowhere")
    assert capsys.readouterr().out.splitlines()[-1].startswith("1/2 runs, 0 failed")


@pytest.mark.slow
def test_a_terminal_has_one_line_that_moves(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        os.execv(sys.executable, [*RUN, "-m", "n_bits=range(2,9)", f"hydra.sweep.dir={tmp_path}"])
    shown = b""
    with suppress(OSError):  # the terminal of a process that ended
        while more := os.read(terminal, 4096):
            shown += more
    assert os.waitpid(pid, 0)[1] == 0
    moving, _, rest = shown.decode().partition("7/7 runs, 0 failed\r\n")
    assert "\n" not in moving
    assert re.search(r"\r *\d+%\|.*\| \d+/7 \[00:0\d<00:0\d, .*run/s, 0 failed\]", moving)
    assert "results.csv" in rest
