import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import quantlab
from quantlab.experiment import Experiment
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.records import disk, record
from quantlab.report.aggregate import choose_details, choose_histogram
from quantlab.sources.source import Hidden
from tests.conftest import aggregate, printed, run, run_quantlab, run_without_privileges

LEVELS = ["dist", "mode", "n_bits", "tensor"]


def keep(directory, n_bits=8, job=0, work=None, **config):
    directory.mkdir(parents=True)
    record.run_and_write(
        directory,
        work or Experiment(Hidden(1, 50, 0), Format(Symmetric(n_bits)), 10, 1e-8, 1).run,
        {"n_bits": n_bits, **config},
        dist="hidden",
        mode="symmetric",
        n_bits=n_bits,
        job=job,
        overrides=[f"{key}={value}" for key, value in config.items()],
    )


def test_the_same_records_give_the_same_bytes_elsewhere(lab_sweep, tmp_path):
    directory, _ = lab_sweep
    copy = shutil.copytree(directory, tmp_path / "elsewhere")
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in manifest["artefacts"]:
        (copy / name).unlink()
    aggregate(copy)
    for name in manifest["artefacts"]:
        assert (copy / name).read_bytes() == (directory / name).read_bytes(), name


def test_the_manifest_hashes_what_is_there(lab_sweep):
    directory, _ = lab_sweep
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["command"].startswith("python run.py experiment=lab")
    assert len(manifest["runs"]) == 6
    for entry in manifest["runs"]:
        content = (directory / entry["directory"] / record.NAME).read_bytes()
        assert entry["record_sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["key"] == json.loads(content)["key"]
        assert entry["status"] == "completed"
    for name, sha256 in manifest["artefacts"].items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == sha256
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert manifest["git"]["commit"] == head.stdout.strip()
    assert manifest["start"] < manifest["end"]


def test_failures_and_unreadable_records_are_listed_and_cost_nothing_else(tmp_path):
    def fail():
        raise ValueError("tensor 'w' is empty")

    keep(tmp_path / "good")
    keep(tmp_path / "bad", work=fail)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / record.NAME).write_text("{")
    done = aggregate(tmp_path)
    assert len(done.findings.rows) == 1
    assert done.findings.failures["bad"] == "tensor 'w' is empty"
    assert "no readable JSON" in done.findings.failures["torn"]
    statuses = {
        run["directory"]: run["status"]
        for run in json.loads((tmp_path / "manifest.json").read_text())["runs"]
    }
    assert statuses == {"bad": "failed", "good": "completed", "torn": "unreadable"}
    assert "bad failed: tensor 'w' is empty" in printed(done)


@pytest.mark.slow
def test_what_is_no_record_is_named_left_out_and_counted(tmp_path):
    sweep = tmp_path / "sweep"
    keep(sweep / "good")
    one = (sweep / "good" / record.NAME).read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / record.NAME).write_bytes(one)
    (sweep / "linked").symlink_to(elsewhere)
    for name in ("directory", "link", "zeros", "text", "nan", "newer", "half", "fifth"):
        (sweep / name).mkdir()
    (sweep / "directory" / record.NAME).mkdir()
    (sweep / "link" / record.NAME).symlink_to(elsewhere / record.NAME)
    with (sweep / "zeros" / record.NAME).open("wb") as file:
        file.truncate(2 * 10**9)
    (sweep / "text" / record.NAME).write_text("mae 0.1")
    (sweep / "nan" / record.NAME).write_bytes(one.replace(b'"seconds": ', b'"seconds": NaN, "x": '))
    schema = b'"schema": %d'
    newer = one.replace(schema % record.SCHEMA, schema % (record.SCHEMA + 1))
    (sweep / "newer" / record.NAME).write_bytes(newer)
    (sweep / "half" / record.NAME).write_bytes(one[: len(one) // 2])
    (sweep / "fifth" / record.NAME).write_bytes(one.replace(b'"status": "c', b'"status": "un'))
    done = aggregate(sweep)
    assert len(done.findings.rows) == 1
    shown = printed(done)
    assert "9 runs failed or left no record that can be read" in shown
    for name, why in {
        "directory": "Is a directory",
        "link": "is a link out of the sweep",
        "linked": "is a link out of the sweep",
        "zeros": "is larger than 1.07 GB",
        "text": "Expecting value",
        "nan": "it holds NaN, which is not JSON",
        "newer": f"has schema {record.SCHEMA + 1}, newer than {record.SCHEMA}: update quantlab",
        "half": "is no readable JSON",
        "fifth": "status must be one of ['completed', 'failed']",
    }.items():
        assert why in done.findings.failures[name]
        assert f"{name}/{record.NAME}" in done.findings.failures[name]


def test_a_sweep_of_failures_only_still_has_its_files(tmp_path):
    def fail():
        raise ValueError("no")

    keep(tmp_path / "bad", work=fail)
    done = aggregate(tmp_path)
    assert json.loads((tmp_path / "results.json").read_bytes()) == {}
    assert "bad failed: no" in printed(done)


def test_a_directory_that_is_no_sweep_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"is not a sweep: it holds no record\.json"):
        aggregate(tmp_path)


def test_a_directory_without_a_readable_record_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / record.NAME).write_text("{}")
    with pytest.raises(
        ValueError, match=r"is not a sweep: nothing in it can be read: a/record\.json"
    ):
        aggregate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_reason_that_many_share_is_printed_once(tmp_path):
    def fail():
        raise ValueError("tensor 'w' is empty")

    for n_bits in (2, 4, 8):
        keep(tmp_path / str(n_bits), n_bits, n_bits, work=fail)
    shown = printed(aggregate(tmp_path))
    assert "3 runs failed or left no record that can be read" in shown
    assert "2 and 2 more runs failed: tensor 'w' is empty" in shown
    assert shown.count("is empty") == 1


