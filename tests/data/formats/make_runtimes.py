"""Make the vectors of runtimes beside this file: what their own quantizers make of one tensor.

Run by hand, for each runtime in an environment where its packages are, all on a CPU:

    pip install numpy==2.4.6 mlx==0.32.4 mlx-cpu==0.32.4
    python make_runtimes.py mlx

    pip install numpy==2.4.6 torch==2.15.0 torchao==0.18.0
    python make_runtimes.py torchao mx_rules

    pip install numpy==2.4.6 torch==2.15.0 bitsandbytes==0.50.2
    python make_runtimes.py bitsandbytes

    pip install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnx-ir==1.1.0 ml_dtypes==0.6.0
    python make_runtimes.py onnxruntime

    pip install numpy==2.4.6 torch==2.15.0 hqq==0.2.8.post1
    python make_runtimes.py hqq

    pip install numpy==2.4.6 torch==2.15.0 optimum-quanto==0.2.7
    python make_runtimes.py quanto

    pip install numpy==2.4.6 torch==2.15.0 torchvision gptqmodel==7.3.4
    python make_runtimes.py gptq

A file holds its input ``x`` (float32), the versions that made it, and what came back, float32,
under a name that says the settings.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def tensor() -> np.ndarray:
    """Return a (8, 256) tensor: normal rows, heavy tails, halves, tiny values, zeros, constants."""
    rng = np.random.default_rng(42)
    x = rng.standard_normal((8, 256))
    x[1] *= 1e-3
    x[2] = rng.standard_t(2, 256)
    x[3] = rng.integers(-24, 25, 256) / 4  # many lie half-way between two numbers of a grid
    x[4, :128], x[4, 128:160], x[4, 160:] = 0, 1.5, -0.25
    x[5] *= np.exp2(rng.integers(-20, 14, 256))
    x[6] = np.exp2(rng.integers(-8, 8, 256))
    x[7] += 5
    return x.astype(np.float32)


def save(runtime: str, packages: list[str], x: np.ndarray, theirs: dict[str, np.ndarray]) -> None:
    """Write the file of a runtime."""
    versions = [f"python {sys.version.split()[0]}"]
    versions += [f"{name} {version(name)}" for name in ("numpy", *packages)]
    np.savez_compressed(HERE / f"{runtime}.npz", x=x, versions=np.array(versions), **theirs)


def mlx() -> None:
    """mlx.core.quantize and dequantize, its CPU backend: DTYPE-BITS-GROUP_SIZE and mxfp4."""
    import mlx.core as mx

    x, theirs = tensor(), {}

    def round_trip(array: mx.array, **settings: object) -> np.ndarray:
        stored = mx.quantize(array, **settings)
        return np.array(mx.dequantize(*stored, **settings).astype(mx.float32))

    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        array = mx.array(x).astype(dtype)
        name = str(dtype).rpartition(".")[2]
        for bits in (2, 3, 4, 5, 6, 8):
            for group in (32, 64, 128) if bits == 4 else (64,):
                key = f"{name}-{bits}-{group}"
                theirs[key] = round_trip(array, bits=bits, group_size=group)
        theirs[f"{name}-mxfp4"] = round_trip(array, mode="mxfp4")
    save("mlx", ["mlx", "mlx-cpu"], x, theirs)


def torchao() -> None:
    """Tensor subclasses of torchao; int4 by the functions that Int4TilePackedTo4dTensor calls.

    int4-GROUP_SIZE, int8-DTYPE, intx-DTYPE-BITS-MAPPING-GROUP_SIZE; a group of 256 is a row.
    """
    import torch
    from torchao.quantization import quant_primitives as ao
    from torchao.quantization.granularity import PerRow
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8Tensor,
    )

    x, theirs = tensor(), {}
    narrow = torch.from_numpy(x).bfloat16()
    for group in (32, 256):  # the class itself takes a GPU, to pack
        codes = torch.int32, 0, 15
        scale, zero = ao._choose_qparams_affine_tinygemm(
            narrow, ao.MappingType.ASYMMETRIC, (1, group), *codes, None, narrow.dtype, narrow.dtype
        )
        q = ao._quantize_affine_tinygemm(narrow, [1, group], scale, zero, *codes)
        x_hat = ao._dequantize_affine_tinygemm(
            q, [1, group], scale, zero, *codes, output_dtype=narrow.dtype
        )
        theirs[f"int4-{group}"] = x_hat.float().numpy()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        array, name = torch.from_numpy(x).to(dtype), str(dtype).rpartition(".")[2]
        theirs[f"int8-{name}"] = Int8Tensor.from_hp(array, PerRow()).dequantize().float().numpy()
        for bits, group in ((2, 32), (3, 64), (4, 32), (4, 256), (5, 128), (8, 256)):
            for mapping in (ao.MappingType.SYMMETRIC, ao.MappingType.ASYMMETRIC):
                stored = IntxUnpackedToInt8Tensor.from_hp(
                    array, (1, group), getattr(torch, f"int{bits}"), mapping_type=mapping
                )
                key = f"intx-{name}-{bits}-{mapping.name.lower()}-{group}"
                theirs[key] = stored.dequantize().float().numpy()
    save("torchao", ["torch", "torchao"], x, theirs)


def mx_rules() -> None:
    """torchao's MXTensor by its other scale rules: KIND-RULE, and KIND-RULE-scale."""
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode as Rule
    from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    x, theirs = tensor(), {}
    kinds = {
        "fp8_e4m3": torch.float8_e4m3fn,
        "fp8_e5m2": torch.float8_e5m2,
        "fp6_e2m3": DTYPE_FP6_E2M3,
        "fp6_e3m2": DTYPE_FP6_E3M2,
        "fp4": torch.float4_e2m1fn_x2,
    }
    for name, kind in kinds.items():
        for rule in (Rule.RCEIL, Rule.EVEN):
            stored = MXTensor.to_mx(torch.from_numpy(x), kind, 32, scaling_mode=rule)
            key = f"{name}-{rule.value}"
            theirs[f"{key}-scale"] = stored.scale.view(torch.uint8).numpy()
            theirs[key] = stored.dequantize(torch.float32).numpy()
    save("mx_rules", ["torch", "torchao"], x, theirs)


