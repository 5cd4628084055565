import json

import numpy as np
import pytest

from quantlab.experiment import Experiment
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.models import model as module
from quantlab.models.model import Evaluation
from quantlab.models.onnx import OnnxModel
from quantlab.sources.source import TenseLogits
from tests.models.samples import answer_two_layers, draw, two_layers
from tests.models.test_figures import compare


class TwoLayers:
    """A model of one's own, in NumPy; it counts how often it answers as it is."""

    def __init__(self, batch=10):
        self.weights = {"w1": draw(6, 20, seed=1), "w2": draw(20, 5, seed=2)}
        self.x, self.batch, self.times = draw(30, 6, seed=3), batch, 0

    def identity(self):
        return {"seed": 3, "id": id(self)}

    def answers(self, weights):
        self.times += not weights
        for start in range(0, len(self.x), self.batch):
            x = self.x[start : start + self.batch]
            yield {"probs": answer_two_layers(x, self.weights | weights)}


@pytest.mark.parametrize("batch", [7, 10, 30])
def test_a_model_of_one_s_own_has_the_figures_of_its_answers(batch):
    model, w1 = TwoLayers(batch), draw(6, 20, seed=9)
    (answer,) = Evaluation(model, k=3).compare({"w1": w1})
    before = answer_two_layers(model.x, model.weights)
    after = answer_two_layers(model.x, model.weights | {"w1": w1})
    expected = compare(before, after, "probabilities")
    assert answer["changes"] == [pytest.approx(change) for change in expected["changes"]]
    for key, value in expected["figures"].items():
        alike = value if value is None else pytest.approx(value, rel=1e-12)
        assert answer["figures"][key] == alike, key


def test_the_original_answers_once(monkeypatch):
    model = TwoLayers()
    for n in range(3):
        Evaluation(model, k=3).compare({"w1": draw(6, 20, seed=n)})
    assert model.times == 1
    monkeypatch.setattr(module, "MAX_CACHED_BYTES", 0)
    other = TwoLayers()
    for n in range(3):
        Evaluation(other, k=3).compare({"w1": draw(6, 20, seed=n)})
    assert other.times == 3


def test_labels_are_those_of_the_samples(tmp_path):
    model = TwoLayers()
    labels = answer_two_layers(model.x, model.weights).argmax(axis=1)
    np.save(tmp_path / "l.npy", labels)
    (answer,) = Evaluation(model, 3, labels=str(tmp_path / "l.npy")).compare({"w1": -draw(6, 20)})
    assert answer["figures"]["accuracy_before"] == 1
    assert answer["figures"]["accuracy"] < 1


def test_what_an_output_is_can_be_said():
    (answer,) = Evaluation(TwoLayers(), 3, outputs={"probs": "values"}).compare({})
    assert answer["kind"] == "values"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"outputs": {"y": "odds"}}, "model.outputs.y must be one of probabilities, logits, val"),
        ({"each": "yes"}, "model.each must be true or false, got 'yes'"),
        ({"labels": "{}/none.npy"}, "none.npy: no such file"),
        ({"labels": "{}/floats.npy"}, "must hold whole numbers from 0 up, one a sample"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path, settings, why):
    np.save(tmp_path / "floats.npy", np.zeros(3))
    if "labels" in settings:
        settings = {"labels": settings["labels"].format(tmp_path)}
    with pytest.raises(ValueError, match=why):
        Evaluation(TwoLayers(), 3, **settings)


@pytest.mark.parametrize(
    ("outputs", "n_labels", "why"),
    [
        ({"z": "values"}, None, "model.outputs.z: the model has no such output; it has probs"),
        ({}, 29, "has 29 labels for 30 samples"),
        ({}, 31, "has 31 labels for 30 samples"),
    ],
)
def test_what_does_not_fit_the_answers_is_named(tmp_path, outputs, n_labels, why):
    labels = None
    if n_labels:
        np.save(tmp_path / "l.npy", np.zeros(n_labels, int))
        labels = str(tmp_path / "l.npy")
    with pytest.raises(ValueError, match=why):
        Evaluation(TwoLayers(), 3, outputs, labels).compare({})


