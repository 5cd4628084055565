"""What llama.cpp's types and quantized files cost: time beside the library's own, and memory.

``python benchmarks/stored.py``. A type of ggml may take what the library takes, on as many threads,
and what `sym` takes. A file of several GB is measured by ``run.py``, and the peak of memory that no
file backs is watched from outside.
"""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from meters import anonymous_mib, least_seconds, peak_mib
from numpy.typing import NDArray
from safetensors.numpy import save_file

from quantlab.formats.format import Codec, Format
from quantlab.formats.ggml import Ggml
from quantlab.measurement import form_of, load_mode
from quantlab.sources.safetensors import Safetensors, SafetensorsFile
from quantlab.sources.tensor import Tensor
from quantlab.stats.compiled import engine_for
from quantlab.stats.measure import measure

ROOT = Path(__file__).parents[1]
TYPES = ("q8_0", "q4_0", "q4_k", "q6_k", "iq4_xs")
SIZE, WIDTH, THREADS, ROUNDS = 2**24, 4096, 2, 3
BIG = (8192, 8192)
LAYERS = 20  # of BIG: 2.7 GB in float16, 0.75 GB in Q4_0
PART = 2**18
WEIGHTS = 30_000  # of a mixture of experts, each with a scale


def library(ggml: Ggml, x: NDArray[np.float32]) -> None:
    """Quantize and dequantize by the library alone, on the threads that a measurement has."""
    rows = PART // WIDTH
    parts = [x[start : start + rows] for start in range(0, len(x), rows)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda part: ggml.dequantize(ggml.quantize(part)), parts))


def timed(tensor: Tensor, form: Format | Codec) -> None:
    """Measure a tensor."""
    measure(tensor, form.open(tensor), threads=THREADS)