def bitsandbytes() -> None:
    """bitsandbytes' kernels in PyTorch: KIND-DTYPE-BLOCK, KIND-DTYPE-nested, int8, dynamic.

    Its own quantize_blockwise for CPUs, in C++, looks codes up in a table of 2^16 cells, where the
    kernels for GPUs and in PyTorch take the nearest: nested magnitudes are taken from the latter.
    """
    import torch
    from bitsandbytes import functional

    x, theirs = tensor(), {}

    def nearest(array: torch.Tensor, code: torch.Tensor, blocksize: int) -> tuple:
        key = torch._C.DispatchKey.CompositeExplicitAutograd
        kernel = torch.ops.bitsandbytes.quantize_blockwise.default
        return kernel._op_dk(key, array, code, blocksize)

    def nested(stored: torch.Tensor, state: functional.QuantState) -> torch.Tensor:
        offset, code = state.absmax.mean(), functional.create_dynamic_map()
        codes, absmax = nearest(state.absmax - offset, code, 256)
        state2 = functional.QuantState(absmax, code=code, blocksize=256, dtype=torch.float32)
        both = {"quant_type": state.quant_type, "code": state.code, "blocksize": state.blocksize}
        whole = functional.QuantState(
            codes, shape=state.shape, dtype=state.dtype, offset=offset, state2=state2, **both
        )
        return functional.dequantize_4bit(stored, whole)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        array, name = torch.from_numpy(x).to(dtype), str(dtype).rpartition(".")[2]
        for kind in ("nf4", "fp4"):
            for block in (64, 128):
                stored = functional.quantize_4bit(array, blocksize=block, quant_type=kind)
                key = f"{kind}-{name}-{block}"
                theirs[key] = functional.dequantize_4bit(*stored).float().numpy()
            stored = functional.quantize_4bit(array, blocksize=32, quant_type=kind)
            theirs[f"{kind}-{name}-nested"] = nested(*stored).float().numpy()
    short = torch.from_numpy(x[:, :101].copy())
    stored = functional.quantize_4bit(short, blocksize=64, quant_type="nf4")
    theirs["nf4-short"] = functional.dequantize_4bit(*stored).numpy()
    codes, stats, _ = functional.int8_vectorwise_quant(torch.from_numpy(x).half())
    theirs["int8"] = functional.int8_vectorwise_dequant(codes, stats).numpy()
    theirs["dynamic"] = functional.create_dynamic_map().numpy()
    save("bitsandbytes", ["torch", "bitsandbytes"], x, theirs)


def onnxruntime() -> None:
    """ONNX Runtime's MatMulNBitsQuantizer, of x.T: DTYPE-BITS-BLOCK-sym or -asym.

    Read back by the model itself, which multiplies the identity with the matrix; by NumPy in
    float16, whose sums of products with zeros are exact too.
    """
    from onnx import helper, numpy_helper
    from onnxruntime import InferenceSession
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    x, theirs = tensor()[:, :240].copy(), {}  # the last block of 32 is short

    def round_trip(weight: np.ndarray, **settings: object) -> np.ndarray:
        kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
        inputs, outputs = weight.shape
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["a", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("a", kind, [inputs, inputs])],
            [helper.make_tensor_value_info("y", kind, [inputs, outputs])],
            [numpy_helper.from_array(weight, "w")],
        )
        opset = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        quantizer = MatMulNBitsQuantizer(
            model, algo_config=DefaultWeightOnlyQuantConfig(**settings)
        )
        quantizer.process()
        session = InferenceSession(quantizer.model.model.SerializeToString())
        (y,) = session.run(None, {"a": np.eye(inputs, dtype=weight.dtype)})
        return y.T.astype(np.float32)

    for dtype in (np.float32, np.float16):
        for bits in (2, 4, 8):
            for block in (32, 128):
                for symmetric in (True, False):
                    key = f"{dtype.__name__}-{bits}-{block}-{'' if symmetric else 'a'}sym"
                    settings = {"bits": bits, "block_size": block, "is_symmetric": symmetric}
                    theirs[key] = round_trip(x.T.astype(dtype).copy(), **settings)
    save("onnxruntime", ["onnx", "onnxruntime"], x, theirs)


