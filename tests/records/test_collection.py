import sys

import pytest

from quantlab.records import collection
from quantlab.records.collection import collect


@pytest.fixture
def read_alone(lab_sweep, monkeypatch):
    """A sweep and what this process reads of it, before others read even the smallest."""
    directory, _ = lab_sweep
    alone = collect(directory)
    monkeypatch.setattr(collection, "MAX_BATCH_BYTES", 1)
    monkeypatch.setattr(collection, "MIN_SHARED_BYTES", 0)
    monkeypatch.setattr(collection, "usable_cores", lambda: 2)
    return directory, alone


def test_processes_read_what_one_reads(read_alone, monkeypatch):
    directory, alone = read_alone
    monkeypatch.setattr(collection, "_read_runs", None)  # of this process
    shared = collect(directory)
    assert shared.runs == alone.runs
    assert [*shared.figures] == [*alone.figures]


def test_records_are_read_where_no_process_starts(read_alone, monkeypatch):
    directory, alone = read_alone
    monkeypatch.setattr(collection, "WORKER_PROGRAM", "raise SystemExit(1)")
    assert collect(directory).runs == alone.runs
    for python in ("/dev/null/python", "", None):
        monkeypatch.setattr(sys, "executable", python)
        assert collect(directory).runs == alone.runs


def test_readers_import_nothing_from_the_current_directory(read_alone, tmp_path, monkeypatch):
    directory, alone = read_alone
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert collect(directory.resolve()).runs == alone.runs
    assert not (tmp_path / "ran").exists()


def test_what_modules_print_is_no_result(read_alone, monkeypatch):
    directory, alone = read_alone
    program = collection.WORKER_PROGRAM.replace("import pickle", "print('Info'); import pickle")
    monkeypatch.setattr(collection, "WORKER_PROGRAM", program)
    monkeypatch.setattr(collection, "_read_runs", None)  # of this process
    assert collect(directory).runs == alone.runs