@pytest.mark.slow
def test_a_sweep_that_is_typed_and_one_that_is_written_down_have_one_verdict(tmp_path):
    path, config = tmp_path / "m.npz", tmp_path / "conf" / "experiment" / "mine.yaml"
    np.savez(path, w=np.linspace(-1, 2, 600, dtype=np.float32).reshape(20, 30))
    config.parent.mkdir(parents=True)
    config.write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      dist: file/npz\n"
        f"      dist.path: {path}\n      mode: sym,asym\n"
    )
    typed, written = tmp_path / "typed", tmp_path / "written"
    done = run(
        "-m", "dist=file/npz", f"dist.path={path}", "mode=sym,asym", f"hydra.sweep.dir={typed}"
    )
    assert done.returncode == 0, done.stderr
    done = run(
        "--config-dir", tmp_path / "conf", "-m", "experiment=mine", f"hydra.sweep.dir={written}"
    )
    assert done.returncode == 0, done.stderr
    assert (typed / "verdict.json").read_bytes() == (written / "verdict.json").read_bytes()
    assert json.loads((typed / "verdict.json").read_text())["bar"]["sqnr_db"] == 20.0


def stop_before(name, monkeypatch):
    """Have the disk fail as an aggregation is about to put a file into its place."""
    publish = disk._publish

    def stop(path):
        if path.name == name:
            raise OSError(5, "Input/output error", str(path))
        publish(path)

    monkeypatch.setattr(disk, "_publish", stop)


READERS = {
    "load": quantlab.load,
    "verdict": quantlab.verdict,
    "plan": lambda directory: quantlab.plan(directory, bits=5),
}


@pytest.mark.slow
def test_an_aggregation_that_was_cut_off_is_read_by_nobody(tmp_path):
    for job, n_bits in enumerate((4, 8)):
        keep(tmp_path / str(n_bits), n_bits, job)
        aggregate(tmp_path)
    keep(tmp_path / "6", 6, 2)
    with pytest.MonkeyPatch.context() as patch:
        stop_before("results.csv", patch)
        with pytest.raises(OSError, match="Input/output error"):
            aggregate(tmp_path)
    assert "6" in json.loads((tmp_path / "results.json").read_text())["hidden"]["symmetric"]
    why = f"{tmp_path}: the last aggregation did not finish: quantlab aggregate {tmp_path}"
    assert "symmetric,6" not in (tmp_path / "results.csv").read_text()
    for read in READERS.values():
        with pytest.raises(ValueError, match=re.escape(why)):
            read(tmp_path)
    for command in (["check"], ["plan", "--bits", "5"], ["diff", tmp_path]):
        done = run_quantlab(command[0], tmp_path, *command[1:])
        assert (done.returncode, done.stderr) == (2, f"quantlab: {why}\n")
    assert not list(tmp_path.glob("plan*"))
    aggregate(tmp_path)
    assert len(quantlab.load(tmp_path)) == 3
    assert run_quantlab("verify", tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["results.csv", "verdict.json"])
def test_what_something_else_has_written_is_named(tmp_path, name):
    keep(tmp_path / "a")
    aggregate(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"8", b"7"))
    read = READERS["verdict" if name == "verdict.json" else "load"]
    why = f"{tmp_path}/{name} does not match manifest.json, something else has written it: quantlab"
    with pytest.raises(ValueError, match=re.escape(why)):
        read(tmp_path)


