import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import quantlab
from quantlab.formats.blocks import Group
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.models.activations import Activations, InputPowers, ModelInputs
from quantlab.sources.onnx import Onnx
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure
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


# As inputs of layers.


def power(importance, w):
    """The expected power of outputs of a weight, as `out_sqnr_db` has it."""
    places = np.arange(w.size)
    matrix = w.size // len(importance)
    return (importance[places // matrix, places % importance.shape[1]] * w.ravel() ** 2).sum()


def test_inputs_are_squared_and_averaged(tmp_path):
    path, inputs, weights, x = two_layers(tmp_path)
    powers = InputPowers(path, inputs)
    assert powers.name == "inputs.npz"
    hidden = np.maximum(x @ weights["w1"], 0)
    for name, into in (("w1", x), ("w2", hidden)):
        expected = np.square(into, dtype=float).mean(axis=0)[:, None]
        assert powers.of(name, weights[name].shape) == pytest.approx(expected, rel=1e-5)
    assert powers.of("w3", (6, 20)) is None


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_has_inputs_along_either_axis(tmp_path, place, trans_a, trans_b):
    k, n = 6, 5
    shape = [(n, k), (k, n)][place]
    w = draw(*(shape[::-1] if (trans_a, trans_b)[place] else shape))
    fixed = [(k, 4), (4, k)][place]  # of the other operand
    other = fixed[::-1] if (trans_a, trans_b)[1 - place] else fixed
    names = ["w", "x"] if place == 0 else ["x", "w"]
    nodes = [helper.make_node("Gemm", names, ["y"], transA=trans_a, transB=trans_b)]
    path = save_model(tmp_path / "m.onnx", nodes, {"w": w}, {"x": list(other)}, {"y": None})
    x = draw(*other, seed=1)
    found = InputPowers(path, save_inputs(tmp_path / "i.npz", x=x)).of("w", w.shape)
    squares = save_model(tmp_path / "s.onnx", nodes, {"w": w**2}, {"x": list(other)}, {"y": None})
    outputs = onnxruntime.InferenceSession(squares).run(["y"], {"x": x**2})[0]
    assert power(found, w) == pytest.approx(outputs.sum() / 4, rel=1e-4)


CONVOLUTIONS = {
    "plain": {},
    "padded": {"pads": [1, 2, 0, 1]},
    "strided": {"pads": [1, 1, 1, 1], "strides": [2, 3]},
    "dilated": {"dilations": [2, 1], "pads": [0, 1, 2, 0]},
    "same, upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same, lower": {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
    "valid": {"auto_pad": "VALID", "strides": [2, 1]},
    "groups": {"group": 2, "pads": [1, 1, 1, 1]},
    "depthwise": {"group": 4, "pads": [1, 0, 1, 0]},
}


@pytest.mark.parametrize("attributes", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_of_squares_has_the_power(tmp_path, attributes):
    w = draw(8, 4 // attributes.get("group", 1), 3, 2, seed=2)
    shapes = {"x": ["n", 4, 9, 8]}, {"y": None}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    path = save_model(tmp_path / "m.onnx", nodes, {"w": w}, *shapes)
    x = draw(40, 4, 9, 8, seed=3)
    found = InputPowers(path, save_inputs(tmp_path / "i.npz", x=x)).of("w", w.shape)
    squares = save_model(tmp_path / "s.onnx", nodes, {"w": w**2}, *shapes)
    outputs = onnxruntime.InferenceSession(squares).run(["y"], {"x": x**2})[0]
    assert power(found, w) == pytest.approx(outputs.mean(axis=(0, 2, 3)).sum(), rel=1e-4)


def test_layers_that_share_a_weight_are_averaged(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    w, x = draw(6, 6), draw(5, 6, seed=1)
    path = save_model(tmp_path / "m.onnx", nodes, {"w": w}, {"x": ["n", 6]}, {"y": None})
    found = InputPowers(path, save_inputs(tmp_path / "i.npz", x=x)).of("w", w.shape)
    expected = np.square(np.concatenate([x, x @ w])).mean(axis=0)
    assert found[:, 0] == pytest.approx(expected, rel=1e-4)


def test_groups_along_inputs_have_the_importance_of_their_columns():
    w, importance = draw(16, 12), np.square(draw(16, 1, seed=1))
    along = Format(Symmetric(4), Group(size=8, axis=0))
    rows = Format(Symmetric(4), Group(size=8))
    moved = measure(Tensor("w", w), along, importance=importance)
    turned = Tensor("w", np.ascontiguousarray(w.T))
    expected = measure(turned, rows, importance=importance.reshape(1, -1))
    assert moved["measured"] == expected["measured"]


@pytest.mark.slow
def test_the_error_of_outputs_is_that_of_the_model_s_own_inputs(tmp_path):
    path, inputs, weights, x = two_layers(tmp_path)
    source = ["dist=file/onnx", f"dist.path={path}", f"metrics.inputs={inputs}", "n_bits=4"]
    done = run("-m", *source, "mode=sym", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 0, done.stderr
    table = quantlab.load(tmp_path / "s").set_index("tensor")
    (tensor, _) = Onnx(path).tensors()
    assert tensor.name == "w1"
    w = weights["w1"].astype(float)
    scale = np.abs(w).max() / 7
    error = np.rint(w / scale) * scale - w
    expected = 10 * np.log10(np.square(x @ w).sum() / np.square(x @ error).sum())
    assert table.out_sqnr_db["w1"] == pytest.approx(expected, abs=1e-3)
    assert table.out_sqnr_db.notna().all()
    again = run("-m", *source, "mode=sym", f"hydra.sweep.dir={tmp_path}/s")
    assert "resuming: 1 complete; 0 to do" in again.stdout
    save_inputs(tmp_path / "inputs.npz", x=x * 2)
    changed = run("-m", *source, "mode=sym", f"hydra.sweep.dir={tmp_path}/s")
    assert "resuming: 1 changed; 1 to do" in changed.stdout


@pytest.mark.parametrize("limit", [2**30, 1])
def test_the_gram_matrix_is_that_of_what_flows_in(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(
        "quantlab.models.activations.GRAM_BYTES", limit
    )  # all at once, or one by one
    path, inputs, weights, x = two_layers(tmp_path)
    known = ModelInputs(path, inputs)
    hidden = np.maximum(x @ weights["w1"], 0)
    for name, into in (("w1", x), ("w2", hidden)):
        tensor = Tensor(name, weights[name], input_axis=0)
        assert known.width(tensor) == into.shape[1]
        expected = into.T.astype(float) @ into.astype(float)
        assert known.gram(tensor) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert len(known.identity(tensor)) == 64
    other = Tensor("w3", weights["w1"])
    assert known.width(other) is known.gram(other) is known.identity(other) is None


@pytest.mark.parametrize(
    "block", [[], ["block=channel", "block.axis=1"], ["block=group", "block.axis=input"]]
)
def test_the_model_s_own_inputs_round_its_weights(tmp_path, block):
    path, inputs, weights, x = two_layers(tmp_path)
    done = run(
        "-m", "dist=file/onnx", f"dist.path={path}", f"rounding.inputs={inputs}", "n_bits=3",
        "mode=sym", "rounding=nearest,gptq", *block, f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = quantlab.load(tmp_path / "s").set_index(["rounding", "tensor"])
    decibels = table.out_sqnr_db.unstack("rounding")
    assert (decibels["gptq"] > decibels["nearest"]).all()
    own = "tensor" if not block else "channel" if "block=channel" in block else 32
    measured = quantlab.measure(weights["w1"].T, n_bits=3, block=own, rounding="gptq", inputs=x)[
        "out_sqnr_db"
    ]
    assert decibels["gptq"]["w1"] == pytest.approx(measured, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["metrics.inputs=none.npz"], "none.npz: no such file"),
        (["metrics.inputs={inputs}", "metrics.imatrix=x.gguf"], "leave one out"),
    ],
)
def test_inputs_of_nothing_are_refused(tmp_path, overrides, sentence):
    path, inputs, _, _ = two_layers(tmp_path)
    named = [text.format(inputs=inputs) for text in overrides]
    source = ["dist=file/onnx", f"dist.path={path}"]
    done = run(*source, *named, f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 1
    assert sentence in done.stderr


def test_inputs_that_are_not_finite_are_named(tmp_path):
    path, _, weights, x = two_layers(tmp_path)
    known = ModelInputs(path, save_inputs(tmp_path / "large.npz", x=x * 1e38))
    with pytest.raises(ValueError, match=r"tensor 'w2' has inputs, 'r' of .*NaN or Inf"):
        known.gram(Tensor("w2", weights["w2"], input_axis=0))
