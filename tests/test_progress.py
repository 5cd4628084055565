import time

import pytest

from quantlab import progress, record
from quantlab.progress import Progress


def finish(directory, name, status="completed"):
    (directory / name).mkdir(exist_ok=True)
    record.write(directory / name / record.NAME, record.to_json({"status": status}))


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    monkeypatch.setattr(progress, "LINES", 0.0)


def test_it_counts_what_appears_and_not_what_was_there(tmp_path, capsys):
    finish(tmp_path, "before")
    finish(tmp_path, "again", "failed")
    with Progress(tmp_path, 4):
        finish(tmp_path, "a")
        finish(tmp_path, "b", "failed")
        time.sleep(0.3)
        finish(tmp_path, "again")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert last == "3/4 runs, 1 failed, 00:00 left"
    assert first.endswith("left") or first == "0/4 runs, 0 failed"
    assert "\r" not in first


def test_a_record_that_cannot_be_read_is_done_all_the_same(tmp_path, capsys):
    with Progress(tmp_path, 2):
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn" / record.NAME).write_text("[")
        (tmp_path / "gone").mkdir()
        (tmp_path / "gone" / record.NAME).symlink_to("nowhere")
    assert capsys.readouterr().out.splitlines()[-1].startswith("1/2 runs, 0 failed")
