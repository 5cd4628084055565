"""Sweeps that an older quantlab left, taken through everything that is done with a sweep.

Those of ``data/schema3`` were made before the modules moved: the lab's tensors, a file, and a
distribution and a mode from somebody's own yaml.
"""

import importlib
import json
import re
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import quantlab
from quantlab.records import record
from quantlab.records.older import (
    CURRENT,
    ORIGINAL,
    common_figures,
    oldest_config,
    with_current_names,
)
from quantlab.sweep.job import build, settings
from tests.conftest import ROOT, run, run_quantlab

OLD = Path(__file__).parents[1] / "data" / "schema3"
SWEEPS = {
    "lab": ["-m", "dist=tense_logits,hidden,verb_probs", "mode=asym", "n_bits=6"],
    "file": ["-m", "dist=file/npz", "dist.path=weights.npz", "mode=sym", "n_bits=4,8"],
    "mine": ["--config-dir", "own", "-m", "dist=wide", "mode=literal", "n_bits=5"],
}
RUNS = {"lab": 3, "file": 2, "mine": 1}


@pytest.fixture
def home(tmp_path):
    """A directory in which the old sweeps were made."""
    return shutil.copytree(OLD, tmp_path / "home")


def files(directory):
    return {path: path.read_bytes() for path in directory.rglob("record.json")}


@pytest.mark.parametrize("name", SWEEPS)
def test_its_table_comes_out_again(home, name):
    before = quantlab.load(home / name)
    nested = json.loads((home / name / "results.json").read_bytes())
    done = run_quantlab("aggregate", home / name)
    assert (done.returncode, done.stderr) == (0, "")
    after = quantlab.load(home / name)
    assert list(after)[: before.shape[1]] == list(before)  # what is new stands behind
    assert after[before.columns.drop("reasons")].equals(before.drop(columns="reasons"))
    assert common_figures(nested, json.loads((home / name / "results.json").read_bytes())) == nested
    zero_point = {"symmetric": 0, "asymmetric": 6, "literal": 32}  # bits
    beside = after["mode"].map(zero_point) + 32
    assert (after.bits_per_value == after.n_bits + beside / after.n_elements).all()
    assert after["clip_share"].isna().all()
    assert after["reasons"].str.contains("clip_share: recorded with schema 3").all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_it_is_verified_as_it_was_left_and_as_it_is_aggregated_again(home, name):
    for _ in range(2):
        done = run_quantlab("verify", home / name)
        assert done.stdout == f"{home / name} matches its manifest\n"
        assert (done.returncode, done.stderr) == (0, "")
        run_quantlab("aggregate", home / name)
    assert json.loads((home / name / "manifest.json").read_bytes())["schema"] == 4


@pytest.mark.parametrize("name", SWEEPS)
def test_it_resumes_with_nothing_to_do(home, name):
    before = files(home / name)
    done = run(*SWEEPS[name], f"hydra.sweep.dir={name}", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"resuming: {RUNS[name]} complete; 0 to do")
    assert files(home / name) == before


@pytest.mark.parametrize("name", SWEEPS)
def test_its_runs_come_out_again(home, name):
    for path in (home / name).glob("*/record.json"):
        done = run_quantlab("reproduce", path.parent, cwd=home)
        assert done.stdout == f"{path.parent}: reproduced, every figure bit for bit\n"
        assert (done.returncode, done.stderr) == (0, "")


def test_its_records_are_read_under_today_s_names(home):
    for path in home.rglob("record.json"):
        one = record.read(path)
        assert one["key"] == json.loads(path.read_bytes())["key"]
        tensors, skipped = one["tensors"], one["skipped"]
        assert record.run_key(one["config"], tensors, skipped) == one["key"]
        assert one["config"]["mode"]["_target_"] == "quantlab.formats.uniform." + (
            "Symmetric" if one["mode"] == "symmetric" else "Asymmetric"
        )


@pytest.mark.parametrize("target", CURRENT.values())
def test_every_name_of_today_is_a_class(target):
    module, _, name = target.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_every_class_that_a_schema_3_config_names_has_kept_its_key(home):
    for path in home.rglob(".hydra/config.yaml"):
        for target in re.findall(r"_target_: (quantlab\S+)", path.read_text()):
            assert ORIGINAL[CURRENT[target]] == target


def test_old_names_are_found_behind_interpolations_too(home):
    (home / "own" / "dist" / "linked.yaml").write_text(
        "_target_: quantlab.dist.Hidden\nseed: 1\nn: 8\nskip: 0\nexpected: ${belief}\n"
    )
    belief = "+belief={_target_:quantlab.predict.Uniform,low:0,high:1,landmark:1,words:w}"
    searched = f"hydra.searchpath=[file://{home / 'own'}]"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[searched, "dist=linked", belief])
    config = settings(cfg)
    before = deepcopy(config)
    assert type(build(config).dist.expected).__module__ == "quantlab.sources.source"
    assert config == before


def test_old_names_are_found_in_lists():
    old, new = ({"parts": [{"_target_": name}]} for name in next(iter(CURRENT.items())))
    assert with_current_names(old) == new
    assert oldest_config(new) == old


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_of_schema_6_resumes_with_nothing_to_do(tmp_path):
    sweep = shutil.copytree(OLD.with_name("schema6"), tmp_path / "sweep")
    modes = "sym,asym,log,nf4,fp4,fp8_e4m3,mx/fp4,mx/int8,nv/fp4"
    done = run("-m", "dist=hidden", "dist.n=32", f"mode={modes}", f"hydra.sweep.dir={sweep}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("resuming: 9 complete; 0 to do")