def hqq() -> None:
    """hqq's Quantizer in float32 on a CPU, as HQQLinear calls it: DTYPE-BITS-GROUP_SIZE.

    `x` has small values, whose errors shrink to 0; ``large-`` are of 8 x. ``-zero`` are the zeros.
    """
    import torch
    from hqq.core.quantize import Quantizer, hqq_base_quant_config

    x, theirs = tensor() * np.float32(0.05), {}

    def round_trip(key: str, array: np.ndarray, bits: int, group: int, dtype: torch.dtype) -> None:
        settings = hqq_base_quant_config(bits, group)["weight_quant_params"]
        codes, meta = Quantizer.quantize(
            torch.from_numpy(array), **settings, compute_dtype=dtype, device="cpu"
        )
        theirs[f"{key}-zero"] = meta["zero"].numpy()
        meta |= {"scale": meta["scale"].to(dtype), "zero": meta["zero"].to(dtype)}
        meta["compute_dtype"] = dtype
        theirs[key] = Quantizer.dequantize(codes, meta).float().numpy()

    for bits, group in ((1, 64), (2, 64), (3, 128), (4, 64), (4, 32), (5, 64), (8, 128)):
        round_trip(f"float32-{bits}-{group}", x, bits, group, torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        round_trip(f"{str(dtype).rpartition('.')[2]}-4-64", x, 4, 64, dtype)
    round_trip("large-2-64", x * np.float32(8), 2, 64, torch.float32)
    save("hqq", ["torch", "hqq"], x, theirs)


def quanto() -> None:
    """optimum-quanto's qint2 and qint4 by its MaxOptimizer: DTYPE-BITS-GROUP_SIZE."""
    import torch
    from optimum.quanto import MaxOptimizer, qint2, qint4, quantize_weight

    x, theirs = tensor(), {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        array, name = torch.from_numpy(x).to(dtype), str(dtype).rpartition(".")[2]
        for kind, group in ((qint2, 64), (qint4, 32), (qint4, 128)):
            scale, shift = MaxOptimizer()(array, kind, 0, group)
            stored = quantize_weight(array, kind, 0, scale, shift, group, optimized=False)
            theirs[f"{name}-{kind.bits}-{group}"] = stored.dequantize().float().numpy()
    save("quanto", ["torch", "optimum-quanto"], x, theirs)


def gptq() -> None:
    """GPTQModel's GPTQ on a CPU: BITS-sym or -asym-GROUP_SIZE-ORDER, of a group of -1 a row.

    ``h`` is the upper triangle of the Hessian that it made of its inputs. Of each setting there are
    codes, and with ``-scale``, ``-zero`` and ``-group`` the scales and zero points ``(rows,
    groups)``, and the group of each column. ``static`` is desc_act with static_groups.
    """
    import gptqmodel
    import torch
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    rng = np.random.default_rng(42)
    inputs = rng.standard_normal((500, 160)) @ rng.standard_normal((160, 160))
    inputs *= np.exp(0.5 * rng.standard_normal(160))  # some channels are larger than others
    x, theirs = rng.standard_normal((16, 160)).astype(np.float32), {}
    orders = {
        "natural": {"desc_act": False, "act_group_aware": False},
        "desc_act": {"desc_act": True, "act_group_aware": False},
        "act_group_aware": {"desc_act": False, "act_group_aware": True},
        "static": {"desc_act": True, "act_group_aware": False, "static_groups": True},
    }

    def quantize(key: str, **settings: object) -> None:
        layer = torch.nn.Linear(x.shape[1], len(x), bias=False)
        layer.weight.data = torch.from_numpy(x.copy())
        task = GPTQ(layer, QuantizeConfig(**settings))
        task.quantizer.configure(perchannel=True)
        task.add_batch(torch.from_numpy(inputs.astype(np.float32))[None], None, 0)
        theirs["h"] = np.triu(task.finalize_hessian().numpy())
        x_hat, scale, zero, group, *_ = (part.numpy() for part in task.quantize()[:4])
        theirs[f"{key}-scale"], theirs[f"{key}-zero"] = scale, zero.astype(np.uint8)
        theirs[f"{key}-group"] = group.astype(np.uint8)
        theirs[key] = np.rint(x_hat / scale[:, group] + zero[:, group]).astype(np.uint8)

    for bits, group in ((4, 32), (4, 128), (3, 32), (4, -1)):
        for sym in (True, False):
            for order, settings in orders.items():
                if group > 0 or order in ("natural", "desc_act"):
                    key = f"{bits}-{'' if sym else 'a'}sym-{group}-{order}"
                    quantize(key, bits=bits, group_size=group, sym=sym, **settings)
    theirs["gptqmodel"] = np.array(gptqmodel.__version__)  # it may run from its source
    save("gptq", ["torch"], x, theirs)


if __name__ == "__main__":
    for runtime in sys.argv[1:]:
        globals()[runtime]()
