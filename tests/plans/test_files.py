import hashlib
import json

import pandas as pd
import pytest

from quantlab.plans.files import plan_faults, plan_files, plan_json, write_files
from quantlab.plans.mixture import plan_within_budget
from quantlab.plans.plan import plan_artefacts, plan_table, table_csv
from quantlab.plans.problem import build_problem
from quantlab.plans.request import Request
from quantlab.plans.runtimes import RUNTIMES
from quantlab.records.older import UNSIZED
from quantlab.report.texts import Texts
from tests.plans.samples import original, row, sweep, two

OUT = original("c", (5,), sha256=None, dtype="int32", n_bytes=20, reason="int32 is no float")
TENSORS = [original("a.weight"), OUT, original("b.weight")]


def made():
    return plan_within_budget(build_problem(sweep(two(), TENSORS), Request()), 13_000)


def test_a_row_a_tensor_says_what_it_is_stored_as():
    table = plan_table(made()).set_index("tensor")
    assert table.index.tolist() == ["a.weight", "c", "b.weight"]
    assert table.loc["b.weight", "format"] == "sym 8 bits, channel"
    assert table.loc["b.weight", ["n_bytes", "bits_per_value", "sqnr_db"]].tolist() == [
        1032, 8.25, 33.0,
    ]  # fmt: skip
    assert table.loc["c", ["format", "n_bytes", "noise"]].tolist() == ["int32", 20, 0]
    assert table.loc["c", "reason"] == "int32 is no float"
    assert table["mode"].isna().tolist() == [False, True, False]


def test_every_column_has_its_dtype():
    kinds = {key: str(dtype) for key, dtype in plan_table(made()).dtypes.items()}
    for key in ("n_elements", "n_bytes", "n_bits", "block_size"):
        assert kinds.pop(key) == "Int64"
    for key in ("bits_per_value", "sqnr_db", "noise"):
        assert kinds.pop(key) == "float64"
    assert set(kinds.values()) == {"string"}


def test_the_csv_holds_the_table(tmp_path):
    table = plan_table(made())
    (tmp_path / "plan.csv").write_bytes(table_csv(table))
    again = pd.read_csv(tmp_path / "plan.csv", dtype={k: str(v) for k, v in table.dtypes.items()})
    pd.testing.assert_frame_equal(again, table, check_dtype=False)


def test_the_json_says_what_was_asked_and_hashes_what_stands_beside_it():
    plan, asked = made(), {"bits": 6.5}
    content = json.loads(plan_json(plan, asked, "1" * 64, {"plan.csv": b"x"}))
    assert (content["asked"], content["results_sha256"]) == (asked, "1" * 64)
    assert content["files"] == {"plan.csv": hashlib.sha256(b"x").hexdigest()}
    assert content["n_bytes"] == sum(each["n_bytes"] for each in content["tensors"]) - 1  # rounded
    assert content["best_uniform"]["format"] == "sym 4 bits, group 32"
    assert content["noise"] == plan.noise
    assert content["gap"] >= 0


T = Texts("en")


def files_of(sweep_, recipe=None, budget=13_000):
    """The plan of a sweep, and its files."""
    problem = build_problem(sweep_, Request(runtime=RUNTIMES[recipe] if recipe else None))
    plan = plan_within_budget(problem, budget)
    return plan, plan_artefacts(plan, sweep_, {}, "quantlab plan", T)


def test_plan_json_is_written_last_and_hashes_the_others():
    _, files = files_of(sweep(two()), "json")
    assert list(files) == ["plan.csv", "plan.html", "plan.recipe.json", "plan.json"]
    listed = json.loads(files.pop("plan.json"))["files"]
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_the_files_agree_on_every_tensor():
    plan, files = files_of(sweep(two()), "json")
    tensors = json.loads(files["plan.json"])["tensors"]
    recipe = json.loads(files["plan.recipe.json"])
    lines = files["plan.csv"].decode().splitlines()[1:]
    for each, entry, line in zip(plan.assignments, tensors, lines, strict=True):
        assert entry["tensor"] == each.tensor.name
        assert entry["format"] == each.format
        assert f'"{each.format}"' in line
        assert recipe[each.tensor.name]["n_bits"] == entry["n_bits"]
        assert f"<td>{each.tensor.name}<td>{each.format}" in files["plan.html"].decode()


