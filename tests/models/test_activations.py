import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import quantlab
from quantlab.models.activations import Activations
from tests.conftest import run
from tests.models.samples import draw, save_inputs, save_model, two_layers

pytestmark = pytest.mark.usefixtures("undrawn")


def read(path, inputs, **settings):
    return {each.name: each for each in Activations(path, inputs, **settings).tensors()}


def run_alone(path, name, feed):
    """The output of a node, by ONNX Runtime on a graph that ends there."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run([name], feed)[0]


@pytest.mark.parametrize("constants", [False, True])
def test_activations_are_what_flows_between_the_nodes(tmp_path, constants):
    path, inputs, weights, x = two_layers(tmp_path, constants=constants)
    found = read(path, inputs)
    assert list(found) == ["h", "r", "y", "probs"]
    for name, tensor in found.items():
        assert tensor.array == pytest.approx(run_alone(path, name, {"x": x}), abs=1e-6)
    assert found["h"].array == pytest.approx(x @ weights["w1"], abs=1e-5)


def test_a_graph_that_takes_one_sample_gives_all(tmp_path):
    path, inputs, weights, x = two_layers(tmp_path, batch=1)
    assert read(path, inputs)["h"].array == pytest.approx(x @ weights["w1"], abs=1e-5)
    nodes = [helper.make_node("MatMul", ["v", "w"], ["y"])]
    path = save_model(tmp_path / "v.onnx", nodes, {"w": draw(6, 5)}, {"v": [6]}, {"y": [5]})
    found = read(path, save_inputs(tmp_path / "v.npz", v=draw(8, 6)))
    assert found["y"].array == pytest.approx(draw(8, 6) @ draw(6, 5), abs=1e-5)


def test_constants_integers_and_bodies_are_no_activations(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["minus"])], "b", [],
        [helper.make_tensor_value_info("minus", 1, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Abs", ["h"], ["plus"])], "c", [],
        [helper.make_tensor_value_info("plus", 1, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["h"]),
        helper.make_node("Shape", ["h"], ["shape"]),
        helper.make_node("ReduceMax", ["h"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["is"], to=9),
        helper.make_node("If", ["is"], ["y"], then_branch=inner, else_branch=other),
    ]
    path = save_model(tmp_path / "m.onnx", nodes, {"w": draw(5, 6)}, {"x": ["n", 6]}, {"y": None})
    x = draw(70, 6, seed=3)
    found = read(path, save_inputs(tmp_path / "i.npz", x=x))
    assert list(found) == ["h", "most", "y"]
    h = x @ draw(5, 6).T
    assert found["y"].array == pytest.approx(-h, abs=1e-5)
    assert found["most"].shape == (3,)  # one a batch
    assert found["most"].array.max() == pytest.approx(h.max(), abs=1e-5)


def test_patterns_choose_and_mistakes_are_named(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    assert list(read(path, inputs, include=["h", "p*"])) == ["h", "probs"]
    assert list(read(path, inputs, exclude="?")) == ["probs"]
    for settings, sentence in (
        ({"include": "prob"}, r"dist\.include=prob matches none of the 4 activations of .*probs"),
        ({"exclude": "*"}, "has no activation that is chosen"),
        ({"max_bytes": "1GB"}, r"dist\.max_bytes must be a whole number of bytes above 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Activations(path, inputs, **settings)
    with pytest.raises(ValueError, match=r"take more than 1 kB: .*dist\.include=probs"):
        read(path, inputs, max_bytes=1000)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no npz file"):
        Activations(path, str(tmp_path / "none"))


def test_shapes_that_differ_are_named(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = save_model(tmp_path / "m.onnx", nodes, {}, {"x": ["n", "m"]}, {"y": ["n", "m"]})
    (tmp_path / "i").mkdir()
    for width in (3, 4):
        save_inputs(tmp_path / "i" / f"{width}.npz", x=draw(2, width))
    with pytest.raises(ValueError, match=r"'y' has the shapes \[3\] and \[4\].*dist\.exclude=y"):
        read(path, str(tmp_path / "i"))


@pytest.mark.slow
def test_activations_are_swept_as_any_other_source(tmp_path):
    path, inputs, weights, x = two_layers(tmp_path)
    done = run(
        "-m", "dist=activations", f"dist.path={path}", f"dist.inputs={inputs}", "mode=sym,asym",
        "n_bits=8", "dist.exclude=y", f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = quantlab.load(tmp_path / "s").set_index(["mode", "tensor"])
    assert {*table.index.get_level_values("tensor")} == {"h", "r", "probs"}
    alone = quantlab.measure((x @ weights["w1"]).astype(np.float32))
    assert table.sqnr_db["symmetric", "h"] == pytest.approx(alone["sqnr_db"], abs=0.05)
    assert table.sqnr_db["asymmetric", "r"] > table.sqnr_db["symmetric", "r"] + 4
    again = run(
        "-m", "dist=activations", f"dist.path={path}", f"dist.inputs={inputs}", "mode=sym,asym",
        "n_bits=8", "dist.exclude=y", f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert "resuming: 2 complete; 0 to do" in again.stdout


def test_an_activation_whose_first_axis_counts_no_samples_is_named(tmp_path):
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"])]
    path = save_model(tmp_path / "m.onnx", nodes, {}, {"x": ["n", 3]}, {"y": [3, "n"]})
    inputs = save_inputs(tmp_path / "i.npz", x=draw(5, 3))
    with pytest.raises(ValueError, match=r"'t' has the shape \[3, 5\] for 5 samples, its first"):
        read(path, inputs)
