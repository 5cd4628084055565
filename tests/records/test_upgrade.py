"""Sweeps that an older quantlab left, taken through everything that is done with a sweep.

Those of ``data/schema3`` were made before the modules moved: the lab's tensors, a file, and a
distribution and a mode from somebody's own yaml.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest

import quantlab
from quantlab.records import record
from quantlab.records.renames import CURRENT
from tests.conftest import ROOT, run, run_python

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
    kept = {file: (home / name / file).read_bytes() for file in ("results.json", "results.csv")}
    done = run_python("-m", "quantlab", "aggregate", home / name)
    assert (done.returncode, done.stderr) == (0, "")
    assert {file: (home / name / file).read_bytes() for file in kept} == kept
    assert len(quantlab.load(home / name)) == len(kept["results.csv"].splitlines()) - 1


@pytest.mark.parametrize("name", SWEEPS)
def test_it_is_verified_as_it_was_left_and_as_it_is_aggregated_again(home, name):
    for _ in range(2):
        done = run_python("-m", "quantlab", "verify", home / name)
        assert done.stdout == f"{home / name} matches its manifest\n"
        assert (done.returncode, done.stderr) == (0, "")
        run_python("-m", "quantlab", "aggregate", home / name)
    assert json.loads((home / name / "manifest.json").read_bytes())["schema"] == 2


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
        done = run_python("-m", "quantlab", "reproduce", path.parent, cwd=home)
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


def test_every_class_of_the_config_has_kept_its_oldest_name():
    named = {
        line.split()[1]
        for path in (ROOT / "conf").rglob("*.yaml")
        for line in path.read_text().splitlines()
        if "_target_:" in line and "quantlab.sweep" not in line
    }
    assert named <= set(CURRENT.values())
