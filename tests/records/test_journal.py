import os

import numpy as np
import pytest

from quantlab.experiment import Experiment
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.models.model import Evaluation
from quantlab.records.journal import NAME, Journal, remove_journal
from quantlab.sources.source import Source
from quantlab.sources.tensor import Tensor
from tests.models.test_model import TwoLayers

ANSWERS = [
    {"tensor": "w1", "output": "y", "kind": "logits", "rows": 1, "samples": 1}
    | {"figures": {"kl": 0.1}, "changes": [], "remark": None}
]


@pytest.mark.parametrize("line", [b"[" * 10**5, b'["w1", 1]', b'["w1", [{}]]', b'["w1", [1e999]]'])
def test_a_line_that_somebody_wrote_is_not_read(tmp_path, line):
    Journal(tmp_path, "a").add("w2", ANSWERS)
    with (tmp_path / NAME).open("ab") as file:
        file.write(line + b"\n")
    again = Journal(tmp_path, "a")
    assert again.find("w1") is None
    assert again.find("w2") == ANSWERS


def test_what_is_no_file_holds_no_run_up(tmp_path):
    os.mkfifo(tmp_path / NAME)
    Journal(tmp_path, "a").add("w1", ANSWERS)
    assert Journal(tmp_path, "a").find("w1") == ANSWERS


def test_what_is_done_is_found_again_in_the_run_of_the_same_key(tmp_path):
    Journal(tmp_path, "a").add("w1", ANSWERS)
    again = Journal(tmp_path, "a")
    assert again.find("w1") == ANSWERS
    assert again.find("w2") is None
    assert Journal(tmp_path, "b").find("w1") is None
    assert Journal(tmp_path, "a").find("w1") is None  # it was that of b since
    remove_journal(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_is_done_again(tmp_path, cut):
    journal = Journal(tmp_path, "a")
    journal.add("w1", ANSWERS)
    journal.add("w2", ANSWERS)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(tmp_path, "a")
    assert again.find("w1") == ANSWERS
    assert again.find("w2") is None or cut == 1
    again.add("w3", ANSWERS)
    assert Journal(tmp_path, "a").find("w1") == ANSWERS


class Weights(Source):
    expected = None

    def tensors(self):
        model = TwoLayers()
        for name, array in model.weights.items():
            yield Tensor(name, array)


class Stopped(TwoLayers):
    """A model that is stopped before its `n`-th answer with weights."""

    def __init__(self, n):
        super().__init__()
        self.left, self.asked = n, []

    def identity(self):
        return {"seed": 3}

    def answers(self, weights):
        if weights:
            self.asked.append(sorted(weights))
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        yield from super().answers(weights)


def test_a_run_that_was_stopped_goes_on_with_the_tensors_that_are_left(tmp_path):
    def run(model):
        evaluation = Evaluation(model, 3, each=True)
        experiment = Experiment(Weights(), Format(Symmetric(4)), 10, 1e-8, 1, evaluation=evaluation)
        return experiment.run(lambda _: Journal(tmp_path, "key"))

    with pytest.raises(KeyboardInterrupt):
        run(Stopped(3))
    resumed = Stopped(9)
    outcome = run(resumed)
    assert resumed.asked == [["w1", "w2"], ["w2"]]
    assert [answer["tensor"] for answer in outcome.answers] == [None, "w1", "w2"]
    remove_journal(tmp_path)
    assert outcome.answers == run(Stopped(9)).answers
    assert np.isfinite(outcome.answers[1]["figures"]["kl"])
