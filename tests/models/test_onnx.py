import json
import re
from functools import partial
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnxruntime.quantization import quantize_dynamic

import quantlab
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.models.model import Evaluation
from quantlab.models.onnx import OnnxModel
from quantlab.sources.onnx_graph import read_graph
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import reconstruct
from tests.conftest import run
from tests.models.samples import (
    answer_two_layers,
    draw,
    save_inputs,
    save_model,
    two_layers,
)
from tests.models.test_figures import compare


def answers_of(model, weights=None):
    batches = list(model.answers(weights or {}))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture(params=["given to a session", "written into the model"])
def _replaced(request, monkeypatch):
    is_given = request.param == "given to a session"
    monkeypatch.setattr("quantlab.models.onnx.MIN_GIVEN_BYTES", 0 if is_given else 2**31)


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.usefixtures("_replaced")
def test_weights_are_replaced_wherever_they_stand(tmp_path, constants):
    path, inputs, weights, x = two_layers(tmp_path, constants=constants)
    model = OnnxModel(path, inputs)
    assert answers_of(model)["probs"] == pytest.approx(answer_two_layers(x, weights), abs=1e-6)
    others = weights | {"w1": draw(6, 20, seed=9)}
    replaced = answers_of(model, {"w1": others["w1"]})["probs"]
    assert replaced == pytest.approx(answer_two_layers(x, others), abs=1e-6)


@pytest.mark.usefixtures("_replaced")
def test_a_weight_that_an_optimization_folds_is_replaced(tmp_path):
    channels = {name: draw(4, seed=n) for n, name in enumerate(("scale", "bias", "mean"))}
    weights = {"w": draw(4, 2, 3, 3), **channels, "var": np.abs(draw(4, seed=7)) + 1}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["y"]),
    ]
    shapes = {"x": ["n", 2, 8, 8]}, {"y": ["n", 4, 8, 8]}
    path = save_model(tmp_path / "m.onnx", nodes, weights, *shapes)
    x, other = draw(3, 2, 8, 8, seed=5), draw(4, 2, 3, 3, seed=6)
    rewritten = save_model(tmp_path / "r.onnx", nodes, weights | {"w": other}, *shapes)
    expected = onnxruntime.InferenceSession(rewritten).run(["y"], {"x": x})[0]
    model = OnnxModel(path, save_inputs(tmp_path / "i.npz", x=x))
    assert answers_of(model, {"w": other})["y"] == pytest.approx(expected, abs=1e-4)
    assert np.abs(answers_of(model)["y"] - expected).max() > 0.1


def test_a_graph_that_fixes_its_batch_answers_one_at_a_time(tmp_path):
    path, inputs, weights, x = two_layers(tmp_path, batch=1)
    found = answers_of(OnnxModel(path, inputs))["probs"]
    assert found == pytest.approx(answer_two_layers(x, weights), abs=1e-6)
    with pytest.raises(ValueError, match=r"the graph answers 1 at a time, not model\.batch=4"):
        answers_of(OnnxModel(path, inputs, batch=4))


