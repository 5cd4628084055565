import csv
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

import quantlab
from quantlab.experiment import Experiment
from quantlab.formats.format import PLAIN, Format
from quantlab.formats.uniform import Symmetric
from quantlab.records import table as table_module
from quantlab.records.record import Outcome
from quantlab.records.table import load, read_aggregate
from quantlab.report.bar import MISSED
from quantlab.sources.source import Hidden
from tests.conftest import ROOT, aggregate, measure, run
from tests.report.test_aggregate import keep
from tests.report.test_page import many

pytestmark = pytest.mark.usefixtures("undrawn")
AGGREGATE = ("results.csv", "results.json", "manifest.json")


@pytest.fixture(scope="module")
def loaded(lab_sweep):
    return quantlab.load(lab_sweep[0])


def test_the_table_holds_what_results_json_holds(lab_sweep, loaded):
    nested = json.loads((lab_sweep[0] / "results.json").read_text())
    assert len(loaded) == 6
    for row in loaded.to_dict("records"):
        for key, value in nested[row["dist"]][row["mode"]].items():
            assert pd.isna(row[key]) if value is None else row[key] == value, key


def test_every_column_has_its_dtype_and_is_documented(loaded):
    kinds = {key: str(dtype) for key, dtype in loaded.dtypes.items()}
    for key in (
        "dist",
        "mode",
        "tensor",
        "dtype",
        "reasons",
        "block",
        "scale_dtype",
        "range",
        "settings",
        "format",
        "missed",
    ):
        assert kinds.pop(key) == "string"
    for key in ("top_same_set", "top_same_order", "top_order_kept", "bar_top_order"):
        assert kinds.pop(key) == "boolean"
    for key in ("scale_replaced", "zero_point_clipped"):
        assert kinds.pop(key) == "boolean"
    for key in ("n_bits", "n_codes", "n_elements", "zero_point", "qmin", "qmax", "top_k"):
        assert kinds.pop(key) == "Int64"
    for key in ("underflowed", "n_scales", "scales_saturated", "scales_vanished"):
        assert kinds.pop(key) == "Int64"
    for key in ("top_merged", "top_swapped", "top_bits_sufficient"):
        assert kinds.pop(key) == "Int64"
    assert set(kinds.values()) == {"float64"}
    words = set(re.findall(r"\w+", load.__doc__))
    assert set(loaded.columns) <= words


def test_a_tensor_may_be_called_na_or_1(tmp_path):
    from quantlab.formats.format import PLAIN
    from quantlab.formats.uniform import Symmetric
    from quantlab.records.record import Outcome

    x = np.float32([1, 2, 3])
    entry = measure(x, Symmetric(8)) | {"sha256": "0" * 64, "predicted": None}
    names = ["NA", "1", "null", "nan", "", "a\rb", "a,b"]
    keep(tmp_path / "a", work=lambda: Outcome(dict.fromkeys(names, entry), format=PLAIN))
    aggregate(tmp_path)
    assert quantlab.load(tmp_path)["tensor"].tolist() == names


def test_the_committed_table_loads():
    assert quantlab.load(ROOT / "multirun" / "lab")["sqnr_db"].notna().all()


def test_a_directory_without_a_table_is_named(tmp_path):
    why = rf"{tmp_path}/results.csv does not exist: quantlab aggregate {tmp_path} writes it"
    with pytest.raises(ValueError, match=why):
        quantlab.load(tmp_path)


CONTEXT = ["worst_row_sqnr_db", "settings", "format", "bar_top_order", "bar_rel_err", "bar_sqnr_db"]


def results(directory):
    return json.loads((directory / "results.json").read_text())


def test_one_width_nests_as_the_lab_shows(tmp_path):
    keep(tmp_path / "a")
    assert aggregate(tmp_path).findings.levels == ["dist", "mode"]
    figures = results(tmp_path)["hidden"]["symmetric"]
    assert list(figures)[:5] == ["mae", "max_err", "rel_err", "cos_sim", "n_codes"]


def test_every_swept_axis_is_one_more_level(tmp_path):
    for job, (bits, seed) in enumerate([(8, 1), (8, 2), (4, 1), (4, 2)]):
        keep(tmp_path / str(job), bits, job, seed=seed, fixed="same")
    assert aggregate(tmp_path).findings.levels == ["dist", "mode", "n_bits", "seed"]
    nested = results(tmp_path)["hidden"]["symmetric"]
    assert list(nested) == ["8", "4"]  # in the order of the sweep
    assert list(nested["4"]) == ["1", "2"]
    assert json.loads((tmp_path / "manifest.json").read_text())["levels"][-1] == "seed"


def test_a_transform_is_a_level_by_its_name(tmp_path):
    done = run(
        "-m", "dist=hidden", "transform=none,hadamard", "n_bits=4", f"hydra.sweep.dir={tmp_path}/s"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "s" / "results.json").read_bytes())
    assert list(results["hidden"]["symmetric"]) == ["none", "hadamard"]
    table = quantlab.load(tmp_path / "s")
    assert table["format"].tolist() == ["sym 4 bits", "sym 4 bits, transform=hadamard"]
    assert table["sqnr_db"].nunique() == 2


