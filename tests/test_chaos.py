import sys

import pytest

from tests.conftest import ROOT, run_python


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")
def test_some_of_the_faults_cost_nothing():
    done = run_python(ROOT / "benchmarks" / "chaos.py", "--share", "0.01", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
