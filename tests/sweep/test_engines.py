"""The lab's sweep through launchers, for real: the aggregate is the basic launcher's.

Those of submitit and Ray are in ``test_installed.py``.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, require_same, run, run_python
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


@contextmanager
def two_nodes():
    """Start a Ray cluster of two nodes on this machine, each of one core; yield its environment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ray")  # paths of sockets are short
    env = os.environ | {"RAY_TMPDIR": folder, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    start = [RAY.parent / "ray", "start", "--num-cpus=1", f"--temp-dir={folder}"]
    head = ["--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false"]
    try:
        for how in (head, [f"--address={address}"]):
            subprocess.run([*start, *how], env=env, check=True, capture_output=True)
        yield env
    finally:
        for raylet in marked(folder):
            os.kill(raylet, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def marked(folder, name=b""):
    """List the processes of a name that have a folder in their environment, or log into it."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            about = (path / "environ").read_bytes() + bytes((path / "fd/1").readlink())
            if os.fsencode(folder) in about and name in (path / "cmdline").read_bytes():
                processes.append(int(path.name))
        except OSError:
            continue
    return processes


def parents(processes):
    """Yield the parents of those processes that have not ended."""
    for process in processes:
        with suppress(OSError):
            yield Path(f"/proc/{process}/stat").read_text().split()[3]


@pytest.mark.slow
def test_a_worker_killed_on_one_of_two_nodes_costs_its_run_alone(tmp_path):
    if not RAY.exists():
        pytest.skip("there is no Ray: `make ray` installs it")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "w.npz", **{f"w{n}": rng.standard_normal((99, 99)) for n in range(12)})
    sweep = ["-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", "mode=sym,asym"]
    run(*sweep, f"hydra.sweep.dir={tmp_path}/whole")
    parts = ["dist.parts=6", "dist.part=range(6)", "hydra/launcher=ray"]
    init = "hydra.launcher.ray.init"  # as the docs have it
    parts += [f"{init}.address=auto", f"+{init}.object_store_memory=null"]
    with two_nodes() as env:
        command = [RAY, "run.py", *sweep, *parts, f"hydra.sweep.dir={tmp_path}/parts"]
        how = {"cwd": ROOT, "env": env, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **how) as process:
            workers, nodes = [], set()
            while process.poll() is None and not (workers and len(nodes) == 2):
                time.sleep(0.02)
                if list(tmp_path.glob("parts/*/record.json")):
                    workers = marked(env["RAY_TMPDIR"], b"ray::_run_job")
                    nodes.update(parents(workers))
            os.kill(workers[0], signal.SIGKILL)
            output = process.communicate()[0]
    assert (process.returncode, len(nodes)) == (0, 2)
    assert "12/12 runs, 0 failed" in output
    for name in ("results.json", "results.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
