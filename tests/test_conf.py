from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from quantlab.sweep import job

CONF = Path(__file__).parents[1] / "conf"


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("mode", options("mode"))
@pytest.mark.parametrize("dist", options("dist"))
def test_every_distribution_meets_every_mode(dist, mode):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"dist={dist}", f"mode={mode}", "n_bits=5"])
    for result in job.build(cfg).run().tensors.values():
        assert result["measured"]["max_err"] > 0
        assert result["predicted"]["words"]
