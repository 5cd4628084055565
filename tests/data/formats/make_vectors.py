"""Make the vectors beside this file: what other packages' own quantizers make of some tensors.

Run in an environment of its own, where NumPy, torch (CPU), torchao and bitsandbytes are installed:

    pip install torch==2.13.0 numpy packaging
    pip install --no-deps torchao==0.18.0 bitsandbytes==0.50.2
    python make_vectors.py

Each file holds its input ``x`` (float32), what came back, and the versions that made it.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

HERE = Path(__file__).parent
VERSIONS = np.array(
    [f"python {sys.version.split()[0]}"]
    + [f"{name} {version(name)}" for name in ("numpy", "torch", "torchao", "bitsandbytes")]
)
MX = {
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp6_e2m3": DTYPE_FP6_E2M3,
    "fp6_e3m2": DTYPE_FP6_E3M2,
    "fp4": torch.float4_e2m1fn_x2,
}


def tensor() -> np.ndarray:
    """Return a (8, 192) tensor: normal rows, heavy tails, halves, tiny values, zeros."""
    rng = np.random.default_rng(42)
    x = rng.standard_normal((8, 192))
    x[1] *= 1e-3
    x[2] = rng.standard_t(2, 192)
    x[3] = rng.integers(-24, 25, 192) / 4  # many lie half-way between two numbers of a grid
    x[4, :96] = 0
    x[5] *= np.exp2(rng.integers(-20, 20, 192))
    x[6] = np.exp2(rng.integers(-8, 8, 192))
    x[7] += 5
    return x.astype(np.float32)


def save(name: str, x: np.ndarray, **theirs: torch.Tensor) -> None:
    """Write one file."""
    arrays = {key: value.numpy() for key, value in theirs.items()}
    np.savez_compressed(HERE / f"{name}.npz", x=x, versions=VERSIONS, **arrays)


def mx(x: np.ndarray) -> None:
    """OCP MX by torchao: the scale is rounded down (FLOOR), groups of 32."""
    theirs = {}
    for name, kind in MX.items():
        made = MXTensor.to_mx(
            torch.from_numpy(x), kind, 32, scaling_mode=ScaleCalculationMode.FLOOR
        )
        theirs[f"{name}_scale"] = made.scale.view(torch.uint8)
        theirs[f"{name}_x_hat"] = made.dequantize(torch.float32)
    save("torchao_mx", x, **theirs)


def nvfp4(x: np.ndarray) -> None:
    """NVFP4 by torchao with the scale of the tensor, groups of 16.

    Without the row that would take the scales of all others to their floor.
    """
    x = np.delete(x, 5, axis=0)
    t = torch.from_numpy(x)
    unit = per_tensor_amax_to_scale(t.abs().max())
    made = NVFP4Tensor.to_nvfp4(t, 16, per_tensor_scale=unit)
    scale, x_hat = made.scale.to(torch.float32), made.dequantize(torch.float32)
    save("torchao_nvfp4", x, unit=unit, scale=scale, x_hat=x_hat)


def nf4(x: np.ndarray) -> None:
    """NF4 by bitsandbytes, blocks of 64; the first code is in the high half of a byte."""
    packed, state = bnb.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type="nf4")
    x_hat = bnb.dequantize_4bit(packed, state)
    save("bitsandbytes_nf4", x, packed=packed, absmax=state.absmax, levels=state.code, x_hat=x_hat)


if __name__ == "__main__":
    for make in (mx, nvfp4, nf4):
        make(tensor())
