"""The lab's sweep through launchers, for real: the aggregate is the basic launcher's.

Those of submitit and Ray are in ``test_installed.py``.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, require_same, run_python
from tests.models.samples import two_layers

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


def sweep(directory, launcher, **how):
    asked = ["experiment=lab", f"hydra/launcher={launcher}", f"hydra.sweep.dir={directory}"]
    return run_python("run.py", *asked, **how)


def require_equal(done, directory, reference):
    assert done.returncode == 0, done.stderr
    require_same(directory, reference)
    assert "6/6 runs, 0 failed" in done.stdout


@pytest.mark.slow
def test_joblib(lab_sweep, tmp_path):
    done = sweep(tmp_path, "joblib")
    require_equal(done, tmp_path, lab_sweep[0])
    assert done.stderr == ""


@pytest.mark.slow
def test_slurm(lab_sweep, tmp_path):
    if not slurm_answers():  # it takes root and Debian's packages, which CI has
        pytest.skip("there is no Slurm: `make slurm` starts one where it can be installed")
    done = sweep(tmp_path, "submitit_slurm", env=slurm())
    require_equal(done, tmp_path, lab_sweep[0])
    assert done.stderr == ""  # sacct, which this Slurm has not, complains at each poll
    assert list(Path(tmp_path, ".submitit").glob("*_0/*.pkl"))  # it did not run elsewhere


@pytest.mark.slow
def test_answers_are_the_same_bytes_whatever_does_the_work(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    asked = [
        "-m", "dist=file/onnx", f"dist.path={path}", "mode=sym,nf4", "n_bits=4", "model=onnx",
        f"model.inputs={inputs}", "model.each=true", "model.batch=4",
    ]  # fmt: skip
    found = []
    for name, how in (("one", ["threads=1"]), ("two", ["threads=2", "hydra/launcher=joblib"])):
        done = run_python("run.py", *asked, *how, f"hydra.sweep.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
        found.append((tmp_path / name / "answers.csv").read_bytes())
    assert found[0] == found[1]
