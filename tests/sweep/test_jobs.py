import pickle

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from quantlab.records import record
from quantlab.sweep.jobs import Composer, combine
from tests.conftest import ROOT, run
from tests.sources.samples import write_gguf

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.slow
def test_a_wrong_combination_is_refused_before_the_first_run(tmp_path):
    for modes in ("asym,sym", "sym,asym"):
        sweep = [
            "-m",
            f"mode={modes}",
            "mode.zero_point=clip,widen",
            f"hydra.sweep.dir={tmp_path}/s",
        ]
        done = run(*sweep)
        assert done.returncode == 1
        assert "mode.zero_point=clip sets an unknown key" in done.stderr
        assert not (tmp_path / "s").exists()
    for value, line in (
        ("hydra/launcher=none", "hydra/launcher=none does not exist: choose one of basic"),
        ("+note=nan,1", "a setting cannot be recorded as JSON (Out of range"),
        ("+note={1:a,b:c}", "a setting cannot be recorded as JSON ('<' not supported"),
        ("threads=1,2", "threads=1,2: threads changes no figure, give it one value"),
        ("n_bits=range(5,2)", "n_bits=range(5,2) matches nothing: name at least one value"),
    ):
        done = run("-m", value, f"hydra.sweep.dir={tmp_path}/s")
        assert done.returncode == 1
        assert line in done.stderr
        assert not (tmp_path / "s").exists()
    endless = run("-m", "n_bits=interval(2,8)")
    assert "n_bits=interval(2,8): an interval has no end" in endless.stderr