def test_a_graph_without_an_axis_of_samples_answers_one_at_a_time(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    w, x = draw(6, 5), draw(8, 6, seed=1)
    path = save_model(tmp_path / "m.onnx", nodes, {"w": w}, {"x": [6]}, {"y": [5]})
    model = OnnxModel(path, save_inputs(tmp_path / "i.npz", x=x))
    assert answers_of(model)["y"] == pytest.approx(x @ w, abs=1e-5)


@pytest.mark.usefixtures("_replaced")
def test_rows_that_are_looked_up_are_replaced_and_every_output_answers(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["y"]),
        helper.make_node("Mul", ["y", "two"], ["z"]),
    ]
    places = helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ["n"])
    table, other = draw(10, 4), draw(10, 4, seed=1)
    tensors = [
        onnx.numpy_helper.from_array(table, "table"),
        onnx.numpy_helper.from_array(np.float32(2), "two"),
    ]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "yz"
    ]
    graph = helper.make_graph(nodes, "g", [places], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    inputs = save_inputs(tmp_path / "i.npz", places=np.arange(10, dtype=np.int32))
    found = answers_of(OnnxModel(str(tmp_path / "m.onnx"), inputs), {"table": other})
    assert np.array_equal(found["y"], other)
    assert np.array_equal(found["z"], 2 * other)


@pytest.mark.usefixtures("_replaced")
def test_weights_in_a_file_beside_the_model_are_replaced(tmp_path):
    path, inputs, weights, x = two_layers(tmp_path)
    model = onnx.load(path)
    (tmp_path / "e").mkdir()
    beside = str(tmp_path / "e" / "m.onnx")
    onnx.save_model(model, beside, save_as_external_data=True, location="w", size_threshold=0)
    others = weights | {"w2": draw(20, 5, seed=9)}
    found = answers_of(OnnxModel(beside, inputs), {"w2": others["w2"]})["probs"]
    assert found == pytest.approx(answer_two_layers(x, others), abs=1e-6)


def test_a_model_of_the_hub_answers_with_values_beside_it(hub, tmp_path):
    path, inputs, weights, x = two_layers(tmp_path)
    beside = tmp_path / "e.onnx"
    settings = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    onnx.save_model(onnx.load(path), beside, **settings)
    files = {f"onnx/{name}": (tmp_path / name).read_bytes() for name in ("e.onnx", "w.data")}
    hub.commit("org/model", files)
    model = OnnxModel("hf://org/model", inputs)
    for replaced in ({}, {"w2": draw(20, 5, seed=9)}):
        answers = answers_of(model, replaced)["probs"]
        assert answers == pytest.approx(answer_two_layers(x, weights | replaced), abs=1e-6)


@pytest.mark.usefixtures("_replaced")
def test_a_model_behind_a_link_as_a_cache_has_it(tmp_path, monkeypatch):
    mapped = partial(read_graph, min_mapped_bytes=0)
    monkeypatch.setattr("quantlab.models.onnx.read_graph", mapped)
    path, inputs, weights, x = two_layers(tmp_path)
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "linked.onnx"
    link.symlink_to(path)
    others = weights | {"w2": draw(20, 5, seed=9)}
    found = answers_of(OnnxModel(str(link), inputs), {"w2": others["w2"]})["probs"]
    assert found == pytest.approx(answer_two_layers(x, others), abs=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_answer(tmp_path, threads):
    path, inputs, _, _ = two_layers(tmp_path)
    plain = answers_of(OnnxModel(path, inputs, batch=4, threads=1))["probs"]
    assert np.array_equal(
        plain, answers_of(OnnxModel(path, inputs, batch=4, threads=threads))["probs"]
    )


def test_a_directory_holds_samples_of_several_lengths(tmp_path):
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
    path = save_model(tmp_path / "m.onnx", nodes, {}, {"x": ["n", "t", 3]}, {"y": ["n", 3]})
    (tmp_path / "in").mkdir()
    arrays = [draw(2, length, 3, seed=length) for length in (4, 7)]
    for n, array in enumerate(arrays):
        save_inputs(tmp_path / "in" / f"{n}.npz", x=array)
    found = answers_of(OnnxModel(path, str(tmp_path / "in")))["y"]
    assert found == pytest.approx(np.concatenate([a.mean(axis=1) for a in arrays]), abs=1e-6)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": draw(3, 6)}, "inputs.npz has no 'x': the graph takes x"),
        ({"x": draw(3, 6), "z": draw(3)}, "has an array that the graph does not take, 'z'"),
        ({"x": draw(3, 7)}, r"has 'x' as float32 [3, 7], and the graph takes float32 [?, 6]"),
        ({"x": np.array([["a"] * 6])}, "has 'x' as <U1 [1, 6], and the graph takes float32 [?, 6]"),
        (
            {"x": np.full((3, 6), 1e300)},
            "has values in 'x' that float32, which the graph takes,",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path, arrays, said):
    path, _, _, _ = two_layers(tmp_path)
    inputs = save_inputs(tmp_path / "inputs.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        answers_of(OnnxModel(path, inputs))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_quantized_file_answers_as_it_is_deployed(tmp_path):
    path, inputs, _, x = two_layers(tmp_path)
    deployed = str(tmp_path / "int8.onnx")
    quantize_dynamic(path, deployed)
    done = run(
        "-m", "dist=file/onnx", f"dist.path={path}", "mode=file/onnx", f"mode.path={deployed}",
        "model=onnx", f"model.inputs={inputs}", f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (
        np.concatenate([session.run(None, {"x": x[n : n + 32]})[0] for n in range(0, len(x), 32)])
        for session in map(onnxruntime.InferenceSession, (path, deployed))
    )
    expected = compare(before, after, "probabilities")["figures"]
    (answer,) = quantlab.answers(tmp_path / "s").to_dict("records")
    assert answer["kl"] == pytest.approx(expected["kl"], rel=1e-3)
    assert answer["format"].endswith("int8.onnx")


def test_additivity_holds_on_a_deep_network(tmp_path):
    """Small noise in each of some layers adds up: within 1.25 times, as seeds give 0.93 to 1.07."""
    widths, weights, nodes, name = [24] * 8 + [10], {}, [], "x"
    for n, (rows, columns) in enumerate(pairwise(widths)):
        weights[f"w{n}"] = draw(rows, columns, seed=n) * np.float32(np.sqrt(2 / rows))
        nodes.append(helper.make_node("MatMul", [name, f"w{n}"], [f"h{n}"]))
        nodes.append(helper.make_node("Relu", [f"h{n}"], [f"r{n}"]))
        name = f"r{n}"
    nodes[-1] = helper.make_node("Softmax", [f"h{n}"], ["y"])
    path = save_model(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 24]}, {"y": ["n", 10]})
    model = OnnxModel(path, save_inputs(tmp_path / "i.npz", x=draw(400, 24, seed=99)))
    stored = {
        name: reconstruct(Tensor(name, array), Format(Symmetric(7)))
        for name, array in weights.items()
    }

    def kl(replaced):
        return Evaluation(model, 3).compare(replaced)[0]["figures"]["kl"]

    predicted = sum(kl({name: x_hat}) for name, x_hat in stored.items())
    assert 1 / 1.25 < kl(stored) / predicted < 1.25


def test_the_identity_sees_values_beside_the_model(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    model = onnx.load(path)
    beside = str(tmp_path / "e.onnx")
    onnx.save_model(model, beside, save_as_external_data=True, location="e.bin", size_threshold=0)
    before = OnnxModel(beside, inputs).identity()
    values = np.fromfile(tmp_path / "e.bin", np.float32)
    (2 * values).tofile(tmp_path / "e.bin")
    assert OnnxModel(beside, inputs).identity() != before


def test_plain_numbers_of_a_constant_are_replaced(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0]),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]
    path = save_model(tmp_path / "m.onnx", nodes, {}, {"x": ["n", 2]}, {"y": ["n", 2]})
    model = OnnxModel(path, save_inputs(tmp_path / "i.npz", x=np.ones((1, 2), np.float32)))
    assert answers_of(model)["y"].tolist() == [[1, 2]]
    assert answers_of(model, {"c": np.float32([3, 4])})["y"].tolist() == [[3, 4]]


def test_a_weight_beyond_the_dtype_of_the_graph_is_named(tmp_path):
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w32"], ["y"]),
    ]
    w = draw(6, 5).astype(np.float16)
    path = save_model(tmp_path / "m.onnx", nodes, {"w": w}, {"x": ["n", 6]}, {"y": ["n", 5]})
    model = OnnxModel(path, save_inputs(tmp_path / "i.npz", x=draw(2, 6)))
    with pytest.raises(ValueError, match="weight 'w' comes back with values beyond float16"):
        answers_of(model, {"w": np.full((6, 5), 1e6, np.float32)})