def test_answers_of_an_earlier_aggregation_are_removed(tmp_path):
    keep(tmp_path / "a")
    (tmp_path / "answers.csv").write_text("old")
    aggregate(tmp_path)
    assert not (tmp_path / "answers.csv").exists()
    (tmp_path / "answers.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"answers\.csv is not in manifest\.json"):
        quantlab.answers(tmp_path)


def test_several_sweeps_are_not_mixed(tmp_path):
    for name in ("first", "second"):
        keep(tmp_path / name / "a")
        (tmp_path / name / "multirun.yaml").touch()
    before = sorted(tmp_path.rglob("*"))
    for command in (["aggregate", "."], ["report", tmp_path, "report.lang=es"]):
        done = run_quantlab(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert "would mix several sweeps, " in done.stderr
        assert "first and " in done.stderr
        assert "second among them: give the directory of one" in done.stderr
    done = run("-m", "dist=hidden", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert f"{tmp_path} would mix several sweeps, {tmp_path} and {tmp_path}/first" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_stand_alone_are_one_table(tmp_path):
    for job, n_bits in enumerate((4, 8)):
        keep(tmp_path / str(n_bits), n_bits, job)
    assert len(aggregate(tmp_path).findings.rows) == 2
    assert run_quantlab("aggregate", tmp_path / "4").returncode == 0


def test_an_aggregation_waits_for_no_other_writer(tmp_path):
    keep(tmp_path / "a")
    with disk.lock_directory(tmp_path):
        done = run_quantlab("aggregate", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path} is in use by process " in done.stderr
    assert done.stderr.endswith(": wait for it to end\n")
    assert not (tmp_path / "results.csv").exists()
    assert run_quantlab("aggregate", tmp_path).returncode == 0


def test_what_is_no_sweep_gets_no_lock(tmp_path):
    assert run_quantlab("aggregate", tmp_path).returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "plots"])
def test_a_sweep_that_cannot_be_written_is_named_before_the_work(tmp_path, folder):
    keep(tmp_path / "a")
    keep(tmp_path / "b", 4, 1)
    aggregate(tmp_path)
    before = sorted(tmp_path.iterdir())
    (tmp_path / folder).chmod(0o555)
    try:
        done = run_without_privileges("-m", "quantlab", "aggregate", tmp_path)
    finally:
        (tmp_path / folder).chmod(0o755)
    why = f"{tmp_path / folder} cannot be written: copy {tmp_path} and give the copy"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"quantlab: {why}\n")
    assert sorted(tmp_path.iterdir()) == before


def test_a_sweep_that_cannot_be_listed_is_not_empty(tmp_path):
    keep(tmp_path / "s" / "a")
    (tmp_path / "s").chmod(0)
    done = run_without_privileges("-m", "quantlab", "aggregate", tmp_path / "s")
    (tmp_path / "s").chmod(0o755)
    assert done.stderr.startswith(f"quantlab: {tmp_path}/s cannot be read: you have no permission")


@pytest.mark.slow
def test_a_plan_that_cannot_be_written_is_named_before_the_work(tmp_path):
    for job, n_bits in enumerate((4, 8)):
        keep(tmp_path / str(n_bits), n_bits, job)
    aggregate(tmp_path)
    tmp_path.chmod(0o555)
    try:
        done = run_without_privileges("-m", "quantlab", "plan", tmp_path, "--bits", "9")
    finally:
        tmp_path.chmod(0o755)
    why = f"{tmp_path} cannot be written: name another directory with --out DIR"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"quantlab: {why}\n")


def rows_of(*dists, modes=("s", "t"), widths=(4, 8, 16), tensors=("w",), sqnr=float):
    return [
        {"dist": dist, "mode": mode, "n_bits": n, "tensor": tensor, "sqnr_db": sqnr(n)}
        for dist in dists
        for mode in modes
        for n in widths
        for tensor in tensors
    ]


def named(found, chosen):
    return [
        "".join(str(found[n][key]) for key in ("dist", "mode", "n_bits", "tensor")) for n in chosen
    ]


def test_one_row_a_source_and_mode_is_looked_at_in_eight_bits_the_worst_first():
    found = rows_of("a", "b", "c", "d")
    found[[each["dist"] for each in found].index("d") + 1]["sqnr_db"] = 1.0
    assert named(found, choose_details(found, LEVELS)) == [
        "ds8w", "as8w", "at8w", "bs8w", "bt8w", "cs8w",
    ]  # fmt: skip
    narrow = rows_of("a", widths=(4, 16))
    assert named(narrow, choose_details(narrow, LEVELS)) == ["as4w", "at4w"]


def test_of_many_tensors_the_worst_is_looked_at():
    found = rows_of("a", modes="s", widths=[8], tensors=("w", "v", "u"))
    found[1]["sqnr_db"], found[2]["sqnr_db"] = 5.0, None
    assert named(found, choose_details(found, LEVELS)) == ["as8v"]


def test_what_else_was_swept_is_looked_at_too():
    found = [row | {"seed": seed} for seed in (1, 2) for row in rows_of("a", modes="s")]
    assert named(found, choose_details(found, [*LEVELS, "seed"])) == ["as8w", "as8w"]


def test_the_histogram_is_of_hidden_in_each_mode():
    found = rows_of("a", "hidden", tensors=("w", "v"), widths=(16, 8))
    worst = next(each for each in found if each["dist"] == "hidden" and each["n_bits"] == 8)
    worst["sqnr_db"] = 1.0
    assert named(found, choose_histogram(found)) == ["hiddens8w", "hiddent8w"]
    assert named(found[:4], choose_histogram(found[:4])) == ["as8w"]
