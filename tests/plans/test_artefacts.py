import hashlib
import json

import pytest

from quantlab.plans.artefacts import artefacts, write
from quantlab.plans.choose import within_budget
from quantlab.plans.faults import plan_faults
from quantlab.plans.runtimes.registry import RUNTIMES
from quantlab.plans.slots import Request, find_slots
from quantlab.records.manifest import UNSIZED
from quantlab.report.texts import Texts
from tests.plans.samples import original, row, sweep, two

T = Texts("en")


def made(found, recipe=None, budget=13_000):
    """The plan of a sweep, and its files."""
    plan = within_budget(find_slots(found, Request()), budget)
    return plan, artefacts(plan, found, {"recipe": recipe} if recipe else {}, "quantlab plan", T)


def test_plan_json_is_written_last_and_hashes_the_others():
    _, files = made(sweep(two()), "json")
    assert list(files) == ["plan.csv", "plan.html", "plan.recipe.json", "plan.json"]
    listed = json.loads(files.pop("plan.json"))["files"]
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_the_files_agree_on_every_tensor():
    plan, files = made(sweep(two()), "json")
    tensors = json.loads(files["plan.json"])["tensors"]
    recipe = json.loads(files["plan.recipe.json"])
    lines = files["plan.csv"].decode().splitlines()[1:]
    for each, entry, line in zip(plan.tensors, tensors, lines, strict=True):
        assert entry["tensor"] == each.tensor.name
        assert entry["format"] == each.part.format
        assert f'"{each.part.format}"' in line
        assert recipe[each.tensor.name]["n_bits"] == entry["n_bits"]
        assert f"<td>{each.tensor.name}<td>{each.part.format}" in files["plan.html"].decode()


@pytest.mark.parametrize("name", RUNTIMES)
def test_what_was_written_has_no_fault_and_no_recipe_of_an_earlier_plan(tmp_path, name):
    found = sweep(two(), directory=tmp_path)
    (tmp_path / "results.json").write_text("{}")
    found = found._replace(sha256=hashlib.sha256(b"{}").hexdigest())
    for runtime in RUNTIMES.values():
        (tmp_path / runtime.file).write_text("old")
    files = made(found, "json")[1]
    files[RUNTIMES[name].file] = files.pop("plan.recipe.json")
    write(found, files)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", *files}
    assert (tmp_path / RUNTIMES[name].file).read_bytes() == files[RUNTIMES[name].file]
    write(found, made(found)[1])
    assert list(plan_faults(tmp_path)) == []
    assert not (tmp_path / RUNTIMES[name].file).exists()


def test_a_recipe_is_of_one_checkpoint():
    rows = [each | {"dist": dist} for dist in ("x", "y") for each in two()]
    tensors = [
        original(name, dist=dist) for dist in ("x", "y") for name in ("a.weight", "b.weight")
    ]
    found = sweep(rows, tensors)
    assert "plan.csv" in made(found, budget=30_000)[1]
    with pytest.raises(
        ValueError, match=r"two sources have a 'a\.weight': a recipe is of one chec"
    ):
        made(found, "json", 30_000)


def test_a_recipe_needs_every_shape():
    old = original("c", sha256=None, reason="why", **{**UNSIZED, "dtype": "unknown"})
    found = sweep(two(), [*map(original, ["a.weight", "b.weight"]), old])
    assert "plan.csv" in made(found)[1]
    with pytest.raises(ValueError, match="an older version left tensors out without their shapes"):
        made(found, "json")


def test_a_name_that_is_no_unicode_can_be_written():
    rows = [*two(), row("w\udcff", "sym 8 bits", 8, 30.0)]
    for name, content in made(sweep(rows), "json", 40_000)[1].items():
        assert b"w\\udcff" in content, name
