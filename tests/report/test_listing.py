import json

import numpy as np

from quantlab.report.listing import listing, listing_json
from quantlab.report.terminal import MAX_COLUMNS
from quantlab.sources.file import FileEntry
from tests.conftest import run_quantlab

NAME = "encoder." * 12 + "weight"
ENTRIES = [
    FileEntry(NAME, (2, 3), "float32", lambda: None, n_bytes=24),
    FileEntry("ids", (1,), "I64", lambda: None, "I64 is no type", 8, numpy_dtype="int64"),
]


def test_long_names_are_folded_on_a_terminal():
    entry = FileEntry("w" * 48, (2, 3), "float32", lambda: None, skip_reason="because " * 20)
    lines = listing([entry], None, "a.npz", whole=False).splitlines()
    assert max(map(len, lines)) <= MAX_COLUMNS
    assert "".join(lines).count("because") == 20


def test_lines_and_names_are_whole_in_a_pipe():
    text = listing(ENTRIES, None, "a.npz", whole=True)
    head, *rows, _, totals = text.splitlines()
    assert head.split() == ["tensor", "shape", "dtype", "elements"]
    assert rows == [
        f"{NAME} [2, 3] float32        6 chosen",
        f"{'ids':<{len(NAME)}} [1]    int64          1 left out: int64 is no type",
    ]
    assert totals == "2 tensors, 7 values, 32 B; chosen: 1 tensor, 6 values, 24 B"
    assert listing([], None, "a.npz", whole=True).endswith(
        "0 tensors, 0 values, 0 B; chosen: 0 tensors, 0 values, 0 B"
    )


def test_the_list_as_json():
    found = json.loads(listing_json(ENTRIES))
    assert found["tensors"][0] == {
        "name": NAME, "dtype": "float32", "shape": [2, 3], "n_elements": 6, "n_bytes": 24,
        "reason": None,
    }  # fmt: skip
    assert found["tensors"][1]["reason"] == "int64 is no type"
    assert found["total"] == {"tensors": 2, "n_elements": 7, "n_bytes": 32}
    assert found["chosen"] == {"tensors": 1, "n_elements": 6, "n_bytes": 24}


def test_the_width_of_a_terminal_does_not_matter_in_a_pipe(tmp_path, monkeypatch):
    np.savez(tmp_path / "w.npz", **{"long" * 40: np.eye(2)})
    monkeypatch.setenv("COLUMNS", "40")
    done = run_quantlab("tensors", tmp_path / "w.npz")
    assert "long" * 40 in done.stdout
    assert json.loads(run_quantlab("tensors", tmp_path / "w.npz", "--json").stdout)["tensors"]
