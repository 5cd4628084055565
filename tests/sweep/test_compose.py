import pickle

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from quantlab.sweep.compose import Composer
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def loader():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def master(loader):
    assert loader is GlobalHydra.instance().config_loader()
    config = compose("config", ["hydra.mode=MULTIRUN"], return_hydra_config=True)
    _ = config.hydra.sweep.dir  # a sweep settles its time before its runs are composed
    return config


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["dist=hidden", "mode=asym", "n_bits=4"],
        ["n_bits=4", "dist=hidden", "seed=7", "rank.k=3", "mode=asym", "mode.zero_point=clip"],
        ["dist=file/npy", "dist.path='a, b'", "threads=1"],
        ["rank={k:2}", "dist.n=[1,2]", "metrics.rel_threshold=${seed}"],
        ["+note=a/b", "~experiment", "seed=1"],
        ["++seed=3", "n_bits=null", "+rank.other=1"],
        ["experiment=lab", "n_bits=3"],
        ["rank.k=5", "++rank.k=6"],
        ["++rank.k=6", "rank.k=5"],
        ["rank.k=5", "+rank.other=${rank.k}", "rank.k=7", "dist=hidden"],
        ["+note=${oc.env:HOME}", "seed=${hydra:job.name}"],
        ["hydra.sweep.subdir=x", "hydra.sweeper.position=3", "seed=1"],
    ],
)
def test_configs_are_those_that_hydra_composes(loader, master, overrides):
    composer = Composer(loader)
    for seed in ("seed=1", "seed=2"):  # the second is changed in a copy
        asked = [*overrides, seed]
        expected = loader.load_sweep_config(master, asked)
        found = composer.load_sweep_config(master, asked)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
        assert found.hydra.sweep.dir == expected.hydra.sweep.dir
        assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)


def test_a_config_that_is_changed_changes_no_other(loader, master):
    composer = Composer(loader)
    first = composer.load_sweep_config(master, ["seed=1"])
    first.rank.k = 99
    assert composer.load_sweep_config(master, ["seed=1"]).rank.k == 10


def test_hydra_says_what_is_wrong(loader, master):
    for wrong in (["bits=4"], ["mode=foo"], ["mode=sym", "mode.zero_point=clip"]):
        with pytest.raises(HydraException) as expected:
            loader.load_sweep_config(master, wrong)
        with pytest.raises(HydraException) as found:
            Composer(loader).load_sweep_config(master, wrong)
        assert str(found.value) == str(expected.value)


def test_groups_alone_are_composed(loader, master, monkeypatch):
    calls = []
    compose_one = type(loader).load_sweep_config

    def counted(self, config, overrides):
        calls.append(overrides)
        return compose_one(self, config, overrides)

    monkeypatch.setattr(type(loader), "load_sweep_config", counted)
    composer = pickle.loads(pickle.dumps(Composer(loader)))  # as it reaches a worker
    for mode in ("sym", "asym"):
        for bits in range(2, 17):
            composer.load_sweep_config(master, [f"mode={mode}", f"n_bits={bits}"])
    assert calls == [["mode=sym"], ["mode=asym"]]


def test_it_is_the_loader_in_everything_else(loader):
    composer = Composer(loader)
    assert {"asym", "nf4", "sym"} < set(composer.get_group_options("mode"))
    assert OverridesParser.create(composer).parse_overrides(["mode=glob(*)"])[0].sweep_iterator()
    with pytest.raises(AttributeError):
        _ = composer.nothing
