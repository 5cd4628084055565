"""What a measurement takes in each format beside symmetric 8 bits per tensor: time, and memory."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from meters import anonymous_mib, peak_mib

from quantlab.formats.format import Codec, Format
from quantlab.formats.ranges import AbsMax
from quantlab.measurement import form_of
from quantlab.sources.calibration import CalibratedRange
from quantlab.sources.numpy import Npy
from quantlab.sources.tensor import Tensor
from quantlab.stats.compiled import engine_for
from quantlab.stats.measure import measure

WEIGHT_SCALE = np.float32(0.02)  # of the weights of a layer; HQQ takes longer over large errors
BASE = "sym"
CALIBRATION = np.random.default_rng(1).standard_normal((256, 4096), np.float32) * WEIGHT_SCALE
CALIBRATED = CalibratedRange(AbsMax(), Tensor("calibration", CALIBRATION))
FORMS: dict[
    str, tuple[dict[str, Any], float]
] = {  # how each is asked for, and how many times the time of the first it may take
    BASE: ({}, 1),
    "channel": ({"block": "channel"}, 1.5),
    "group 32": ({"block": 32}, 1.5),
    "fp8_e4m3": ({"mode": "fp8_e4m3"}, 3),
    "fp4": ({"mode": "fp4"}, 3),
    "mx/fp4": ({"mode": "mx/fp4"}, 3),
    "mx/int8": ({"mode": "mx/int8"}, 3),
    "nv/fp4": ({"mode": "nv/fp4"}, 3),
    "nf4": ({"mode": "nf4"}, 5),
    "nf4, group 64": ({"mode": "nf4", "block": 64}, 5),
    "log": ({"mode": "log"}, 5),
    "log, group 32": ({"mode": "log", "block": 32}, 5),
    "mlx/affine": ({"mode": "mlx/affine", "n_bits": 4}, 3),
    "mlx/mxfp4": ({"mode": "mlx/mxfp4"}, 5),
    "torchao/int4": ({"mode": "torchao/int4"}, 3),
    "torchao/int8": ({"mode": "torchao/int8"}, 3),
    "torchao/intx": ({"mode": "torchao/intx", "n_bits": 4}, 3),
    "bnb/nf4": ({"mode": "bnb/nf4"}, 3),
    "bnb/fp4": ({"mode": "bnb/fp4"}, 3),
    "bnb/int8": ({"mode": "bnb/int8"}, 3),
    "quanto/qint": ({"mode": "quanto/qint", "n_bits": 4}, 3),
    "onnx/matmulnbits": ({"mode": "onnx/matmulnbits", "n_bits": 4}, 5),
    "hqq/affine": ({"mode": "hqq/affine", "n_bits": 4}, 40),
    "hadamard": ({"transform": "hadamard"}, 5),
    "calibrated": ({"range": CALIBRATED}, 1.5),
    "sym 4 bits, mse": ({"n_bits": 4, "range": "mse"}, 15),
    "sym 4 bits, group 32, mse": ({"n_bits": 4, "block": 32, "range": "mse"}, 15),
}
ROUNDS = 9
SIZE = 2**25
MEMORY_SIZE = 2**26


def form(name: str) -> Format | Codec:
    """Return a format of the table."""
    return form_of(**FORMS[name][0])


def speed() -> None:
    """Print ns a value and the ratio to the first row, the best of some rounds in turns."""
    x = np.random.default_rng(0).standard_normal((SIZE // 4096, 4096), np.float32)
    x *= WEIGHT_SCALE
    seconds = dict.fromkeys(FORMS, float("inf"))
    for _ in range(ROUNDS):
        for name in FORMS:
            start = time.perf_counter()
            tensor = Tensor("x", x)
            measure(tensor, form(name).open(tensor), threads=2)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    print(f"{'2^25 values, 2 threads':28}{'ns a value':>12}{'ratio':>8}{'at most':>9}")
    for name, (_, most) in FORMS.items():
        ratio = seconds[name] / seconds[BASE]
        print(f"{name:28}{1e9 * seconds[name] / x.size:12.2f}{ratio:8.2f}{most:9}")


def peak(name: str, path: str) -> None:
    """Print the peak of memory beyond the mapped file while a tensor is measured."""
    (tensor,) = Npy(path).tensors()
    engine_for(tensor.size)  # Numba is no memory of a tensor
    before = anonymous_mib()
    most = peak_mib(lambda: measure(tensor, form(name).open(tensor), threads=2))
    print(f"{name:28}{most - before:12.0f}")


def memory() -> None:
    """Print the peak of each format, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        np.save(path, np.random.default_rng(0).standard_normal((MEMORY_SIZE // 4096, 4096), "f4"))
        print(f"\n{'2^26 values, 2 threads':28}{'MiB beyond':>12}", flush=True)
        for name in FORMS:
            if not name.endswith("mse"):
                subprocess.run([sys.executable, __file__, name, str(path)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        peak(*sys.argv[1:])
    else:
        speed()
        memory()