@pytest.mark.parametrize("name", RUNTIMES)
def test_what_was_written_has_no_fault_and_no_recipe_of_an_earlier_plan(tmp_path, name):
    found = sweep(two(), directory=tmp_path)
    (tmp_path / "results.json").write_text("{}")
    found = found._replace(sha256=hashlib.sha256(b"{}").hexdigest())
    for runtime in RUNTIMES.values():
        (tmp_path / runtime.file).write_text("old")
    files = files_of(found, "json")[1]
    files[RUNTIMES[name].file] = files.pop("plan.recipe.json")
    write_files(tmp_path, files)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", *files}
    assert (tmp_path / RUNTIMES[name].file).read_bytes() == files[RUNTIMES[name].file]
    write_files(tmp_path, files_of(found)[1])
    assert list(plan_faults(tmp_path)) == []
    assert not (tmp_path / RUNTIMES[name].file).exists()


def test_a_recipe_is_of_one_checkpoint():
    rows = [each | {"dist": dist} for dist in ("x", "y") for each in two()]
    tensors = [
        original(name, dist=dist) for dist in ("x", "y") for name in ("a.weight", "b.weight")
    ]
    found = sweep(rows, tensors)
    assert "plan.csv" in files_of(found, budget=30_000)[1]
    with pytest.raises(
        ValueError, match=r"two sources have a 'a\.weight': a recipe is of one chec"
    ):
        files_of(found, "json", 30_000)


def test_a_recipe_needs_every_shape():
    old = original("c", sha256=None, reason="why", **{**UNSIZED, "dtype": "unknown"})
    found = sweep(two(), [*map(original, ["a.weight", "b.weight"]), old])
    assert "plan.csv" in files_of(found)[1]
    with pytest.raises(ValueError, match="an older version left tensors out without their shapes"):
        files_of(found, "json")


def test_a_name_that_is_no_unicode_can_be_written():
    rows = [*two(), row("w\udcff", "sym 8 bits", 8, 30.0)]
    for name, content in files_of(sweep(rows), "json", 40_000)[1].items():
        assert b"w\\udcff" in content, name


@pytest.fixture
def kept(tmp_path):
    """A directory with results and a plan made of them."""
    for name in ("results.json", "plan.csv"):
        (tmp_path / name).write_text(name)
    sha256 = {n: hashlib.sha256(n.encode()).hexdigest() for n in ("results.json", "plan.csv")}
    content = {"results_sha256": sha256["results.json"], "files": {"plan.csv": sha256["plan.csv"]}}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    return tmp_path


def test_a_plan_is_intact_until_something_changes(kept):
    assert list(plan_faults(kept)) == []
    assert list(plan_files(kept)) == ["plan.csv"]
    (kept / "plan.csv").write_text("")
    (kept / "results.json").write_text("")
    assert list(plan_faults(kept)) == [
        f"{kept}/plan.json is of other results than {kept}/results.json: run quantlab plan again",
        f"{kept}/plan.csv has changed: its sha256 is not the one in {kept}/plan.json",
    ]
    (kept / "plan.csv").unlink()
    assert f"{kept}/plan.csv is missing: {kept}/plan.json lists it" in list(plan_faults(kept))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": [1]}', "[" * 99999])
def test_what_is_no_plan_is_named(kept, content):
    (kept / "plan.json").write_text(content)
    assert list(plan_faults(kept)) == [f"{kept}/plan.json is no plan: run quantlab plan again"]
    assert plan_files(kept) == {}


def test_without_a_plan_there_is_no_fault(tmp_path):
    assert list(plan_faults(tmp_path)) == []


def test_files_elsewhere_are_not_of_a_plan(kept):
    content = json.loads((kept / "plan.json").read_text())
    (kept / "plan.json").write_text(json.dumps(content | {"files": {"../x": "0" * 64}}))
    assert plan_files(kept) == {}
