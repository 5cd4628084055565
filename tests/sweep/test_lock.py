import os
import signal

from tests.conftest import SWEEP, run, start, wait_for_records


def test_the_second_sweep_into_a_directory_is_informed_who_holds_it(tmp_path):
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
