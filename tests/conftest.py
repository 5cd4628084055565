import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from quantlab.formats.format import Format, as_element
from quantlab.report import aggregate as aggregation
from quantlab.report.bar import ReportSettings
from quantlab.report.terminal import sweep_summary
from quantlab.report.texts import Texts
from quantlab.sources import hub as hubs
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure as measure_tensor
from tests.hub import serve, set_endpoint
from tests.in_process import run_app, run_command

ROOT = Path(__file__).parents[1]
collect_ignore_glob = ["data/*"]
RUN = [sys.executable, str(ROOT / "run.py")]
SWEEP = ["-m", "dist=hidden,verb_probs", "mode=sym,asym", "n_bits=range(2,9)"]
ALL = 28

# A busy machine is no failing law, and CI tries the same examples every time.
settings.register_profile("laws", deadline=None, derandomize="CI" in os.environ, max_examples=50)
settings.register_profile("quick", settings.get_profile("laws"), max_examples=30)  # make test
settings.load_profile("laws")


def measure(x, how, name="x", **settings):
    """Measure an array under a name, by a format or by an element grid of one block."""
    form = how if isinstance(how, Format) else Format(as_element(how))
    return measure_tensor(Tensor(name, x), form, **settings)


def aggregate(directory, **bar):
    """Aggregate a sweep with the bars of its runs, or with other criteria."""
    return aggregation.aggregate(directory, ReportSettings(bar, Texts("en")))


def printed(done):
    """Return what the terminal says of a sweep."""
    return sweep_summary(done.findings, done.files, Texts("en"))


def run_python(*arguments, cwd=ROOT, python=sys.executable, env=None):
    """Run Python in a process of its own and return it finished, output captured as text."""
    command = [python, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def run(*arguments, cwd=ROOT):
    """Run run.py; in a process of its own if it starts others."""
    if any("hydra/launcher=" in str(argument) for argument in arguments):
        return run_python(RUN[1], *arguments, cwd=cwd)
    return run_app(*arguments, cwd=cwd)


def run_quantlab(*arguments, cwd=ROOT):
    """Run ``python -m quantlab``."""
    return run_command(*arguments, cwd=cwd)


def run_without_privileges(*arguments, cwd=ROOT):
    """Run Python as who may read and write no more than the modes of files allow."""
    command = [sys.executable, *map(str, arguments)]
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may read and write everything")
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all", *command]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def start(*arguments):
    """Start run.py in a process group of its own, to be killed or interrupted."""
    return subprocess.Popen(
        [*RUN, *arguments],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_records(directory):
    """Wait until a sweep has recorded a run."""
    deadline = time.monotonic() + 180  # Ray starts for a minute on a busy machine
    while not list(directory.glob("*/record.json")):
        assert time.monotonic() < deadline, "no run was ever recorded"
        time.sleep(0.01)


def require_same(directory, reference):
    """Require the aggregates of two sweeps to be the same bytes."""
    for name in ("results.json", "results.csv", "error_histogram.png"):
        assert (directory / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub, where huggingface_hub finds it, with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    monkeypatch.setattr(hubs, "_located", {})
    with serve() as (hub, address):
        set_endpoint(monkeypatch, address)
        yield hub


def _draw_nothing(monkeypatch):
    def savefig(_, file, format="png", **__):
        file.write(b'<svg xmlns="http://www.w3.org/2000/svg"/>' if format == "svg" else b"PNG")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    monkeypatch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda _: None)
    monkeypatch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)


@pytest.fixture
def undrawn(monkeypatch):
    """Save pictures without drawing them, which takes most of a sweep."""
    _draw_nothing(monkeypatch)


def _swept_once(tmp_path_factory, name, *arguments):
    """Run a sweep once for all test processes; return its directory, to read only, and output."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    directory, output = shared / name, shared / f"{name}.txt"
    with FileLock(shared / f"{name}.lock"):
        if not output.exists():
            done = run(*arguments, f"hydra.sweep.dir={directory}")
            assert done.returncode == 0, done.stderr
            output.write_text(done.stdout)
    return directory, output.read_text()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The directory of a sweep that was left alone."""
    return _swept_once(tmp_path_factory, "undisturbed", *SWEEP)[0]


@pytest.fixture(scope="session")
def lab_sweep(tmp_path_factory):
    """The directory of the lab's sweep, and what it printed."""
    return _swept_once(tmp_path_factory, "lab", "experiment=lab")


@pytest.fixture(scope="session")
def remedies_sweep(tmp_path_factory):
    """The directory of the remedies' sweep, whose pictures are empty, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        _draw_nothing(patch)
        return _swept_once(tmp_path_factory, "remedies", "experiment=remedies")
