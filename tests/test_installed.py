"""The command ``quantlab`` of a wheel, in an environment and a directory outside any clone."""

import json
import math
import os

import pytest

from tests.conftest import ROOT, run_python
from tests.sweep.test_engines import RAY, require_equal, slurm, slurm_answers

WHEEL = ROOT / ".venv" / "wheel" / "bin"
DIST = """
from dataclasses import dataclass

import numpy as np

from quantlab.sources.source import Source
from quantlab.sources.tensor import Tensor


@dataclass(frozen=True)
class Laplace(Source):
    seed: int
    expected: None = None

    def tensors(self):
        yield Tensor("laplace", np.random.default_rng(self.seed).laplace(size=64))
"""
MODE = """
from dataclasses import dataclass

import numpy as np

from quantlab.formats.uniform import Params


@dataclass(frozen=True)
class PowerOfTwo:
    n_bits: int

    def choose(self, lo, hi):
        step = max(-lo, hi) / (2 ** (self.n_bits - 1) - 1)
        return Params(np.float32(2 ** np.ceil(np.log2(step))), 0)
"""

# `make test-all`, and so CI, builds it; a bare `pytest` may run offline.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not WHEEL.exists(), reason=f"{WHEEL} is missing: make .venv/wheel builds it"
    ),
]


def quantlab(*arguments, cwd, **how):
    """Run the installed command as a person would, away from the clone."""
    how.setdefault("env", {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ})
    return run_python("-I", WHEEL / "quantlab", *arguments, cwd=cwd, python=WHEEL / "python", **how)


@pytest.fixture
def own(tmp_path):
    """A directory with a distribution and a mode of one's own."""
    for name, code in {"own_dist.py": DIST, "own_mode.py": MODE}.items():
        (tmp_path / "own" / name.removeprefix("own_").removesuffix(".py")).mkdir(parents=True)
        (tmp_path / "own" / name).write_text(code)
    (tmp_path / "own/dist/laplace.yaml").write_text("_target_: own_dist.Laplace\nseed: ${seed}\n")
    (tmp_path / "own/mode/two.yaml").write_text("_target_: own_mode.PowerOfTwo\n")
    return tmp_path


def test_the_lab_s_figures_come_out(tmp_path, lab_sweep):
    done = quantlab("run", "-m", "dist=glob(*)", "mode=sym,asym", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (directory,) = tmp_path.glob("multirun/*")
    fresh, kept = (
        json.loads((each / "results.json").read_bytes()) for each in (directory, lab_sweep[0])
    )
    assert fresh == kept
    command = json.loads((directory / "manifest.json").read_bytes())["command"]
    assert command == "quantlab run -m 'dist=glob(*)' mode=sym,asym"
    done = quantlab("verify", directory, cwd=tmp_path)
    assert done.stdout == f"{directory} matches its manifest\n"
    runs = [path.parent for path in directory.glob("hidden-*/record.json")]
    assert all(quantlab("reproduce", each, cwd=tmp_path).returncode == 0 for each in runs)


@pytest.mark.parametrize("launcher", ["quantlab", "joblib"])
def test_classes_beside_one_s_own_yaml_work(own, launcher):
    engine = ["hydra/launcher=joblib"] if launcher == "joblib" else []
    sweep = ["dist=laplace", "mode=two,sym", "hydra.sweep.dir=mine", *engine]
    done = quantlab("run", "--config-dir", "own", "-m", *sweep, cwd=own)
    assert (done.returncode, done.stderr) == (0, "")
    nested = json.loads((own / "mine" / "results.json").read_bytes())
    scales = {mode: figures["scale"] for mode, figures in nested["laplace"].items()}
    assert scales["symmetric"] <= scales["two"]
    assert math.frexp(scales["two"])[0] == 0.5  # a power of two
    again = quantlab("run", "--config-dir", "own", "-m", *sweep, cwd=own)
    assert again.stdout.startswith("resuming: 2 complete; 0 to do")
    for path in own.glob("mine/*/record.json"):
        done = quantlab("reproduce", path.parent, cwd=own)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers(lab_sweep, tmp_path, launcher):
    sweep = ["experiment=lab", f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}/lab"]
    done = quantlab("run", *sweep, cwd=tmp_path)
    require_equal(done, tmp_path / "lab", lab_sweep[0])
    assert done.stderr == ""


def test_slurm(lab_sweep, tmp_path):
    if not slurm_answers():  # it takes root and Debian's packages, which CI has
        pytest.skip("there is no Slurm: `make slurm` starts one where it can be installed")
    sweep = ["experiment=lab", "hydra/launcher=submitit_slurm", f"hydra.sweep.dir={tmp_path}/lab"]
    done = quantlab("run", *sweep, cwd=tmp_path, env=slurm())
    require_equal(done, tmp_path / "lab", lab_sweep[0])


def test_ray(lab_sweep, tmp_path):
    if not RAY.exists():  # a download of 70 MB, which CI makes
        pytest.skip("there is no Ray: `make ray` installs it")
    (wheel,) = (ROOT / ".venv" / "dist").glob("*.whl")
    installed = tmp_path / "installed"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", installed, wheel]
    assert run_python(*install, python=RAY).returncode == 0
    env = os.environ | {"PYTHONPATH": str(installed)}
    code = "import quantlab; print(quantlab.__file__)"
    assert run_python("-c", code, python=RAY, cwd=tmp_path, env=env).stdout.startswith(
        str(installed)
    )
    sweep = ["experiment=lab", "hydra/launcher=ray", f"hydra.sweep.dir={tmp_path}/lab"]
    done = run_python("-m", "quantlab", "run", *sweep, python=RAY, cwd=tmp_path, env=env)
    require_equal(done, tmp_path / "lab", lab_sweep[0])


def test_a_directory_that_cannot_be_written_is_one_sentence():
    for sweep in ([], ["-m"]):
        done = quantlab("run", *sweep, "dist=hidden", cwd="/proc")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "multirun" in done.stderr
        assert "hydra.sweep.dir=" in done.stderr


def test_the_help_has_an_example_of_every_command(tmp_path):
    text = quantlab("--help", cwd=tmp_path).stdout
    for command in ("run", "aggregate", "report", "verify", "reproduce", "tensors"):
        assert f"  quantlab {command} " in text
    assert "quantlab run dist=hidden" in quantlab("run", "--help", cwd=tmp_path).stdout


def test_what_is_missing_is_named_with_what_installs_it(tmp_path):
    done = quantlab("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for package in ("safetensors", "gguf", "numba", "huggingface-hub"):
        assert f"missing: pip install '{package}" in done.stdout
