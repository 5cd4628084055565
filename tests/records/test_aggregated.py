import json
import shutil

import pytest

import quantlab
from quantlab.records.table import read_aggregate
from tests.conftest import ROOT, aggregate
from tests.report.test_page import many


def test_rows_are_those_of_the_aggregate(tmp_path):
    many(tmp_path, ["a.weight", "b"])
    written = aggregate(tmp_path).findings.rows
    found = read_aggregate(tmp_path)
    for row, one in zip(found.rows, written, strict=True):
        assert {key: row[key] for key in one} == dict(one)
        assert {type(row[key]) for key in one} <= {str, int, float, bool, type(None)}
    assert found.levels == ["dist", "mode", "n_bits", "tensor"]
    assert [each["name"] for each in found.tensors[:2]] == ["a.weight", "b"]
    assert found.failures == {}


def test_the_committed_sweeps_are_read_without_their_records(tmp_path):
    for name in ("results.csv", "results.json", "manifest.json"):
        shutil.copy(ROOT / "multirun" / "remedies" / name, tmp_path)
    assert len(read_aggregate(tmp_path).rows) == 105


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("manifest.json", "{", "manifest.json cannot be read"),
        ("manifest.json", None, "manifest.json cannot be read"),
        ("results.json", None, "cannot be read"),
        ("results.csv", None, "results.csv does not exist: quantlab aggregate"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, said):
    for each in ("results.csv", "results.json", "manifest.json"):
        shutil.copy(ROOT / "multirun" / "lab" / each, tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="quantlab aggregate") as caught:
        read_aggregate(tmp_path)
    assert said in str(caught.value)


def test_a_manifest_of_an_older_version_lists_no_tensors(tmp_path):
    old = ROOT / "tests" / "data" / "schema3" / "lab"
    with pytest.raises(ValueError, match="is of an older version: quantlab"):
        read_aggregate(shutil.copytree(old, tmp_path / "lab"))


def test_the_verdict_is_a_table(lab_sweep):
    table = quantlab.verdict(lab_sweep[0]).set_index("tensor")
    assert table.index.tolist() == ["tense_logits", "verb_probs", "hidden"]
    assert table["meets"].tolist() == [True, False, False]
    assert table.loc["hidden", "missed"] == "top_order; rel_err"
    assert str(table["n_bits"].dtype) == "Int64"


def test_a_run_without_figures_has_its_reason(tmp_path):
    for name in ("results.csv", "results.json", "manifest.json"):
        shutil.copy(ROOT / "multirun" / "lab" / name, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    lost = [("failed", "no disk"), ("unreadable", None), ("unreadable", "torn")]
    for run, (status, error) in zip(manifest["runs"], lost, strict=False):
        run |= {"status": status, "error": error}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert list(read_aggregate(tmp_path).failures.values()) == ["no disk", "unreadable", "torn"]


def test_what_is_no_directory_is_named(tmp_path):
    for path in (tmp_path / "none", ROOT / "README.md"):
        with pytest.raises(ValueError, match="is not a directory: give the directory of a sweep"):
            read_aggregate(path)
