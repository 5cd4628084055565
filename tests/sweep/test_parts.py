"""Sweeps of a checkpoint in parts, beside the sweep of the whole."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from quantlab.experiment import Experiment
from quantlab.formats.blocks import PerChannel
from quantlab.formats.format import Format, as_element
from quantlab.formats.uniform import Symmetric
from quantlab.records import record
from quantlab.sources.numpy import Npz
from tests.conftest import run, run_quantlab, start, wait_for_records

pytestmark = pytest.mark.usefixtures("undrawn")

FORMATS = ["mode=sym", "n_bits=4,8", "block=channel", "block.axis=1"]
RUNS = 2
# Of a sweep that was recorded before there were parts and a selection.
KEY = "b32c52ce168505a351798cb2054e70ba64b6d35b20fde6c60eb49e2a9592f4a8"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The overrides of a checkpoint of many sizes, of which two tensors are left out."""
    path = tmp_path_factory.mktemp("source") / "w.npz"
    draw = np.random.default_rng(0).standard_normal
    rows = [8, 3, 24, 1, 9, 40, 2]
    arrays = {f"w{n}": draw((each, 32)).astype(np.float32) for n, each in enumerate(rows)}
    np.savez(path, **arrays, ids=np.arange(3), norm=draw(7).astype(np.float16))
    return ["dist=file/npz", f"dist.path={path}", "dist.exclude=w3"]


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The directory of a sweep that is not divided."""
    directory = tmp_path_factory.mktemp("whole")
    done = run("-m", *source, *FORMATS, f"hydra.sweep.dir={directory}")
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def divided(source, tmp_path_factory):
    """The directory of a sweep in three parts, killed after its first run and resumed."""
    directory = tmp_path_factory.mktemp("divided")
    sweep = [
        "-m", *source, "dist.parts=3", "dist.part=range(3)", *FORMATS,
        f"hydra.sweep.dir={directory}",
    ]  # fmt: skip
    process = start(*sweep)
    wait_for_records(directory)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    recorded = list(directory.glob("*/record.json"))
    if len(recorded) == 3 * RUNS:  # the machine was quick
        recorded[0].unlink()
    done = run(*sweep)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("resuming: ")
    assert len(list(directory.glob("*/record.json"))) == 3 * RUNS
    return directory


def test_a_divided_sweep_ends_as_one_of_the_whole(whole, divided):
    for name in ("results.json", "results.csv", "verdict.json", "report.md", "error_histogram.png"):
        assert (divided / name).read_bytes() == (whole / name).read_bytes(), name
    manifests = [json.loads((each / "manifest.json").read_text()) for each in (whole, divided)]
    for key in ("levels", "tensors"):
        assert manifests[0][key] == manifests[1][key]
    assert len(manifests[0]["tensors"]) == 9
    assert "missing" not in manifests[1]


def test_each_part_has_a_directory_beside_where_the_whole_would_be(whole, divided):
    names = {path.parent.name for path in whole.glob("*/record.json")}
    parts = {path.parent.name for path in divided.glob("*/record.json")}
    assert parts == {f"{name}-part-{part}-of-3" for name in names for part in range(3)}
    for name in names:
        jobs = {record.read(path)["job"] for path in divided.glob(f"{name}-*/record.json")}
        assert jobs == {record.read(whole / name / "record.json")["job"]}


def test_a_divided_sweep_is_verified_reproduced_and_planned(whole, divided, tmp_path):
    done = run_quantlab("verify", divided)
    assert done.stdout == f"{divided} matches its manifest\n"
    one = next(divided.glob("*-part-2-of-3"))
    done = run_quantlab("reproduce", one)
    assert done.stdout == f"{one}: reproduced, every figure bit for bit\n"
    plans = []
    for each in (whole, divided):
        copy = shutil.copytree(each, tmp_path / each.name / "s")
        assert run_quantlab("plan", copy, "--bits", "8").returncode == 0
        plans.append((copy / "plan.csv").read_bytes())
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_two_divisions_in_one_directory_are_refused_before_the_first_run(source, whole, divided):
    for directory, parts, there, asked in (
        (divided, [], "part 0 of 3", "undivided"),
        (whole, ["dist.parts=2", "dist.part=0,1"], "undivided", "part 0 of 2"),
        (whole.parent / "new", ["dist.parts=2,3", "dist.part=0,1"], "part 0 of 2", "part 0 of 3"),
    ):
        before = sorted(directory.rglob("*"))
        sweep = ["-m", *source, *parts, *FORMATS, f"hydra.sweep.dir={directory}"]
        done = run(*sweep)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1
        assert f"({there}) and {directory}" in line
        assert f"({asked}) would measure the same tensors: divide a source one way" in line
        assert sorted(directory.rglob("*")) == before


@pytest.mark.slow
def test_a_sweep_of_some_parts_fails_with_the_command_that_finishes_it(source, tmp_path):
    sweep = ["-m", *source, "dist.parts=12", f"hydra.sweep.dir={tmp_path}"]  # some are empty
    done = run(*sweep, "dist.part=range(11)")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"quantlab: file/npz dist.exclude=w3 {source[1]} in 12 parts: part 11 ")
    assert " without a record; to finish the sweep, run: " in line
    assert line.endswith(f"dist.parts=12 hydra.sweep.dir={tmp_path} 'dist.part=range(12)'")
    done = run(*sweep, "dist.part=range(12)")
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming: 11 complete, 1 missing; 1 to do" in done.stdout


@pytest.mark.slow
def test_a_sweep_answers_for_its_own_parts_alone(source, tmp_path):
    sweep = ["-m", *source, "dist.parts=2", f"hydra.sweep.dir={tmp_path}"]
    assert run(*sweep, "dist.part=0", "n_bits=4", "mode=sym").returncode == 1
    again = run("-m", "mode=sym", "n_bits=4", "threads=2", *sweep[1:], "dist.part=0")
    assert (again.returncode, "part 1 without a record" in again.stderr) == (1, True)
    done = run(*sweep, "dist.part=range(2)", "n_bits=8")
    assert (done.returncode, done.stderr) == (0, "")
    settings = f"dist.exclude=w3 {source[1]} mode=sym n_bits=4"
    assert f"file/npz {settings} in 2 parts failed: part 1 " in done.stdout


@pytest.mark.slow
def test_parts_into_numbered_directories(source, tmp_path):
    sweep = ["-m", *source, "dist.parts=2", f"hydra.sweep.dir={tmp_path}"]
    numbered = "hydra.sweep.subdir=${hydra.job.num}"
    for _ in range(2):  # the second sweep writes over the first
        done = run(*sweep, "dist.part=range(2)", numbered)
        assert (done.returncode, done.stderr) == (0, "")
    done = run(*sweep, "dist.part=0,0,1", "dist.parts=2,3", numbered)
    assert "would measure the same tensors" in done.stderr


@pytest.mark.slow
def test_all_parts_are_measured_again_once_a_file_lists_another_tensor(tmp_path):
    path = tmp_path / "w.npz"
    arrays = {name: np.ones(size, np.float32) for name, size in {"a": 30, "b": 20}.items()}
    sweep = ["-m", "dist=file/npz", f"dist.path={path}", "dist.parts=2"]
    sweep += [f"hydra.sweep.dir={tmp_path}/s"]
    np.savez(path, **arrays)
    run(*sweep, "dist.part=0")
    np.savez(path, **arrays, c=np.ones(1, np.float32))
    done = run(*sweep, "dist.part=1")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, "the file listed other tensors for" in line) == (1, True)
    done = run(*sweep, "dist.part=range(2)")
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming: 1 complete, 1 changed; 1 to do" in done.stdout


def test_a_part_without_a_tensor_fails_only_where_the_whole_would(source):
    path = source[1].removeprefix("dist.path=")
    form = Format(as_element(Symmetric(8)), PerChannel(axis=2))

    def outcomes(include):
        parts = [Npz(path, include=include, parts=3, part=part) for part in range(3)]
        return [Experiment(part, form, 10, 1e-8, 1) for part in parts]

    measured = [each.run() for each in outcomes(None)]  # norm has one dimension, which fits
    assert sorted(len(each.tensors) for each in measured) == [0, 0, 1]
    for each in outcomes("w*"):
        why = (
            r"there is no tensor to measure \(ids: not in dist.include; norm: not in .*; w\d: block"
        )
        with pytest.raises(ValueError, match=why):
            each.run()


def test_a_part_that_is_not_there_is_refused_in_a_sentence(source, tmp_path):
    done = run("-m", *source, "dist.parts=4", "dist.part=4", f"hydra.sweep.dir={tmp_path}/s")
    said = "quantlab: dist.part must be a whole number from 0 to 3 with dist.parts=4, got 4\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert not (tmp_path / "s").exists()


def test_a_source_that_is_no_file_has_no_parts():
    done = run("-m", "dist=hidden", "dist.parts=2", "dist.part=0,1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "sets an unknown key: the tensors of a file alone are divided into parts" in line


def test_sweeps_that_were_recorded_before_there_were_parts_are_complete(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32), "ids": np.arange(2)}
    np.savez(tmp_path / "w.npz", **arrays, b=np.ones(3, np.float32))
    file = ["dist=file/npz", "dist.path=w.npz", "dist.select=all"]
    sweep = ["-m", *file, "n_bits=4", "hydra.sweep.dir=s"]
    assert run(*sweep, cwd=tmp_path).returncode == 0
    (path,) = tmp_path.glob("s/*/record.json")
    one = record.read(path)
    assert one["key"] == KEY
    assert not {"part", "parts"} & one["config"]["dist"].keys()
    assert "place" not in one["tensors"]["a"]
    results = (tmp_path / "s" / "results.csv").read_bytes()
    done = run(*sweep, "dist.parts=1", "dist.part=0", cwd=tmp_path)
    assert "resuming: 1 complete; 0 to do" in done.stdout
    assert (tmp_path / "s" / "results.csv").read_bytes() == results
