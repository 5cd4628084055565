import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantlab.experiment import Experiment
from quantlab.formats.format import PLAIN, Format
from quantlab.formats.uniform import Symmetric
from quantlab.records.collection import collect
from quantlab.records.parts import (
    WHOLE,
    Division,
    MissingParts,
    find_missing_parts,
    identify_run,
    is_part_override,
    join_parts,
    read_division,
    require_disjoint,
    whole_config,
    without_part_overrides,
)
from quantlab.records.record import Outcome
from quantlab.sources.source import Hidden
from tests.conftest import aggregate, printed
from tests.report.test_aggregate import keep

pytestmark = pytest.mark.usefixtures("undrawn")

ENTRY = Experiment(Hidden(1, 50, 0), Format(Symmetric(8)), 10, 1e-8, 1).run().tensors["hidden"]
SIZES = {"dtype": "float32", "shape": [50], "n_bytes": 200}


def outcome(measured, skipped=(), failed=()):
    """An outcome of tensors that are named by their places in the source."""
    without = {str(place): SIZES | {"place": place} for place in (*skipped, *failed)}
    return Outcome(
        {str(place): ENTRY | {"place": place} for place in measured},
        {str(place): "no" for place in failed},
        {str(place): "left out" for place in skipped},
        without,
        PLAIN,
    )


def keep_part(directory, part, of, found, n_bits=8, job=0, **config):
    keep(directory, n_bits, job, lambda: found, dist={"part": part, "parts": of}, **config)


def tensors(directory):
    return [
        each["name"] for each in json.loads((directory / "manifest.json").read_text())["tensors"]
    ]


def test_parts_read_as_one_run_in_the_order_of_the_source(tmp_path):
    keep_part(tmp_path / "a", 0, 3, outcome([3, 11], skipped=[2], failed=[0]))
    keep_part(tmp_path / "b", 1, 3, outcome([1, 9], skipped=[2, 4]))
    keep_part(tmp_path / "c", 2, 3, outcome([], skipped=[2]))
    found = aggregate(tmp_path).findings
    assert [row["tensor"] for row in found.rows] == ["1", "3", "9", "11"]
    assert found.levels == ["dist", "mode", "tensor"]
    assert found.skipped == {"2": "left out", "4": "left out"}
    assert found.unmeasured == ["0"]
    assert found.failures == {}
    assert list(found.incomplete.values()) == ["1 of 3 tensors could not be measured (no)"]
    assert tensors(tmp_path) == ["0", "1", "2", "3", "4", "9", "11"]


def test_a_combination_stands_where_its_first_part_does(tmp_path):
    for job, (n_bits, part) in enumerate([(4, 0), (2, 0), (4, 1), (2, 1)]):
        keep_part(tmp_path / str(job), part, 2, outcome([part]), n_bits, job)
    rows = aggregate(tmp_path).findings.rows
    assert [(row["n_bits"], row["tensor"]) for row in rows] == [
        (4, "0"), (4, "1"), (2, "0"), (2, "1")
    ]  # fmt: skip


def test_lacking_parts_are_a_failure_that_says_what_to_do(tmp_path):
    keep_part(tmp_path / "a", 1, 4, outcome([3]), seed=8)
    keep_part(tmp_path / "b", 0, 4, outcome([4]), seed=4)
    keep_part(tmp_path / "c", 1, 4, outcome([3]), seed=4)
    done = aggregate(tmp_path)
    assert [(each.parts, each.missing) for each in done.gaps] == [(4, (0, 2, 3)), (4, (2, 3))]
    why = "without a record: repeat its sweep in this directory with dist.part=range(4)"
    failures = {
        "hidden seed=8 in 4 parts": f"parts 0, 2, 3 {why}",
        "hidden seed=4 in 4 parts": f"parts 2, 3 {why}",
    }
    for source, reason in failures.items():
        assert f"{source} failed: {reason}\n" in printed(done)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert (verdict["meets"], verdict["failures"]) == (False, failures)
    assert json.loads((tmp_path / "manifest.json").read_text())["missing"] == verdict["failures"]


def test_parts_that_follow_each_other_are_named_as_a_span():
    missing = (0, 1, 2, 3, 5, 7, 8, 10, 11, 12)
    gap = MissingParts("hidden", ("dist=hidden", "n_bits=4"), 13, missing)
    assert gap.source == "hidden n_bits=4 in 13 parts"
    assert gap.problem == "parts 0 to 3, 5, 7, 8, 10 to 12 without a record"
    assert gap._replace(missing=(2,)).problem == "part 2 without a record"


