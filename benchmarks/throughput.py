"""What it costs to measure a tensor: ours beside what one would write or pick instead.

All on the same float32 normals, symmetric 8 bits, in one process and in turns; the best of the
rounds counts. Rows of packages that are not installed say so. Prints what one tensor takes, how
that grows with its size, what other dtypes take, the time of a thousand small tensors, the time to
load the compiled loops, and the memory that a 4 GB file takes.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled
from quantlab.stats.measure import measure

Array = NDArray[np.float32]

SIZES = (2**16, 2**20, 2**25)
LADDER = [2**power for power in range(10, 28)]
DTYPES = ("float32", "bfloat16", "float16", "float64")
EVERY = 2**62  # values, below which no tensor is too large for NumPy
ROUNDS = 7


def lab_script(x: Array) -> list[Any]:
    """Return the lab's five figures, from the definitions and whole arrays."""
    s = np.abs(x).max() / np.float32(127)
    q = np.clip(np.rint(x / s), -128, 127).astype(np.int8)
    x_hat = q.astype(np.float32) * s
    err = np.abs(x - x_hat)
    kept = np.abs(x) > 1e-8
    return [
        err.mean(),
        err.max(),
        (err[kept] / np.abs(x[kept])).mean(),
        np.dot(x, x_hat) / (np.linalg.norm(x) * np.linalg.norm(x_hat)),
        np.unique(q).size,
    ]


def lab_script_with_rank(x: Array) -> list[Any]:
    """Return the lab's five figures and its two top tens, sorted whole as the lab does."""
    s = np.abs(x).max() / np.float32(127)
    x_hat = np.clip(np.rint(x / s), -128, 127) * s
    return [*lab_script(x), np.argsort(x)[::-1][:10], np.argsort(x_hat)[::-1][:10]]


