"""Sweeps that are resumed, interrupted, killed, held, or out of room, in processes of their own."""

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
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from quantlab import interrupt, record
from quantlab.errors import told
from quantlab.grid import combinations
from tests.conftest import ROOT, run_python

SWEEP = ["-m", "dist=hidden,verb_probs", "mode=sym,asym", "n_bits=range(2,9)"]
ALL = 28
RUN = [sys.executable, str(ROOT / "run.py")]


def run(*arguments, cwd=ROOT):
    return run_python(ROOT / "run.py", *arguments, cwd=cwd)


def start(*arguments):
    return subprocess.Popen(
        [*RUN, *arguments],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_records(directory, n=1):
    deadline = time.monotonic() + 60
    while len(list(directory.glob("*/record.json"))) < n:
        assert time.monotonic() < deadline, "no run was ever recorded"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    done = run(*SWEEP, f"hydra.sweep.dir={directory}")
    assert done.returncode == 0, done.stderr
    return directory


def require_equal(directory, reference):
    for name in ("results.json", "results.csv", "error_histogram.png"):
        assert (directory / name).read_bytes() == (reference / name).read_bytes(), name


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
    require_equal(tmp_path, undisturbed)
    assert not list(tmp_path.rglob("*.partial"))


def test_what_is_complete_is_not_done_again(undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    paths = sorted(copy.glob("*/record.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    missing, failed, torn, foreign, *complete = paths
    missing.unlink()
    failed.write_bytes(record.to_json(record.read(failed) | {"status": "failed"}))
    torn.write_bytes(torn.read_bytes()[:1000])
    foreign.write_bytes(complete[0].read_bytes())  # it answers another question
    done = run(*SWEEP, f"hydra.sweep.dir={copy}")
    assert done.returncode == 0, done.stderr
    said = "resuming: 24 complete, 1 failed, 1 missing, 1 unreadable, 1 changed; 4 to do"
    assert said in done.stdout
    assert "4/4 runs, 0 failed" in done.stdout
    require_equal(copy, undisturbed)
    assert all(path.stat().st_mtime_ns == before[path] for path in complete)


def test_resume_false_does_all_again(undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/record.json")}
    done = run(*SWEEP, f"hydra.sweep.dir={copy}", "resume=false")
    assert f"{ALL}/{ALL} runs, 0 failed" in done.stdout
    assert set(copy.glob("*/record.json")) == set(before)
    assert all(path.stat().st_mtime_ns != old for path, old in before.items())
    require_equal(copy, undisturbed)


def test_a_changed_file_is_measured_again_and_threads_change_nothing(tmp_path):
    path = tmp_path / "w.npy"
    sweep = ["-m", "dist=file/npy", f"dist.path={path}", f"hydra.sweep.dir={tmp_path}/s"]
    np.save(path, np.float32([1, 2]))
    assert run(*sweep).returncode == 0
    assert "1 complete; 0 to do" in run(*sweep).stdout
    np.save(path, np.float32([1, 3]))
    assert "1 changed; 1 to do" in run(*sweep).stdout
    (one,) = (tmp_path / "s").glob("*/record.json")
    assert record.read(one)["tensors"]["w"]["range"] == [1, 3]
    assert "1 complete; 0 to do" in run(*sweep, "threads=1").stdout
    np.savez(tmp_path / "w.npz", x=np.float32([1, 3]))
    npz = ["-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", f"hydra.sweep.dir={tmp_path}/npz"]
    assert run(*npz).returncode == 0
    np.savez(tmp_path / "w.npz", y=np.float32([1, 3]))  # the same bytes under another name
    assert "1 changed; 1 to do" in run(*npz).stdout
    np.save(path, np.float32([1, 3]).view(np.float16))  # the same bytes as other values
    assert "1 changed; 1 to do" in run(*sweep).stdout
    np.save(path, np.float32([1, 3]))
    assert run(*sweep).returncode == 0
    config = (ROOT / "conf" / "config.yaml").read_text()
    (tmp_path / "other.yaml").write_text(config.replace("seed: 42", "seed: 1"))
    other = run(*sweep, "--config-name", "other", "--config-dir", str(tmp_path))
    assert "1 changed; 1 to do" in other.stdout


def test_directories_named_by_number_are_never_mistaken_for_complete(tmp_path):
    sweep = [
        "-m",
        "n_bits=4,8",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    for _ in range(2):
        done = run(*sweep)
        assert done.returncode == 0, done.stderr
        assert "2/2 runs, 0 failed" in done.stdout


def test_ctrl_c_keeps_what_is_complete_and_says_how_to_go_on(undisturbed, tmp_path):
    sweep = [*SWEEP, f"hydra.sweep.dir={tmp_path}"]
    process = start(*sweep)
    wait_for_records(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    printed, told = process.communicate()
    assert process.returncode == 130
    (line,) = told.splitlines()
    assert line.startswith(
        f"quantlab: interrupted; to do the rest: python {RUN[1]} -m dist=hidden,"
    )
    rows = (tmp_path / "results.csv").read_text().splitlines()[1:]
    assert 1 <= len(rows) == len(list(tmp_path.glob("*/record.json"))) < ALL
    assert "results.csv" in printed
    again = subprocess.run(
        line.partition("rest: ")[2].replace("python", sys.executable, 1),
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert f"{len(rows)} complete" in again.stdout
    require_equal(tmp_path, undisturbed)


def test_ctrl_c_that_a_library_turns_into_another_error(tmp_path, monkeypatch):
    def turned():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        raise AttributeError("flags")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(interrupt, "asked", threading.Event())
    try:
        interrupt.listen()
        with pytest.raises(KeyboardInterrupt):
            record.keep(tmp_path, turned, {})
        with pytest.raises(SystemExit) as ended, told():
            raise AttributeError("flags")
        assert ended.value.code == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())  # it has not failed, it is missing


def test_the_second_sweep_into_a_directory_is_told_who_holds_it(tmp_path):
    first = start(*SWEEP, f"hydra.sweep.dir={tmp_path}")
    wait_for_records(tmp_path)
    os.killpg(first.pid, signal.SIGSTOP)  # it shall not end before the second begins
    second = run(*SWEEP, f"hydra.sweep.dir={tmp_path}")
    assert second.returncode == 1
    assert f"is in use by another sweep, process {first.pid} on" in second.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    third = run(*SWEEP, f"hydra.sweep.dir={tmp_path}")  # the lock of the dead holds nobody up
    assert third.returncode == 0, third.stderr


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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB; skips where none can be mounted."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(where)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as reason:
        pytest.skip(f"no small file system can be mounted: {reason}")
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_full_disk_is_one_error_and_damages_nothing(undisturbed, small_disk, launcher):
    sweep = [*SWEEP, f"hydra.sweep.dir={small_disk}/s", f"hydra/launcher={launcher}"]
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
    require_equal(small_disk / "s", undisturbed)


def test_a_directory_that_cannot_be_written_is_named(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path, line in (
        (small_disk / "s", f"quantlab: {small_disk}/s: Read-only file system\n"),
        (small_disk, f"quantlab: {small_disk}/.lock: Read-only file system\n"),
    ):
        done = run(*SWEEP, f"hydra.sweep.dir={path}")
        assert done.returncode == 1
        assert done.stderr == line


def test_any_override_makes_a_directory_of_its_own(tmp_path):
    long = "a" * 300
    values = [
        "a/b",
        "../c",
        "'a b'",
        "'x=1, y'",
        "'Ωμέγα'",
        long,
        f"{long}b",
        "[1,2]",
        "{a:1}",
        "${n_bits}",
        "''",
        "null",
    ]
    sweep = ["-m", "dist=hidden", f"+note={','.join(values)}", f"hydra.sweep.dir={tmp_path}/s"]
    done = run(*sweep)
    assert done.returncode == 0, done.stderr
    directories = [path.parent for path in (tmp_path / "s").glob("*/record.json")]
    assert len(directories) == len(values)
    assert all(len(path.name) < 100 for path in directories)
    assert f"{len(values)} complete; 0 to do" in run(*sweep).stdout


def test_runs_that_share_a_directory_are_told(tmp_path):
    done = run("-m", "n_bits=4,8", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=same")
    assert done.returncode == 1
    assert "1 of 2 runs left no record of their own: hydra.sweep.subdir is the same" in done.stderr


def test_another_sweep_s_failures_are_shown_and_cost_nothing(tmp_path):
    np.save(tmp_path / "bad.npy", np.float32([np.nan]))
    np.save(tmp_path / "good.npy", np.float32([1]))
    sweep = ["-m", "dist=file/npy", f"hydra.sweep.dir={tmp_path}/s"]
    bad = run(*sweep, f"dist.path={tmp_path}/bad.npy,{tmp_path}/good.npy")
    assert bad.returncode == 1
    assert "1 of 2 runs failed; to do them again: python" in bad.stderr
    good = run(*sweep, f"dist.path={tmp_path}/good.npy")
    assert good.returncode == 0, good.stderr
    assert "bad.npy failed: " in good.stdout


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


def test_settings_of_the_environment_are_resumed(tmp_path):
    sweep = ["-m", "dist=hidden", "+note=${oc.env:NOTE}", "+hydra.job.env_set.NOTE=7"]
    for said in ("1/1 runs, 0 failed", "1 complete; 0 to do"):
        done = run(*sweep, f"hydra.sweep.dir={tmp_path}/s")
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_two_sweeps_that_start_together_do_not_meet(tmp_path):
    command = [*RUN, "-m", "dist=tense_logits"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list(tmp_path.glob("multirun/*/results.json"))) == 2


def test_a_wrong_combination_is_refused_before_the_first_run(tmp_path):
    for modes in ("asym,sym", "sym,asym"):
        sweep = [
            "-m",
            f"mode={modes}",
            "mode.zero_point=clip,widen",
            f"hydra.sweep.dir={tmp_path}/s",
        ]
        done = run(*sweep)
        assert done.returncode == 1
        assert "mode.zero_point=clip sets an unknown key" in done.stderr
        assert not (tmp_path / "s").exists()
    for value, line in (
        ("hydra/launcher=none", "hydra/launcher=none does not exist: choose one of basic"),
        ("+note=nan,1", "a setting cannot be recorded as JSON (Out of range"),
        ("+note={1:a,b:c}", "a setting cannot be recorded as JSON ('<' not supported"),
        ("threads=1,2", "threads=1,2: threads changes no figure, give it one value"),
        ("n_bits=range(5,2)", "n_bits=range(5,2) matches nothing: name at least one value"),
    ):
        done = run("-m", value, f"hydra.sweep.dir={tmp_path}/s")
        assert done.returncode == 1
        assert line in done.stderr
        assert not (tmp_path / "s").exists()
    endless = run("-m", "n_bits=interval(2,8)")
    assert "n_bits=interval(2,8): an interval has no end" in endless.stderr


def test_the_last_of_two_values_typed_for_a_key_counts():
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=3", "a=4,5,4", "~c"])
    assert combinations(parsed) == [["a=4", "b=3", "~c"], ["a=5", "b=3", "~c"]]
