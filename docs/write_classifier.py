"""Write a small classifier, inputs and their labels: ``write_classifier.py DIR``.

Twenty kinds of points around centres in 32 dimensions; three layers, of which the last is fitted to
other points of the kinds. It answers in probabilities; ``weights.npz`` has its weights apart,
``captured.npz`` the inputs of each for those other points.
"""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

KINDS, INPUTS, HIDDEN, SAMPLES = 20, 32, 64, 500
SPREAD, SHARPNESS = 1.1, 10.0  # of the points around their centres, of the answers


def draw_points(rng: np.random.Generator, centres: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Return points around centres, float32, and which centre each is of."""
    kinds = rng.integers(KINDS, size=n)
    points = centres[kinds] + SPREAD * rng.standard_normal((n, INPUTS))
    return points.astype(np.float32), kinds


def save_classifier(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write ``softmax(relu(relu(x @ w1) @ w2) @ w3)``."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("MatMul", ["r2", "w3"], ["y"]),
        helper.make_node("Softmax", ["y"], ["kinds"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])]
    outputs = [helper.make_tensor_value_info("kinds", TensorProto.FLOAT, ["n", KINDS])]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    centres = rng.standard_normal((KINDS, INPUTS))
    shapes = {"w1": (INPUTS, HIDDEN), "w2": (HIDDEN, HIDDEN)}
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in shapes.items()
    }
    points, kinds = draw_points(rng, centres, 4000)
    captured = {"w1": points, "w2": np.maximum(points @ weights["w1"], 0)}
    captured["w3"] = hidden = np.maximum(captured["w2"] @ weights["w2"], 0)
    fitted = np.linalg.lstsq(hidden, SHARPNESS * np.eye(KINDS)[kinds], rcond=None)[0]
    weights["w3"] = fitted.astype(np.float16).astype(np.float32)  # alike whatever library fitted it
    save_classifier(folder / "classifier.onnx", weights)
    np.savez(folder / "weights.npz", **weights)
    np.savez(folder / "captured.npz", **captured)
    points, kinds = draw_points(rng, centres, SAMPLES)
    np.savez(folder / "inputs.npz", x=points)
    np.save(folder / "labels.npy", kinds)