def test_two_models_that_do_not_answer_alike_are_named(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ANSWERS", 1)
    shorter = TwoLayers(10)
    shorter.x = shorter.x[:20]
    with pytest.raises(ValueError, match="the model answers nothing, and as it is probs"):
        Evaluation(TwoLayers(10), 3).compare({}, shorter)


def test_the_identity_changes_with_what_the_figures_depend_on(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    before = Evaluation(OnnxModel(path, inputs), 3).identity()
    assert json.loads(json.dumps(before)) == before
    np.savez(inputs, x=draw(3, 6))
    assert Evaluation(OnnxModel(path, inputs), 3).identity() != before


class Scaled(TwoLayers):
    """A model without an identity, whose answers depend on a setting."""

    def __init__(self, factor):
        super().__init__()
        self.x = factor * self.x

    def identity(self):
        return {}


def test_two_models_never_share_the_answers_of_an_original(tmp_path):
    np.save(tmp_path / "l.npy", np.zeros(30, int))
    for factor in (1, 4):
        evaluation = Evaluation(Scaled(factor), 3, labels=str(tmp_path / "l.npy"))
        assert evaluation.compare({})[0]["figures"]["kl"] == 0
    path, inputs, _, _ = two_layers(tmp_path)
    for batch in (8, 16):
        model = OnnxModel(path, inputs, batch=batch)
        config = {"path": path, "batch": batch}
        assert Evaluation(model, 3, config=config).compare({})[0]["figures"]["kl"] == 0


def test_models_of_one_config_and_identity_share_them(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    for _ in range(2):
        Evaluation(OnnxModel(path, inputs), 3, config={"path": path}).compare({})
    first = module._cached[0]
    Evaluation(OnnxModel(path, inputs), 3, config={"path": path}).compare({})
    assert module._cached == [first]


@pytest.mark.parametrize("batch", [{}, None, [1.0], {"y": [1.0]}, {"y": np.float32(1)}])
def test_what_is_no_batch_of_answers_is_named(batch):
    class Odd:
        def answers(self, _):
            yield batch

    with pytest.raises(ValueError, match=r"answers\(weights\) must yield mappings"):
        Evaluation(Odd(), 3).compare({})


def test_an_output_that_is_one_thing_and_then_another_is_named(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ANSWERS", 1)

    class Mixed:
        def answers(self, _):
            yield {"y": np.array([[1.0, 0.0]])}
            yield {"y": np.array([[5.0, -3.0]])}

    with pytest.raises(ValueError, match="has probabilities in one batch and values in another"):
        Evaluation(Mixed(), 3).compare({})
    assert Evaluation(Mixed(), 3, outputs={"y": "values"}).compare({})[0]["kind"] == "values"


def test_a_label_that_is_no_place_is_named(tmp_path):
    np.save(tmp_path / "l.npy", np.full(30, 5))
    with pytest.raises(ValueError, match="label 5 is no place of output 'probs'"):
        Evaluation(TwoLayers(), 3, labels=str(tmp_path / "l.npy")).compare({})


class BreaksDown(TwoLayers):
    """A model that answers as it is alone."""

    def answers(self, weights):
        if weights:
            raise RuntimeError("no memory")
        return super().answers(weights)


def test_a_model_that_breaks_down_costs_no_tensor():
    evaluation = Evaluation(BreaksDown(), k=3)
    form = Format(Symmetric(8))
    outcome = Experiment(TenseLogits(42, None), form, 10, 1e-8, 1, evaluation=evaluation).run()
    assert outcome.fault == "the model did not answer: RuntimeError('no memory')"
    assert len(outcome.tensors) == 1
