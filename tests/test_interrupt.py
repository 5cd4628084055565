import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from quantlab import interrupt
from quantlab.errors import report_user_errors
from quantlab.records import record
from tests.conftest import (
    ALL,
    ROOT,
    RUN,
    SWEEP,
    require_same,
    run_quantlab,
    start,
    wait_for_records,
)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_complete_and_says_how_to_go_on(undisturbed, tmp_path):
    sweep = [*SWEEP, f"hydra.sweep.dir={tmp_path}"]
    process = start(*sweep)
    wait_for_records(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    (line,) = stderr.splitlines()
    assert line.startswith(
        f"quantlab: interrupted; to finish the sweep, run: python {RUN[1]} -m dist=hidden,"
    )
    rows = (tmp_path / "results.csv").read_text().splitlines()[1:]
    assert 1 <= len(rows) == len(list(tmp_path.glob("*/record.json"))) < ALL
    assert "results.csv" in stdout
    again = subprocess.run(
        line.partition("run: ")[2].replace("python", sys.executable, 1),
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert f"{len(rows)} complete" in again.stdout
    require_same(tmp_path, undisturbed)


def test_ctrl_c_that_a_library_turns_into_another_error(tmp_path, monkeypatch):
    def turned():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        raise AttributeError("flags")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(interrupt, "requested", threading.Event())
    try:
        interrupt.listen()
        with pytest.raises(KeyboardInterrupt):
            record.run_and_write(tmp_path, turned, {}, mode="symmetric", n_bits=8)
        with pytest.raises(SystemExit) as ended, report_user_errors():
            raise AttributeError("flags")
        assert ended.value.code == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())  # it has not failed, it is missing


def has_ended(group):
    """Wait until no process of a group is left; ten seconds at most."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib"]])
def test_sigterm_leaves_no_worker_and_says_how_to_go_on(tmp_path, launcher):
    process = start(*SWEEP, f"hydra.sweep.dir={tmp_path}", *launcher)
    wait_for_records(tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "interrupted; to finish the sweep, run: python" in stderr
    assert (tmp_path / "results.csv").exists()
    assert has_ended(process.pid)
    done = run_quantlab("aggregate", tmp_path)
    n_records = len(list(tmp_path.glob("*/record.json")))
    assert f"{ALL - n_records} of {ALL} runs have no record" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["run.py"], "hydra"),
        (["-m", "quantlab", "verify", "."], "hydra"),
        (["-m", "quantlab", "verify", "."], "argparse"),  # the first that it imports
        (["-m", "quantlab", "check", "."], "pandas"),  # which the command alone imports
    ],
)
def test_ctrl_c_during_the_imports_is_one_line(tmp_path, command, module):
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(9)\n"
        "except KeyboardInterrupt as error:  # as packages do\n"
        "    raise ImportError from error\n"
    )
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "quantlab: interrupted\n")