def types() -> None:
    """Print the time of each type beside the bound."""
    x = np.random.default_rng(0).standard_normal((SIZE // WIDTH, WIDTH), np.float32)
    tensor = Tensor("x", x)
    sym = least_seconds(partial(timed, tensor, form_of("sym")), ROUNDS)
    print(f"{'2^24 values, ns a value':28}{'measured':>10}{'library':>10}{'sym':>8}{'ratio':>8}")
    for name in TYPES:
        ggml = load_mode(f"ggml/{name}", None)
        taken = least_seconds(partial(timed, tensor, ggml), ROUNDS)
        alone = least_seconds(partial(library, ggml, x), ROUNDS)
        figures = (1e9 * each / SIZE for each in (taken, alone, sym))
        print(f"ggml/{name:23}", *(f"{each:9.2f}" for each in figures), end="")
        print(f"{taken / (alone + sym):8.2f}")


def words(*shape: int) -> NDArray[np.int32]:
    """Return any words: each holds codes."""
    return np.random.default_rng(0).integers(-(2**31), 2**31, shape, dtype=np.int32)


def scales(*shape: int) -> NDArray[np.float16]:
    """Return any scales."""
    return np.random.default_rng(1).random(shape, np.float32).astype(np.float16)


def packed(kind: str) -> dict[str, NDArray[Any]]:
    """Return the parts of one large tensor of a kind of checkpoint."""
    n, m = BIG
    if kind == "AWQ":
        parts = {"qweight": words(m, n // 8), "qzeros": words(m // 128, n // 8)}
        return parts | {"scales": scales(m // 128, n)}
    if kind == "GPTQ":
        parts = {"qweight": words(m // 8, n), "qzeros": words(m // 128, n // 8)}
        return parts | {"scales": scales(m // 128, n)}
    if kind == "MLX":
        halves = {"scales": scales(n, m // 64), "biases": scales(n, m // 64)}
        return halves | {"weight": words(n, m // 8).view(np.uint32)}
    if kind == "int8":
        return {"weight": words(n, m // 4).view(np.int8), "weight_scale": scales(n, 1)}
    about = {"weight_scale": scales(n, m // 128), "weight_shape": np.array([n, m])}
    return about | {"weight_packed": words(n, m // 8)}


def kinds() -> None:
    """Print time and memory of each kind of checkpoint, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        x = np.random.default_rng(0).standard_normal(BIG, np.float32).astype(np.float16)
        save_file({"w.weight": x}, Path(folder, "original.safetensors"))
        print(f"\n{'2^26 values, 2 threads':28}{'ns a value':>12}{'MiB beyond':>12}", flush=True)
        for kind in ("AWQ", "GPTQ", "MLX", "compressed-tensors", "int8"):
            parts = {f"w.{key}": each for key, each in packed(kind).items()}
            save_file(parts, Path(folder, "packed.safetensors"))
            subprocess.run([sys.executable, __file__, kind, folder], check=True)


def kind(name: str, folder: str) -> None:
    """Print time and memory of one kind."""
    (tensor,) = Safetensors(f"{folder}/original.safetensors").tensors()
    stored = SafetensorsFile(f"{folder}/packed.safetensors").open(tensor)
    engine_for(tensor.size)  # to load Numba takes the time and memory of no tensor
    before, start = anonymous_mib(), time.perf_counter()
    peak = peak_mib(lambda: measure(tensor, stored, threads=THREADS))
    seconds = time.perf_counter() - start
    print(f"{name:28}{1e9 * seconds / tensor.size:12.2f}{peak - before:12.0f}", flush=True)


def run_peak(*arguments: str) -> tuple[float, float]:
    """Return seconds and the peak of ``run.py``."""
    start, peak = time.perf_counter(), 0.0
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_mib(str(process.pid)))
            time.sleep(0.005)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - start, peak


def whole_files() -> None:
    """Print the memory of ``run.py`` on files of several GB, beside that of a run with Numba."""
    with tempfile.TemporaryDirectory(dir=ROOT / "multirun") as folder:
        for name, ggml in (("F16", None), ("Q4_0", load_mode("ggml/q4_0", None))):
            write(Path(folder, f"{name}.gguf"), ggml)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.gguf"))
        out = f"hydra.sweep.dir={folder}/out"
        _, base = run_peak("dist=hidden", f"dist.n={2**17}", out)
        asked = f"dist.path={folder}/F16.gguf", f"mode.path={folder}/Q4_0.gguf"
        seconds, peak = run_peak("dist=file/gguf", "mode=file/gguf", *asked, out)
        print(f"\nrun.py on {size / 1e9:.1f} GB: {seconds:.0f} s, {peak - base:.0f} MiB beyond the")
        print(f"maps and the {base:.0f} MiB of a run of 131,072 values")


def write(path: Path, ggml: Ggml | None) -> None:
    """Write `LAYERS` equal tensors in float16, or in a type of ggml."""
    writer = gguf.GGUFWriter(path, "benchmark", use_temp_file=True)
    x = np.random.default_rng(0).standard_normal(BIG, np.float32).astype(np.float16)
    kind = gguf.GGMLQuantizationType[ggml.type.upper()] if ggml else None
    data = ggml.quantize(x.astype(np.float32)) if ggml else x
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def lists() -> None:
    """Print the time that the lists of a checkpoint of many small weights take, and its pairs."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"model.layers.{n // 96}.mlp.experts.{n % 96}.down_proj" for n in range(WEIGHTS)]
        codes = np.zeros((4, 8), ml_dtypes.float8_e4m3fn)
        original, stored = (Path(folder, f"{name}.safetensors") for name in ("a", "b"))
        save_file({f"{name}.weight": codes.astype(np.float16) for name in names}, original)
        scaled = {f"{name}.weight_scale_inv": np.ones((1, 1), np.float32) for name in names}
        save_file({f"{name}.weight": codes for name in names} | scaled, stored)
        listing = least_seconds(lambda: SafetensorsFile(str(stored)), ROUNDS)
        source, file = Safetensors(str(original)), SafetensorsFile(str(stored))
        pairing = least_seconds(lambda: file.bind(source), ROUNDS)
        print(f"\n{2 * WEIGHTS} tensors: listed in {listing:.2f} s, paired in {pairing:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind(*sys.argv[1:])
    else:
        lists()
        types()
        kinds()
        whole_files()
