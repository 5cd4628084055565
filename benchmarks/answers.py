"""What it costs to let a model answer: beside measuring alone and plain runs of ONNX Runtime.

Each figure is a ratio of two times of one process, in turns, the least of several rounds.
"""

import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from quantlab.experiment import Experiment
from quantlab.formats.blocks import Group
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.models import model as models
from quantlab.models.model import Evaluation
from quantlab.models.onnx import OnnxModel
from quantlab.sources.onnx import Onnx

onnxruntime = import_module("onnxruntime")
ROUNDS, THREADS = 5, 2
LAYERS, WIDTH, CLASSES, SAMPLES = 6, 512, 200, 2048


def write_model(folder: Path) -> tuple[str, str]:
    """Write a deep network of 1.7 million weights, and its inputs."""
    rng = np.random.default_rng(0)
    widths = [WIDTH] * LAYERS + [CLASSES]
    weights, nodes, x = [], [], "x"
    for n, (a, b) in enumerate(pairwise(widths)):
        values = (rng.standard_normal((a, b)) * np.sqrt(2 / a)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{n}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{n}"], [f"h{n}"]))
        nodes.append(helper.make_node("Relu", [f"h{n}"], [f"r{n}"]))
        x = f"r{n}"
    nodes[-1] = helper.make_node("Softmax", [f"h{LAYERS - 1}"], ["y"])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])
    answered = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph(nodes, "g", [given], [answered], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "i.npz", x=rng.standard_normal((SAMPLES, WIDTH), np.float32))
    return str(folder / "m.onnx"), str(folder / "i.npz")


def least(work: Callable[[], object]) -> float:
    """Return the least time of some rounds, in seconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def infer(path: str, x: np.ndarray) -> None:
    """Answer all samples once with ONNX Runtime alone, in batches as quantlab's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for start in range(0, len(x), 32):
        session.run(["y"], {"x": x[start : start + 32]})


def main() -> None:
    """Print a line for each requirement."""
    with tempfile.TemporaryDirectory() as folder:
        path, inputs = write_model(Path(folder))
        x = np.load(inputs)["x"]
        model = OnnxModel(path, inputs, threads=THREADS)

        def experiment(*, each: bool | None) -> Experiment:
            evaluation = None if each is None else Evaluation(model, 10, each=each)
            form = Format(Symmetric(4), Group(size=32))
            return Experiment(Onnx(path), form, 10, 1e-8, THREADS, evaluation=evaluation)

        def answer(*, each: bool) -> None:
            models._cached.clear()
            experiment(each=each).run()

        measuring = least(lambda: experiment(each=None).run())
        inference = least(lambda: infer(path, x))
        whole, with_each = least(lambda: answer(each=False)), least(lambda: answer(each=True))
        print(f"measuring {1e3 * measuring:.0f} ms, one inference {1e3 * inference:.0f} ms")
        ratio = whole / (measuring + 2 * inference)
        print(f"a run with model= over measuring and two inferences: {ratio:.2f}")
        alone = (with_each - whole) / LAYERS / inference
        print(f"each tensor alone over one inference: {alone:.2f}")


if __name__ == "__main__":
    main()
