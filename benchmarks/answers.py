"""What it costs to let a model answer: beside measuring alone and plain runs of ONNX Runtime.

Each time is the least of several rounds of one process, in turns. The classifier is that of the
demo; the small network computes so little for an answer that comparing them counts. Memory is that
of a process, mapped files apart, on a network of 84 million weights.
"""

import subprocess
import sys
import tempfile
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
from meters import least_seconds, peak_mib
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
ROUNDS, THREADS, BATCH = 5, 2, 32
LAYERS, CLASSES = 6, 200
DEMO = Path(".venv/demo")
CLASSIFIER = DEMO / "magika/models/standard_v3_3/model.onnx"


def write_model(folder: Path, width: int, samples: int) -> tuple[str, str]:
    """Write a deep network of layers of some width, and its inputs."""
    rng = np.random.default_rng(0)
    widths = [width] * LAYERS + [CLASSES]
    weights, nodes, x = [], [], "x"
    for n, (a, b) in enumerate(pairwise(widths)):
        values = (rng.standard_normal((a, b)) * np.sqrt(2 / a)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{n}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{n}"], [f"h{n}"]))
        nodes.append(helper.make_node("Relu", [f"h{n}"], [f"r{n}"]))
        x = f"r{n}"
    nodes[-1] = helper.make_node("Softmax", [f"h{LAYERS - 1}"], ["y"])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
    answered = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph(nodes, "g", [given], [answered], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "i.npz", x=rng.standard_normal((samples, width), np.float32))
    return str(folder / "m.onnx"), str(folder / "i.npz")


def infer(path: str, inputs: str) -> None:
    """Answer all samples once with ONNX Runtime alone, in batches as quantlab's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    x = np.load(inputs)[name]
    for start in range(0, len(x), BATCH):
        session.run(None, {name: x[start : start + BATCH]})


def experiment(path: str, inputs: str, *, each: bool | None) -> Experiment:
    """Describe a run; without a model to answer where `each` is None."""
    model = OnnxModel(path, inputs, threads=THREADS)
    evaluation = None if each is None else Evaluation(model, 10, each=each)
    form = Format(Symmetric(4), Group(size=32))
    return Experiment(Onnx(path), form, 10, 1e-8, THREADS, evaluation=evaluation)


def answer(path: str, inputs: str, *, each: bool) -> None:
    """Run with a model whose answers as it is are not cached."""
    models._cached.clear()
    experiment(path, inputs, each=each).run()


def print_times(name: str, path: str, inputs: str) -> None:
    """Print what answers take beside what they cannot do without."""
    n_weights = len(list(Onnx(path).tensors()))
    measuring = least_seconds(lambda: experiment(path, inputs, each=None).run(), ROUNDS)
    inference = least_seconds(lambda: infer(path, inputs), ROUNDS)
    whole = least_seconds(lambda: answer(path, inputs, each=False), ROUNDS)
    with_each = least_seconds(lambda: answer(path, inputs, each=True), ROUNDS)
    alone = (with_each - whole) / n_weights / inference
    print(
        f"{name:14s} {1e3 * measuring:9.0f} {1e3 * inference:12.0f} "
        f"{whole / (measuring + 2 * inference):13.2f} {alone:19.2f}"
    )


def peak(work: str, path: str, inputs: str) -> float:
    """Return the most memory of a process of its own that does some work, in MiB."""
    command = [sys.executable, __file__, work, path, inputs]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(work: str, path: str, inputs: str) -> None:
    """Do some work, and print the most memory held, mapped files apart."""
    each = work == "each"
    print(
        peak_mib(
            lambda: infer(path, inputs) if work == "infer" else answer(path, inputs, each=each)
        )
    )


def main() -> None:
    """Print the tables."""
    print("ms              measuring  one inference  run with model=  each tensor alone")
    print("                                           over both (2x)     over inference")
    if CLASSIFIER.exists():
        print_times("classifier", str(CLASSIFIER), str(DEMO / "inputs.npz"))
    with tempfile.TemporaryDirectory() as folder:
        print_times("small network", *write_model(Path(folder), 512, 2048))
        path, inputs = write_model(Path(folder), 4096, 256)
        weights = sum(tensor.size * 4 for tensor in Onnx(path).tensors()) / 2**20
        plain, whole, each = (peak(work, path, inputs) for work in ("infer", "whole", "each"))
    print(
        f"\n{weights:.0f} MiB of weights; ONNX Runtime alone holds {plain:.0f} MiB; beyond that and"
    )
    print(f"one copy of the weights a run holds {whole - plain - weights:.0f} MiB, ", end="")
    print(f"with each tensor alone {each - plain - weights:.0f} MiB")


if __name__ == "__main__":
    print_peak(*sys.argv[1:]) if sys.argv[1:] else main()
