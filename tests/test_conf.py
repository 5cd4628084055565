import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import OmegaConf

from quantlab.conf import CONF, load_option, needs_setting, own_settings
from quantlab.formats.format import Codec
from quantlab.formats.ggml import NUMBERS
from quantlab.sweep import job


def options(group):
    paths = (CONF / group).rglob("*.yaml")
    names = (path.relative_to(CONF / group).with_suffix("").as_posix() for path in paths)
    names = [name for name in names if not name.startswith(("file/", "ggml/"))]
    names = [name for name in names if not needs_setting(group, name)]
    return sorted(name for name in names if group != "mode" or not is_codec(name))


def is_codec(name):
    """Test whether a mode stores whole tensors: those of the lab have rows that few of them fit."""
    config = load_option("mode", name)
    target = get_object(config.get("mode", config)["_target_"])
    return isinstance(target, type) and issubclass(target, Codec)


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


def test_options_that_need_a_setting_are_known():
    needy = [name for name in ("noise", "plan", "sym", "mx/fp4") if needs_setting("mode", name)]
    assert needy == ["noise", "plan"]
    assert needs_setting("dist", "file/gguf")
    assert not needs_setting("dist", "of one's own")


def test_every_type_of_ggml_has_a_mode_of_its_width():
    paths = (CONF / "mode" / "ggml").glob("*.yaml")
    modes = {path.stem: OmegaConf.load(path) for path in paths}
    assert modes.keys() == NUMBERS.keys()
    for name, config in modes.items():
        assert config.mode.type == name
        assert str(config.n_bits) == next(each for each in name if each.isdigit())


@pytest.mark.parametrize("name", ["q4_0", "iq2_xs"])
def test_a_type_of_ggml_meets_a_matrix(name, tmp_path):
    pytest.importorskip("xllamacpp")
    np.save(tmp_path / "x.npy", np.eye(4, 256, dtype=np.float32))
    asked = ("dist=file/npy", f"dist.path={tmp_path / 'x.npy'}", f"mode=ggml/{name}")
    if name == "iq2_xs":
        with pytest.raises(InstantiationException, match=r"add mode\.imatrix=FILE"):
            built(*asked)
    else:
        assert built(*asked).run().tensors["x"]["stored_dtype"] == name


@pytest.mark.parametrize("covered", options("range"))
@pytest.mark.parametrize("block", options("block"))
def test_every_block_meets_every_range(block, covered):
    form = built("mode=asym", "n_bits=4", f"block={block}", f"range={covered}").form
    assert form.columns() == {
        "block": block,
        "block_size": 32 if block == "group" else None,
        "scale_dtype": "float32",
        "range": covered,
    }


@pytest.mark.parametrize("group", ["block", "range"])
def test_all_options_of_a_group_have_the_same_keys(group):
    # Hydra holds block.size=32 against the default option before it takes the one chosen.
    keys = {frozenset(load_option(group, path.stem)) for path in (CONF / group).glob("*.yaml")}
    assert len(keys) == 1


class OwnRange:
    name = "own"

    def __init__(self, p, q=3):
        self.p, self.q = p, q


def test_an_option_of_one_s_own_takes_the_shared_settings_that_it_has():
    shared = load_option("range", "absmax") | {"_target_": f"{__name__}.OwnRange"}
    assert own_settings("range", shared | {"q": 4}) == {
        "_target_": f"{__name__}.OwnRange",
        "p": 99.9,
        "q": 4,
    }


def test_a_setting_that_an_option_takes_and_has_not_is_asked_for():
    with pytest.raises(ValueError, match=r"^range=calibrated .*: add range\.path=\.\.\.$"):
        own_settings("range", load_option("range", "calibrated"))
    assert needs_setting("range", "calibrated")


def test_every_file_can_be_divided():
    for path in (CONF / "dist" / "file").glob("*.yaml"):
        dist = load_option("dist", f"file/{path.stem}")["dist"]
        assert (dist["parts"], dist["part"]) == (1, None), path
