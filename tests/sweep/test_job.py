import subprocess

import pytest
from hydra import compose, initialize_config_dir

from quantlab.conf import CONF
from quantlab.sweep import job
from tests.conftest import RUN, run

pytestmark = pytest.mark.usefixtures("undrawn")


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


@pytest.mark.slow
def test_two_sweeps_that_start_together_do_not_meet(tmp_path):
    command = [*RUN, "-m", "dist=tense_logits"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list(tmp_path.glob("multirun/*/results.json"))) == 2


def test_a_metric_that_does_not_name_its_place_is_refused(tmp_path):
    (tmp_path / "metric").mkdir()
    (tmp_path / "metric" / "zeros.yaml").write_text("_target_: numpy.count_nonzero\n")
    done = run("--config-dir", str(tmp_path), "dist=hidden", "metric=[zeros]")
    assert done.returncode == 1
    assert "begin it with '# @package metrics.extra.NAME'" in done.stderr


def settings_of(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return job.settings(compose("config", overrides=[*overrides], return_hydra_config=True))


def test_an_importance_judges_nearest_beside_a_rounding_with_inputs():
    config = settings_of("rounding.inputs=x.npz", "metrics.imatrix=y.gguf")
    assert config["metrics"]["inputs"] is None
    assert settings_of("rounding.inputs=x.npz")["metrics"]["inputs"] == "x.npz"


class OwnRounding:
    """A rounding that takes no setting."""

    name = "own"


def test_a_rounding_of_one_s_own_takes_the_settings_that_it_has():
    config = settings_of("rounding=gptq", "rounding.inputs=x.npz", "dist=hidden")
    config["rounding"] |= {"_target_": "tests.sweep.test_job.OwnRounding", "inputs": None}
    assert job.build(config).form.rounding.name == "own"
