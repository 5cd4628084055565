import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import pytest

from quantlab.records import record
from quantlab.sweep import workers
from quantlab.sweep.workers import VARIABLE, Workers
from tests.conftest import ROOT, RUN, run_python, wait_for_records
from tests.sweep.test_engines import RAY

LONG_RUNS = ["-m", "dist=hidden", "dist.n=4000000", "n_bits=4,5,6,7"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
MARK = "QUANTLAB_TEST_MARK"
WORKER = """
import time
from quantlab.sweep.workers import end_with_sweep
end_with_sweep()
print("works", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
from quantlab.sweep.workers import Workers
class LocalLauncher: pass
workers = Workers(LocalLauncher())
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}], stdout=subprocess.PIPE, text=True)
worker.stdout.readline()
print(worker.pid, flush=True)
sys.stdin.readline()
workers.stop()
print(worker.wait(10), flush=True)
late = subprocess.run([sys.executable, "-c", {WORKER!r}], stdout=subprocess.DEVNULL, timeout=10)
print(late.returncode, flush=True)
"""


@pytest.fixture
def parent():
    """A process with a worker, whose pid it prints."""
    command = [sys.executable, "-c", PARENT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def has_ended(pid):
    """Wait until a process has ended, ten seconds at most; a zombie has."""
    for _ in range(100):
        try:
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_a_worker_ends_when_its_sweep_is_killed(parent):
    worker = int(parent.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    assert has_ended(worker)


def test_a_worker_that_is_stopped_ends_and_so_does_one_that_starts_late(parent):
    parent.stdout.readline()
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert [parent.stdout.readline() for _ in range(2)] == ["130\n", "130\n"]


def test_a_worker_of_a_sweep_that_is_gone_ends(monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv(VARIABLE, f"{gone.pid}/fd/5")
    assert run_python("-c", WORKER).returncode == 130


def test_where_the_pipe_cannot_be_seen_the_process_says_it(monkeypatch, tmp_path):
    place = f"{os.getpid()}/fd/5"
    monkeypatch.setattr(workers, "PROC", tmp_path / "none")
    assert workers._may_be_open(place)
    monkeypatch.setattr(workers, "PROC", tmp_path)
    assert not workers._may_be_open(place)
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(workers, "PROC", tmp_path / "none")
    assert not workers._may_be_open(f"{gone.pid}/fd/5")


def test_workers_on_other_machines_know_of_no_pipe(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1/fd/5")
    Workers(type("SlurmLauncher", (), {})()).stop()
    assert VARIABLE not in os.environ


@pytest.fixture
def hurried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "SHUTDOWN_SECONDS", 0.1)
    monkeypatch.setattr(workers, "SETTLE_SECONDS", 1.0)
    number = str(uuid4().int)  # no PID: another test of these may run beside this one
    monkeypatch.setenv("NUMBER", number)
    monkeypatch.setenv(VARIABLE, f"{number}/fd/4")


LATE = f"exec env -u {VARIABLE} name=${VARIABLE} sh -c 'sleep 0.4; {VARIABLE}=$name exec sleep 60'"


LOG = "session_2026-11-28_12-00-00_000001_$NUMBER/logs/agent.out"
TITLED = f"mkdir -p $(dirname {LOG}); exec env -u {VARIABLE} sleep 60 > {LOG}"
PIPED = TITLED.replace(">", "3>")  # whose output Ray takes through a pipe
READING = TITLED.replace("exec", f"touch {LOG}; exec").replace(">", "<")


def reap_beside(command, started):
    """Start a shell command as a worker of a sweep that has ended, and end what is of the sweep."""
    read_end, write_end = os.pipe()
    os.close(write_end)
    with os.fdopen(read_end) as pipe, subprocess.Popen(["sh", "-c", command]) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", pipe)
            workers.reap(started)
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return None


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("command", ["exec sleep 60", LATE, TITLED, PIPED])
def test_what_a_cluster_leaves_or_still_starts_is_ended(command):
    assert reap_beside(command, "2026-11-28_11-59-59_999999") == -signal.SIGKILL


@pytest.mark.usefixtures("hurried")
def test_one_that_reads_the_log_of_a_cluster_is_left():
    assert reap_beside(READING, "2026-11-28_11-59-59_999999") is None


@pytest.mark.usefixtures("hurried")
def test_a_cluster_of_an_earlier_or_a_later_sweep_is_left():
    assert reap_beside(TITLED, "2026-11-28_12-00-00_000002") is None
    later = TITLED.replace("2026", "9999")
    assert reap_beside(later, "2026-11-28_11-59-59_999999") is None


def marked(mark):
    """List the processes that have a mark in their environment."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                processes.append((path / "cmdline").read_bytes())
        except OSError:
            continue
    return processes


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_nothing_is_left_running(tmp_path, monkeypatch, launcher, how):
    if launcher == "ray" and not RAY.exists():
        pytest.skip("there is no Ray: `make ray` installs it")
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    ray_folder = tempfile.mkdtemp(prefix="ray")  # else Ray joins the cluster of another test
    monkeypatch.setenv("RAY_TMPDIR", ray_folder)
    python = RAY if launcher == "ray" else sys.executable
    sweep = [*LONG_RUNS, f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}"]
    with subprocess.Popen([python, RUN[1], *sweep], cwd=ROOT, **QUIET) as process:
        try:
            wait_for_records(tmp_path)
            assert len(marked(mark)) > 1
        finally:
            process.send_signal(how)
    deadline = time.monotonic() + 40  # those of Ray have some seconds to end
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked(mark)
    for path in tmp_path.glob("*/record.json"):
        record.read(path)  # whole, or not there
    shutil.rmtree(ray_folder)
