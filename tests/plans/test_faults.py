import hashlib
import json

import pytest

from quantlab.plans.faults import plan_faults, plan_files


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