def test_parts_of_a_file_that_has_changed_since_are_refused(tmp_path):
    one, other = (outcome([place]) for place in (0, 1))
    keep_part(tmp_path / "a", 0, 2, replace(one, listing="0" * 64))
    keep_part(tmp_path / "b", 1, 2, replace(other, listing="0" * 64))
    keep_part(tmp_path / "c", 0, 2, replace(one, listing="1" * 64), n_bits=4)  # a sweep of its own
    assert len(aggregate(tmp_path).gaps) == 1
    keep_part(tmp_path / "d", 1, 2, replace(other, listing="2" * 64), n_bits=4)
    said = r"listed other tensors for .*/c than for .*/d: repeat .* with dist.part=range\(2\)"
    with pytest.raises(ValueError, match=said):
        aggregate(tmp_path)


@pytest.mark.parametrize(
    ("division", "said"),
    [
        ((0, 2), r"part 1 of 3\) and .*/b \(part 0 of 2\) would measure the same tensors: divide"),
        ((0, 1), r"part 1 of 3\) and .*/b \(undivided\) would measure the same tensors: divide"),
        ((1, 3), r"part 1 of 3\) and .*/b \(part 1 of 3\) would measure the same tensors: divide"),
    ],
)
def test_divisions_that_clash_are_refused(tmp_path, division, said):
    keep_part(tmp_path / "a", 1, 3, outcome([]))
    keep_part(tmp_path / "b", *division, outcome([0]), job=1)
    with pytest.raises(ValueError, match=said):
        aggregate(tmp_path)


def test_another_format_may_be_divided_otherwise(tmp_path):
    keep_part(tmp_path / "a", 0, 2, outcome([0]))
    keep_part(tmp_path / "b", 1, 2, outcome([1]))
    keep_part(tmp_path / "c", 0, 1, outcome([0, 1]), n_bits=4, job=1)
    done = aggregate(tmp_path)
    assert [row["tensor"] for row in done.findings.rows] == ["0", "1", "0", "1"]
    assert done.gaps == []


def test_a_part_of_a_source_of_its_own_kind_is_a_level(tmp_path):
    for part in (1, 2):  # nothing says of how many: it is a setting like any other
        keep(tmp_path / str(part), job=part, **{"dist.part": part}, dist={"part": part})
    assert aggregate(tmp_path).findings.levels == ["dist", "mode", "dist.part"]


def test_runs_that_are_no_parts_are_left_as_they_are(tmp_path):
    keep_part(tmp_path / "a", 0, 1, outcome([0]))
    runs = collect(tmp_path).runs
    assert join_parts(runs) == runs
    assert find_missing_parts(runs) == []


def config(part=0, parts=1, **others):
    return {"dist": {"path": "w.npy", "part": part, "parts": parts}, "n_bits": 8, **others}


@pytest.mark.parametrize("dist", [None, "w.npy", {}, {"part": 1}, {"part": 0, "parts": "2"}])
def test_what_cannot_be_divided_has_no_division(dist):
    assert read_division(dist) is None


def test_a_division_is_in_the_config_of_a_source_and_in_the_name_of_its_runs():
    assert read_division(config(1, 4)["dist"]) == Division(1, 4)
    assert read_division(config(None, 1)["dist"]) == WHOLE
    assert whole_config(config(1, 4)) == {"dist": {"path": "w.npy"}, "n_bits": 8}
    assert [Division(1, 4).suffix, Division(0, 1).suffix] == ["-part-1-of-4", ""]
    asked = ["threads=2", "n_bits=4", "dist.part=1", "+dist.parts=4", "dist=file/npy"]
    assert without_part_overrides(asked) == ("dist=file/npy", "n_bits=4")
    typed = ["dist.part=1", "+dist.parts=4", "dist.path=parts", "dist.party=1", "part=1"]
    assert [is_part_override(each) for each in typed] == [True, True, False, False, False]


def test_parts_share_a_question_unless_a_setting_that_changes_figures_differs():
    def question(**others):
        return identify_run("run", "file/npy", config(**others)).config_key

    assert question(part=1, parts=4) == question(part=2, parts=4, threads=1) == question()
    assert question() != question(seed=1)
    assert question() != identify_run("run", "file/npz", config()).config_key


def test_only_parts_that_overlap_clash():
    def require(*configs):
        identities = [identify_run(str(n), "file/npy", each) for n, each in enumerate(configs)]
        require_disjoint(identities, Path("s"))

    require(config(0, 2), config(1, 2), config(0, 3, seed=1), config(0, 1, seed=2))
    require(config(), config())  # two answers of the whole: the table says so better
    for one, two in (((0, 2), (0, 3)), ((0, 2), (0, 1)), ((0, 1), (1, 2)), ((1, 2), (1, 2))):
        with pytest.raises(ValueError, match=r"^s/0 \(.*\) and s/1 \(.*\) would measure the same"):
            require(config(*one), config(*two))