def with_torch(x: Array) -> list[Any]:
    """Return our figures as torch's own operations give them, percentiles of a sample as ours."""
    torch = import_module("torch")
    t = torch.from_numpy(x)
    s = t.abs().max() / 127
    q = torch.clamp(torch.round(t / s), -128, 127).to(torch.int8)
    t_hat = q.to(torch.float32) * s
    signed = t_hat - t
    err, magnitude = signed.abs(), t.abs()
    kept = magnitude > 1e-8
    counts = torch.bincount(q.to(torch.int64) + 128, minlength=256)
    shares = counts[counts > 0] / t.numel()
    sample = err[:: max(1, -(-t.numel() // 2**20))]
    power, noise = (t * t).sum(), (signed * signed).sum()
    return [
        err.mean(),
        err.max(),
        (err[kept] / magnitude[kept]).mean(),
        torch.nn.functional.cosine_similarity(t, t_hat, dim=0),
        len(shares),
        (noise / t.numel()).sqrt(),
        10 * torch.log10(power / noise),
        signed.mean(),
        torch.quantile(sample, torch.tensor([0.50, 0.95])),
        ((t != 0) & (t_hat == 0)).sum(),
        -(shares * shares.log2()).sum(),
        torch.topk(t, 11),
        torch.topk(t_hat, 10),
        torch.histc(sample, 64, 0, float(s) / 2),
    ]


def onnx_runtime() -> Callable[[Array], Any]:
    """Return QuantizeLinear and DequantizeLinear alone, one intra-op thread a core."""
    onnxruntime = import_module("onnxruntime")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("x", TensorProto.FLOAT, [None]),
            ("s", TensorProto.FLOAT, []),
            ("z", TensorProto.INT8, []),
            ("y", TensorProto.FLOAT, [None]),
        )
    ]
    graph = helper.make_graph(nodes, "round_trip", values[:3], values[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    constants = {"s": np.array(0.04, np.float32), "z": np.array(0, np.int8)}
    return lambda x: session.run(None, {"x": x} | constants)


def gguf_q8_0() -> Callable[[Array], Any]:
    """Return the round trip of llama.cpp's 8-bit blocks, in its own NumPy code, alone."""
    gguf = import_module("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    return lambda x: gguf.dequantize(gguf.quantize(x, kind), kind)


def ours(threads: int) -> Callable[[Array], Any]:
    """Return every figure, code counts, percentiles, histogram and rank."""
    return lambda x: measure(Tensor("x", x), Format(Symmetric(8)), threads=threads)


def without_numba(threads: int) -> Callable[[Array], Any]:
    """Return the same from NumPy alone."""

    def work(x: Array) -> Any:
        small, compiled.MAX_NUMPY_SIZE = compiled.MAX_NUMPY_SIZE, EVERY
        try:
            return ours(threads)(x)
        finally:
            compiled.MAX_NUMPY_SIZE = small

    return work


def copy(x: Array) -> None:
    """Copy into memory that has been written before."""
    np.copyto(warm(x.size), x)


@lru_cache
def warm(size: int) -> Array:
    """Return memory that has been written."""
    return np.ones(size, np.float32)


def contenders() -> dict[str, Callable[[Array], Any]]:
    """Return what is timed, by what it is called in the table."""
    found: dict[str, Callable[[Array], Any]] = {
        "np.copyto": copy,
        "quantlab, 1 thread": ours(1),
        "quantlab, 2 threads": ours(2),
        "quantlab without Numba, 1 thread": without_numba(1),
        "quantlab without Numba, 2 threads": without_numba(2),
        "lab script, its five figures": lab_script,
        "lab script, with its two top tens": lab_script_with_rank,
    }
    if find_spec("torch"):
        found["torch, our figures"] = with_torch
    if find_spec("onnxruntime") and find_spec("onnx"):
        found["ONNX Runtime, no figure"] = onnx_runtime()
    if find_spec("gguf"):
        found["gguf Q8_0, no figure"] = gguf_q8_0()
    return found


def best(work: dict[str, Callable[[Array], Any]], x: Array, rounds: int) -> dict[str, float]:
    """Return the ns an element that each takes in the best of some rounds, in turns."""
    seconds = {name: float("inf") for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            start = time.perf_counter()
            function(x)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: 1e9 * value / x.size for name, value in seconds.items()}


def compare() -> None:
    """Print ns an element, and at the largest size rates and ratios."""
    work, rng = contenders(), np.random.default_rng(0)
    columns = [best(work, rng.standard_normal(size, np.float32), ROUNDS) for size in SIZES]
    largest = columns[-1]
    one, mine = largest["np.copyto"], largest["quantlab, 2 threads"]
    print(f"{'':34}{'ns an element':>27} | at 2^25: {'np.copyto':>17} {'quantlab':>9}")
    head = ("2^16", "2^20", "2^25", "| M el/s", "GB/s", "= 1", "= 1")
    print(f"{'':34}" + "".join(f"{title:>9}" for title in head))
    for name in work:
        figures = "".join(f"{column[name]:9.2f}" for column in columns)
        rate = f"{1e3 / largest[name]:9.0f}{4 / largest[name]:9.2f}"
        print(f"{name:34}{figures}{rate}{largest[name] / one:9.1f}{largest[name] / mine:9.1f}")
    for package in ("torch", "onnxruntime", "gguf"):
        if not find_spec(package):
            print(f"{package} is not installed")


def ladder() -> None:
    """Print ns an element against the number of elements."""
    print("\nelements      1 thread  2 threads   ns an element")
    rng = np.random.default_rng(0)
    for size in LADDER:
        x = rng.standard_normal(size, np.float32)
        row = best({"1": ours(1), "2": ours(2)}, x, 100 if size < 2**20 else 7)
        print(f"2^{size.bit_length() - 1:<10}{row['1']:10.2f}{row['2']:11.2f}")


def dtypes() -> None:
    """Print ns an element of other dtypes."""
    ml_dtypes = import_module("ml_dtypes")
    x = np.random.default_rng(0).standard_normal(SIZES[-1], np.float32)
    print("\n2^25 elements, 2 threads   ns an element")
    for name in DTYPES:
        stored = x.astype(getattr(ml_dtypes, name, name))
        print(f"{name:24}{best({name: ours(2)}, stored, ROUNDS)[name]:16.2f}")


def loading() -> None:
    """Print what importing Numba and the compiled loops takes, once they are kept on disk."""
    code = (
        "import time, numpy, quantlab.stats.measure; start = time.perf_counter(); import numba; "
        "loaded = time.perf_counter(); import quantlab.stats.kernel; end = time.perf_counter(); "
        "print(f'Numba is imported in {loaded - start:.2f} s, its loops in {end - loaded:.2f} s')"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            for _ in range(3)]  # fmt: skip
    print(min(run.stdout.strip() for run in runs))


def many() -> None:
    """Print what a thousand tensors of a thousand elements take."""
    rng = np.random.default_rng(0)
    tensors = [Tensor(str(i), rng.standard_normal(1000, np.float32)) for i in range(1000)]
    seconds = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for tensor in tensors:
            measure(tensor, Format(Symmetric(8)), threads=2)
        seconds = min(seconds, time.perf_counter() - start)
    print(f"\n1,000 tensors of 1,000 elements: {seconds:.2f} s")


MEMORY = """
import sys, threading, time
from pathlib import Path
from quantlab.sources.numpy import Npy
from quantlab.stats.measure import measure
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.stats.compiled import engine_for

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)

(tensor,) = Npy(sys.argv[1]).tensors()
engine_for(tensor.size)  # Numba is no memory of a tensor
before = anonymous()
peak = [before]
threading.Thread(target=watch, daemon=True).start()
measure(tensor, Format(Symmetric(8)), threads=2)
print(f"{tensor.size:,} elements: {peak[0] - before:.0f} MiB beyond the mapped file")
"""


def memory() -> None:
    """Print the peak of anonymous memory while a 4 GB sparse file is measured."""
    if not Path("/proc/self/status").exists():
        print("memory is measured on Linux alone")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sparse.npy")
        values = np.lib.format.open_memmap(path, "w+", np.float32, (10**9,))
        values[:: 10**6] = np.random.default_rng(0).standard_normal(1000)
        values.flush()
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path)], check=True, capture_output=True, text=True
        )
        print(f"4 GB sparse .npy, 2 threads, {done.stdout.strip()}")


if __name__ == "__main__":
    compare()
    ladder()
    dtypes()
    many()
    loading()
    memory()
