"""The lab's sweep through every launcher, for real: the aggregate is the basic launcher's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RAY = ROOT / ".venv" / "ray" / "bin" / "python"  # its cloudpickle is one that joblib refuses
SLURM = ROOT / ".venv" / "slurm" / "slurm.conf"


def slurm_answers():
    try:
        asked = ["sinfo", "--noheader", "--states=idle,mixed,allocated"]
        done = subprocess.run(asked, env=slurm(), capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return SLURM.exists() and bool(done.stdout)


def slurm():
    return os.environ | {"SLURM_CONF": str(SLURM)}


def sweep(directory, launcher, python=sys.executable, env=None):
    command = [python, "run.py", "experiment=lab", f"hydra/launcher={launcher}"]
    return subprocess.run(
        [*command, f"hydra.sweep.dir={directory}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def require_equal(done, directory, reference):
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "results.csv", "error_histogram.png"):
        assert (directory / name).read_bytes() == (reference / name).read_bytes(), name
    assert "6/6 runs, 0 failed" in done.stdout


def test_joblib(lab_sweep, tmp_path):
    done = sweep(tmp_path, "joblib")
    require_equal(done, tmp_path, lab_sweep[0])
    assert done.stderr == ""


def test_submitit_on_this_machine(lab_sweep, tmp_path):
    done = sweep(tmp_path, "submitit_local")
    require_equal(done, tmp_path, lab_sweep[0])
    assert done.stderr == ""


def test_slurm(lab_sweep, tmp_path):
    if not slurm_answers():
        pytest.skip("there is no Slurm: `make slurm` starts one where it can be installed")
    done = sweep(tmp_path, "submitit_slurm", env=slurm())
    require_equal(done, tmp_path, lab_sweep[0])
    assert done.stderr == ""  # sacct, which this Slurm has not, complains at each poll
    assert list(Path(tmp_path, ".submitit").glob("*_0/*.pkl"))  # it did not run elsewhere


def test_ray(lab_sweep, tmp_path):
    if not RAY.exists():
        pytest.skip("there is no Ray: `make ray` installs it")
    require_equal(sweep(tmp_path, "ray", RAY), tmp_path, lab_sweep[0])