@pytest.mark.slow
def test_a_sweep_sees_that_the_graph_of_a_stored_file_has_changed(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    deployed = str(tmp_path / "int8.onnx")
    quantize_dynamic(path, deployed)
    sweep = [
        "-m", "dist=file/onnx", f"dist.path={path}", "mode=file/onnx", f"mode.path={deployed}",
        "model=onnx", f"model.inputs={inputs}", f"hydra.sweep.dir={tmp_path}/s",
    ]  # fmt: skip
    assert run(*sweep).returncode == 0
    assert run(*sweep).stdout.startswith("resuming: 1 complete; 0 to do")
    model = onnx.load(deployed)
    model.doc_string = "another graph"
    onnx.save(model, deployed)
    assert "1 to do" in run(*sweep).stdout


def test_inputs_that_do_not_fit_are_refused_before_a_tensor_is_measured(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    np.savez(inputs, x=draw(3, 7))
    done = run(
        "dist=file/onnx", f"dist.path={path}", "model=onnx", f"model.inputs={inputs}",
        f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode == 1
    assert "the model did not answer: " in done.stderr
    (record,) = (json.loads(file.read_text()) for file in tmp_path.glob("s/*/record.json"))
    assert record["status"] == "failed"
    assert record["tensors"] == {}


def test_a_part_of_a_source_does_not_answer(tmp_path):
    path, inputs, _, _ = two_layers(tmp_path)
    done = run(
        "-m", "dist=file/onnx", f"dist.path={path}", "dist.parts=2", "dist.part=range(2)",
        "model=onnx", f"model.inputs={inputs}", f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode != 0
    assert "a model answers with all tensors: leave out dist.part and dist.parts" in done.stderr
