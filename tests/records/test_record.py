import math

import pytest

from quantlab.experiment import Experiment
from quantlab.formats.format import PLAIN, Format
from quantlab.formats.uniform import Symmetric
from quantlab.records import disk, record
from quantlab.records.record import Outcome
from quantlab.sources.source import Hidden

ENTRY = Experiment(Hidden(1, 50, 0), Format(Symmetric(8)), 10, 1e-8, 1).run().tensors["hidden"]
ASKED = {"dist": "d", "mode": "symmetric", "n_bits": 8, "job": 0, "overrides": []}


def keep(directory, work):
    return record.run_and_write(directory, work, {"seed": 1}, **ASKED)


def test_a_record_reads_back_as_written(tmp_path):
    written = keep(tmp_path, lambda: Outcome({"x": ENTRY}, format=PLAIN))
    assert written["status"] == "completed"
    assert record.read(tmp_path / record.NAME) == written
    assert [path.name for path in tmp_path.iterdir()] == [record.NAME]


def test_a_mistake_is_recorded_as_it_reads_and_a_bug_with_its_type(tmp_path):
    def mistake():
        raise ValueError("tensor 'w' is empty")

    def bug():
        raise KeyError("w")

    assert keep(tmp_path, mistake)["error"] == "tensor 'w' is empty"
    assert keep(tmp_path, bug)["error"] == "KeyError: 'w'"
    assert record.read(tmp_path / record.NAME)["status"] == "failed"


def test_a_tensor_that_fails_costs_no_other(tmp_path):
    outcome = Outcome({"x": ENTRY}, {"w": "tensor 'w' is empty"}, {"n": "an integer"})
    one = keep(tmp_path, lambda: outcome)
    assert one["status"] == "failed"
    assert one["error"] == "1 of 2 tensors could not be measured (tensor 'w' is empty)"
    assert (list(one["tensors"]), list(one["failed"]), list(one["skipped"])) == (
        ["x"],
        ["w"],
        ["n"],
    )


def test_the_key_follows_config_and_tensors_alone():
    entry = {"shape": [2], "dtype": "float32", "sha256": "0"}
    x = {"x": entry}
    key = record.run_key({"a": 1, "b": 2}, x, {})
    assert key == record.run_key({"b": 2, "a": 1}, x, {})
    assert key == record.run_key({"a": 1, "b": 2, "threads": 4, "resume": False}, x, {})
    assert key != record.run_key({"a": 1, "b": 3}, x, {})
    assert key != record.run_key({"a": 1, "b": 2}, x, {"y": "it holds integers"})
    assert key != record.run_key({"a": 1, "b": 2}, {"y": entry}, {})
    for other in ({"shape": [1, 2]}, {"dtype": "float16"}, {"sha256": "1"}):
        assert key != record.run_key({"a": 1, "b": 2}, {"x": entry | other}, {})


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    disk.write(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_never_reaches_a_file():
    with pytest.raises(ValueError, match="JSON"):
        disk.to_json({"mae": math.nan})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no readable JSON"),
        (b'{"schema": 1', "no readable JSON"),
        (b"\xff\xfe", "no readable JSON"),
        (b'{"schema": NaN}', "holds NaN, which is not JSON"),
        (b"[]", "no record of a run"),
        (b'{"schema": 3}', "no record of a run: it must contain"),
        (b'{"schema": 3, "tensors": []}', "no record of a run: it must contain"),
        (b'{"schema": 1}', "schema 1, older than 3: run it again"),
        (b'{"schema": 99}', "schema 99, newer than 9: update quantlab"),
        (b"[" * 100_000, "no readable JSON"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, content, why):
    path = tmp_path / record.NAME
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as caught:
        record.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.slow
def test_what_is_too_large_is_never_read(tmp_path):
    path = tmp_path / record.NAME
    with path.open("wb") as file:
        file.truncate(2 * 10**9)
    with pytest.raises(ValueError, match=r"is larger than 1\.07 GB"):
        record.read(path)


def test_a_directory_is_no_record(tmp_path):
    (tmp_path / record.NAME).mkdir()
    with pytest.raises(ValueError, match="Is a directory"):
        record.read(tmp_path / record.NAME)


def test_hidden_directories_and_links_hold_no_records_of_a_sweep(tmp_path):
    sweep, elsewhere = tmp_path / "sweep", tmp_path / "elsewhere"
    for directory in (sweep / "b", sweep / "a" / "deep", sweep / ".submitit", elsewhere):
        directory.mkdir(parents=True)
        (directory / record.NAME).touch()
    (sweep / "link").symlink_to(elsewhere)
    found = [path.relative_to(sweep).as_posix() for path in record.find(sweep)]
    assert found == ["link/record.json", "a/deep/record.json", "b/record.json"]  # told, not entered


def test_a_name_that_is_no_unicode_is_kept(tmp_path):
    name = b"\xff.npy".decode(errors="surrogateescape")
    one = keep(tmp_path, lambda: Outcome({name: ENTRY}, format=PLAIN))
    assert record.read(tmp_path / record.NAME) == one
