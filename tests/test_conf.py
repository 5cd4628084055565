from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from quantlab.sweep import job

CONF = Path(__file__).parents[1] / "conf"


def options(group):
    paths = (CONF / group).rglob("*.yaml")
    names = (path.relative_to(CONF / group).with_suffix("").as_posix() for path in paths)
    return sorted(name for name in names if not name.startswith(("file/", "ggml/")))


def built(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return job.build(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("mode", options("mode"))
@pytest.mark.parametrize("dist", options("dist"))
def test_every_distribution_meets_every_mode(dist, mode):
    for result in built(f"dist={dist}", f"mode={mode}").run().tensors.values():
        assert result["measured"]["max_err"] > 0
        assert result["predicted"]["words"]
        assert abs(result["predicted"]["sqnr_db"] - result["measured"]["sqnr_db"]) < 25
        assert result["storage"]["bits_per_value"] > result["storage"]["bits_above_bound"]


@pytest.mark.parametrize(
    "path", sorted((CONF / "mode" / "ggml").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_type_of_ggml_meets_a_matrix(path, tmp_path):
    pytest.importorskip("xllamacpp")
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    asked = ("dist=file/npy", f"dist.path={tmp_path / 'x.npy'}", f"mode=ggml/{path.stem}")
    if path.stem in ("iq1_s", "iq2_xs", "iq2_xxs"):
        with pytest.raises(InstantiationException, match=r"add mode\.imatrix=FILE"):
            built(*asked)
        return
    entry = built(*asked).run().tensors["x"]
    assert entry["stored_dtype"] == path.stem
    assert entry["measured"]["sqnr_db"] > 1


@pytest.mark.parametrize("covered", options("range"))
@pytest.mark.parametrize("block", options("block"))
def test_every_block_meets_every_range(block, covered):
    form = built("mode=asym", "n_bits=4", f"block={block}", f"range={covered}").form
    assert form.describe() == {
        "block": block,
        "block_size": 32 if block == "group" else None,
        "scale_dtype": "float32",
        "range": covered,
    }


@pytest.mark.parametrize("group", ["block", "range"])
def test_all_options_of_a_group_have_the_same_keys(group):
    # Hydra holds block.size=32 against the default option before it takes the one chosen.
    keys = {tuple(OmegaConf.load(path)) for path in (CONF / group).glob("*.yaml")}
    assert len(keys) == 1
