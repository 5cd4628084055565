import csv
import json

import pytest

from quantlab.experiment import Experiment
from quantlab.formats.format import PLAIN, Format
from quantlab.formats.uniform import Symmetric
from quantlab.records.record import Outcome
from quantlab.sources.lab import Hidden
from tests.conftest import aggregate
from tests.report.test_aggregate import keep

pytestmark = pytest.mark.usefixtures("undrawn")

CONTEXT = ["settings", "format", "bar_top_order", "bar_rel_err", "bar_sqnr_db"]


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
