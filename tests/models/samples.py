"""Models that tests write, and inputs that they answer."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 17)]


def save_model(path, nodes, weights, inputs, outputs, constants=()):
    """Write a graph; `inputs` and `outputs` map names to shapes, `constants` stand in nodes."""
    nodes = [
        *(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
            for name, array in dict(constants).items()
        ),
        *nodes,
    ]
    infos = [
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in of.items()
        ]
        for of in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", *infos, tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=OPSETS, ir_version=8).SerializeToString()
    )
    return str(path)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save_inputs(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def two_layers(folder, *, constants=False, batch="n", output="probs"):
    """A network of two layers whose answers are probabilities, with its weights and inputs."""
    weights = {"w1": draw(6, 20, seed=1), "w2": draw(20, 5, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
        helper.make_node("Softmax", ["y"], [output]),
    ]
    split = ({}, weights) if constants else (weights, {})
    path = save_model(
        folder / "model.onnx", nodes, split[0], {"x": [batch, 6]}, {output: [batch, 5]}, split[1]
    )
    x = draw(70, 6, seed=3)
    return path, save_inputs(folder / "inputs.npz", x=x), weights, x


def answer_two_layers(x, weights):
    """The same network in NumPy, in float64."""
    w1, w2 = (weights[name].astype(np.float64) for name in ("w1", "w2"))
    y = np.maximum(x @ w1, 0) @ w2
    odds = np.exp(y - y.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