def test_several_tensors_are_a_level(tmp_path):
    one = Experiment(Hidden(1, 50, 0), Format(Symmetric(8)), 10, 1e-8, 1).run().tensors["hidden"]
    keep(tmp_path / "a", work=lambda: Outcome({"w/1": one, "w 2": one}, format=PLAIN))
    aggregate(tmp_path)
    assert list(results(tmp_path)["hidden"]["symmetric"]) == ["w/1", "w 2"]


def test_the_csv_holds_what_the_json_holds(lab_sweep):
    directory, _ = lab_sweep
    nested = results(directory)
    with (directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["dist", "mode", "n_bits", "tensor"]
    assert len(rows) == 6
    for row in rows:
        figures = nested[row["dist"]][row["mode"]]
        assert list(row)[4:] == [*figures, *CONTEXT, "missed"]
        for key, value in figures.items():
            assert row[key] == ("" if value is None else str(value)), key


def test_two_answers_to_one_question_are_refused(tmp_path):
    keep(tmp_path / "a")
    keep(tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"two runs are of dist=hidden, mode=symmetric: .*/a and .*/b; remove one"
    ):
        aggregate(tmp_path)


def test_rows_are_those_of_the_aggregate(tmp_path):
    many(tmp_path, ["a.weight", "b"])
    written = aggregate(tmp_path).findings.rows
    found = read_aggregate(tmp_path)
    for row, one in zip(found.rows, written, strict=True):
        figures = {key: value for key, value in one.items() if key != MISSED}
        assert {key: row[key] for key in figures} == figures
        assert {type(row[key]) for key in figures} <= {str, int, float, bool, type(None)}
    assert found.levels == ["dist", "mode", "n_bits", "tensor"]
    assert [each["name"] for each in found.tensors[:2]] == ["a.weight", "b"]
    assert found.failures == {}


@pytest.mark.slow
def test_a_sweep_is_read_without_its_records(remedies_sweep, tmp_path):
    for name in AGGREGATE:
        shutil.copy(remedies_sweep[0] / name, tmp_path)
    assert len(read_aggregate(tmp_path).rows) == 105


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("manifest.json", "{", "manifest.json cannot be read"),
        ("manifest.json", None, "sweep: the last aggregation did not finish: quantlab aggregate"),
        ("results.csv", "", "results.csv does not match manifest.json, something else has written"),
        ("results.csv", None, "results.csv does not exist: quantlab aggregate"),
    ],
)
def test_what_cannot_be_read_is_named(lab_sweep, tmp_path, name, content, said):
    tmp_path = shutil.copytree(lab_sweep[0], tmp_path / "sweep")
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="quantlab aggregate") as caught:
        read_aggregate(tmp_path)
    assert said in str(caught.value)
    with pytest.raises(ValueError, match="quantlab aggregate") as caught:
        load(tmp_path)
    assert said in str(caught.value)


def test_a_table_is_the_one_that_the_manifest_lists(lab_sweep, tmp_path):
    for file in AGGREGATE:
        shutil.copy(lab_sweep[0] / file, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    for name, why in (("results.json", "of an older version"), ("results.csv", "is not in mani")):
        del manifest["artefacts"][name]
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=why):
            read_aggregate(tmp_path)


def test_a_copy_of_a_table_alone_is_no_unfinished_aggregation(lab_sweep, tmp_path):
    shutil.copy(lab_sweep[0] / "results.csv", tmp_path)
    assert len(load(tmp_path)) == 6
    with pytest.raises(ValueError, match=r"has neither manifest\.json nor runs: do the sweep"):
        read_aggregate(tmp_path)


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


def test_a_run_without_figures_has_its_reason(lab_sweep, tmp_path):
    for name in AGGREGATE:
        shutil.copy(lab_sweep[0] / name, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    lost = [("failed", "no disk"), ("unreadable", None), ("unreadable", "torn")]
    for described, (status, error) in zip(manifest["runs"], lost, strict=False):
        described |= {"status": status, "error": error}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert list(read_aggregate(tmp_path).failures.values()) == ["no disk", "unreadable", "torn"]


def test_what_is_no_directory_is_named(tmp_path):
    for path, fault in (
        (tmp_path / "none", "none does not exist"),
        (ROOT / "README.md", r"README\.md is not a directory"),
    ):
        with pytest.raises(ValueError, match=f"{fault}: give the directory of a sweep"):
            read_aggregate(path)


def test_a_large_table_is_parquet_as_well(lab_sweep, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    shutil.copytree(lab_sweep[0], tmp_path / "sweep")
    aggregate(tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "results.parquet").exists()
    monkeypatch.setattr(table_module, "MIN_PARQUET_ROWS", 1)
    monkeypatch.setattr(table_module, "PARQUET_ROWS", 4)
    aggregate(tmp_path / "sweep")
    assert "results.parquet" in read_aggregate(tmp_path / "sweep").artefacts
    table = pd.read_parquet(tmp_path / "sweep" / "results.parquet", dtype_backend="numpy_nullable")
    from_csv = load(tmp_path / "sweep")
    assert list(table) == list(from_csv)
    for column in table:
        assert table[column].isna().tolist() == from_csv[column].isna().tolist()
        assert table[column].dropna().tolist() == from_csv[column].dropna().tolist()
    monkeypatch.undo()
    aggregate(tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "results.parquet").exists()