def test_files_stand_beside_other_formats_of_any_width(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    original = write_gguf(tmp_path / "original.gguf", w=(x, None))
    paths = [write_gguf(tmp_path / f"{name}.gguf", w=(x, None)) for name in "ab"]
    done = run(
        "-m", "dist=file/gguf", f"dist.path={original}", "mode=sym,file/gguf", "n_bits=4,8",
        f"mode.path={','.join(paths)}", f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode == 0
    assert [each.partition("mode=")[2] for each in jobs(tmp_path / "s")] == [
        *(f"sym n_bits={n}" for n in (4, 8)),
        *(f"file/gguf mode.path={path}" for path in paths),
    ]


def test_a_setting_of_modes_that_are_swept_waits_for_them(tmp_path):
    done = run(
        "-m", "mode=sym,ggml/q4_0", "mode.imatrix=nowhere.gguf", f"hydra.sweep.dir={tmp_path}/s"
    )
    assert done.returncode == 1
    assert "nowhere.gguf: no such file" in done.stderr


def test_the_last_of_two_values_typed_for_a_key_counts():
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=3", "a=4,5,4", "~c"])
    typed = [[*run.values()] for run in combine(parsed, loader=None)]
    assert typed == [["a=4", "b=3", "~c"], ["a=5", "b=3", "~c"]]


def jobs(directory):
    """The overrides of each run, without the position."""
    records = sorted(map(record.read, directory.glob("*/record.json")), key=lambda one: one["job"])
    return [" ".join(one["overrides"]) for one in records]


@pytest.mark.slow
def test_what_contradicts_itself_is_left_out_and_counted(tmp_path):
    sweep = ["dist=hidden", "mode=sym,nf4,mx/fp4", "n_bits=4,8", "block=tensor,group"]
    done = run("-m", *sweep, f"hydra.sweep.dir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "left out: 5 of 12 runs, mode=nf4 n_bits=8 block=tensor: n_bits must be 4, the width of "
        "nf4, got 8: leave it out\n7/7 runs, 0 failed\n"
    )


def test_forced_settings_are_settings(tmp_path):
    sweep = ["dist=hidden", "mode=nf4,sym", "++n_bits=4,8", f"hydra.sweep.dir={tmp_path}"]
    done = run("-m", *sweep)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("left out: 1 of 4 runs, mode=nf4 ++n_bits=8: n_bits must be 4")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["mode=nf4", "n_bits=8"], "n_bits must be 4, the width of nf4, got 8: leave it out"),
        (["mode=log", "n_bits=2"], "n_bits must be from 3 to 16 with mode=log, got 2"),
        (["mode=mx/fp4", "block=group"], "block=group does not go with a mode that fixes blocks"),
        (["mode=log", "range=mse"], "range=mse does not go with mode=log: leave it out"),
        (["transform=hadamard", "transform.size=48"], "transform.size must be a power of two"),
        (["block=group", "block.size=0"], "block.size must be a whole number of 1 or more, got 0"),
        (["block.scale=int8"], "block.scale must be one of float32, float16, bfloat16, got 'int8'"),
        (
            ["range=percentile", "range.p=101"],
            "range.p must be a number above 50, up to 100",
        ),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_format_that_cannot_be_is_refused_in_a_sentence(tmp_path, flags, overrides, said):
    done = run(*flags, "dist=hidden", *overrides, f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 1
    assert done.stderr.startswith(f"quantlab: {said}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_settings_that_an_option_does_not_use_make_no_second_run(tmp_path):
    sweep = ["dist=hidden", "block=tensor,group", "block.size=32,64", "range.p=90,99"]
    done = run("-m", *sweep, f"hydra.sweep.dir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert jobs(tmp_path) == [
        f"dist=hidden block={block} block.size={size} range.p=90"
        for block, size in (("tensor", 32), ("group", 32), ("group", 64))
    ]


def test_inputs_of_transforms_make_no_second_run_without_one(tmp_path):
    sweep = ["dist=hidden", "transform=none", "transform.inputs=a,b"]
    done = run("-m", *sweep, f"hydra.sweep.dir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(jobs(tmp_path)) == 1


@pytest.mark.slow
def test_a_pattern_matches_nested_options(tmp_path):
    done = run("-m", "dist=hidden", "mode=glob(mx/fp*)", f"hydra.sweep.dir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert [each.partition("mode=")[2] for each in jobs(tmp_path)] == [
        "mx/fp4", "mx/fp6_e2m3", "mx/fp6_e3m2", "mx/fp8_e4m3", "mx/fp8_e5m2",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_pattern_leaves_out_options_that_need_a_setting(tmp_path):
    done = run("-m", "dist=hidden", "mode=glob(*)", f"hydra.sweep.dir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    modes = [each.partition("mode=")[2] for each in jobs(tmp_path)]
    assert {"sym", "nf4", "log"} < {*modes}
    assert not {"noise", "plan"} & {*modes}
    alone = run("-m", "mode=glob(noi*)", f"hydra.sweep.dir={tmp_path}/s")
    assert "mode=glob(noi*) matches nothing" in alone.stderr


@pytest.mark.slow
def test_noise_is_swept_by_its_size_alone(tmp_path):
    noise = ["mode=noise", "mode.sqnr_db=30,40"]
    done = run("-m", "dist=hidden", *noise, f"hydra.sweep.dir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    contents = [record.read(path) for path in tmp_path.glob("*/record.json")]
    assert sorted(content["config"]["mode"]["sqnr_db"] for content in contents) == [30, 40]
    for content in contents:
        (figures,) = content["tensors"].values()
        decibels = content["config"]["mode"]["sqnr_db"]
        assert figures["measured"]["sqnr_db"] == pytest.approx(decibels, abs=1)
    for asked, sentence in (
        (["mode=noise"], "mode.sqnr_db is not set: add mode.sqnr_db=..."),
        (["mode=noise", "mode.sqnr_db=loud"], "mode.sqnr_db must be a number of dB, got 'loud'"),
        (["mode=noise", "mode.sqnr_db=30", "n_bits=4"], "n_bits=4 does not go with mode=noise"),
    ):
        refused = run("-m", *asked, f"hydra.sweep.dir={tmp_path}/s")
        assert refused.returncode == 1
        assert sentence in refused.stderr


@pytest.mark.slow
def test_products_are_done_one_after_the_other_and_what_is_asked_twice_once(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "union.yaml").write_text(
        "# @package _global_\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: [{mode: 'sym,asym', n_bits: '8,4'}, "
        "{mode: log}, {mode: sym}]}}\n"
    )
    sweep = ["experiment=union", "dist=hidden", f"hydra.sweep.dir={tmp_path}/s"]
    done = run("--config-dir", tmp_path, *sweep)
    assert (done.returncode, done.stderr) == (0, "")
    assert jobs(tmp_path / "s") == [
        "mode=sym n_bits=8 experiment=union dist=hidden",
        "mode=sym n_bits=4 experiment=union dist=hidden",
        "mode=asym n_bits=8 experiment=union dist=hidden",
        "mode=asym n_bits=4 experiment=union dist=hidden",
        "mode=log experiment=union dist=hidden",
    ]
    again = run("--config-dir", tmp_path, *sweep)
    assert again.stdout.startswith("resuming: 5 complete; 0 to do")


@pytest.mark.slow
def test_a_changed_file_is_measured_again_and_threads_change_nothing(tmp_path):
    path = tmp_path / "w.npy"
    sweep = ["-m", "dist=file/npy", f"dist.path={path}", f"hydra.sweep.dir={tmp_path}/s"]
    np.save(path, np.float32([1, 2]))
    assert run(*sweep).returncode == 0
    assert "1 complete; 0 to do" in run(*sweep).stdout
    np.save(path, np.float32([1, 3]))
    assert "1 changed; 1 to do" in run(*sweep).stdout
    (one,) = (tmp_path / "s").glob("*/record.json")
    assert record.read(one)["tensors"]["w"]["range"] == [1, 3]
    assert "1 complete; 0 to do" in run(*sweep, "threads=1").stdout
    np.savez(tmp_path / "w.npz", x=np.float32([1, 3]))
    npz = ["-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", f"hydra.sweep.dir={tmp_path}/npz"]
    assert run(*npz).returncode == 0
    np.savez(tmp_path / "w.npz", y=np.float32([1, 3]))  # the same bytes under another name
    assert "1 changed; 1 to do" in run(*npz).stdout
    np.save(path, np.float32([1, 3]).view(np.float16))  # the same bytes as other values
    assert "1 changed; 1 to do" in run(*sweep).stdout
    np.save(path, np.float32([1, 3]))
    assert run(*sweep).returncode == 0
    config = (ROOT / "conf" / "config.yaml").read_text()
    (tmp_path / "other.yaml").write_text(config.replace("seed: 42", "seed: 1"))
    other = run(*sweep, "--config-name", "other", "--config-dir", str(tmp_path))
    assert "1 changed; 1 to do" in other.stdout


def test_directories_named_by_number_are_never_mistaken_for_complete(tmp_path):
    sweep = [
        "-m",
        "n_bits=4,8",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    for _ in range(2):
        done = run(*sweep)
        assert done.returncode == 0, done.stderr
        assert "2/2 runs, 0 failed" in done.stdout


def test_settings_of_the_environment_are_resumed(tmp_path):
    sweep = ["-m", "dist=hidden", "+note=${oc.env:NOTE}", "+hydra.job.env_set.NOTE=7"]
    for said in ("1/1 runs, 0 failed", "1 complete; 0 to do"):
        done = run(*sweep, f"hydra.sweep.dir={tmp_path}/s")
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_one_question_asked_in_two_ways_is_reported_and_costs_nothing(tmp_path):
    sweep = ["-m", "dist=verb_probs", f"hydra.sweep.dir={tmp_path}"]
    assert run(*sweep, "n_bits=8").returncode == 0
    before = (tmp_path / "results.json").read_bytes()
    done = run(*sweep)  # 8 is the default
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("quantlab: two runs are of dist=verb_probs, mode=symmetric: ")
    assert line.endswith(f"remove one, then quantlab aggregate {tmp_path}")
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize("value", ["maybe", "no", "1", "null"])
def test_resume_is_true_or_false(tmp_path, value):
    done = run("-m", "n_bits=4,8", f"resume={value}", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 1
    assert done.stderr.startswith("quantlab: resume must be true or false, got ")
    assert not (tmp_path / "s").exists()


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
