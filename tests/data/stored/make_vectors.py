"""Make the vectors beside this file: small checkpoints as the packages themselves store them.

Run by hand, in an environment of its own (CPU only), never by the tests:

    pip install torch==2.13.0 transformers==5.24.0 bitsandbytes==0.50.2 accelerate==1.15.0
    pip install compressed-tensors==0.20.0 numpy==2.4.6 safetensors==0.8.0
    pip install --no-deps mlx==0.32.4 mlx-cpu==0.32.4 torchao==0.18.0
    pip install 'setuptools>=84.2.1,<85' wheel
    pip install --no-deps --no-build-isolation autoawq==0.2.9 gptqmodel==7.7.0
    pip install --no-deps pypcre tokenicer logbar device-smi threadpoolctl datasets dill defuser \
        pillow requests urllib3 certifi    # what `import gptqmodel` asks for
    python make_vectors.py

Each folder holds ``model.safetensors`` and ``config.json`` as such a checkpoint ships them, and
``expected.npz``: float32, ``NAME.weight`` as the package's own dequantizer returns it, and
``NAME.weight.original``, what was quantized. "Rounds to" tells what the package does last; all
else is exact in float32, so float32 of (code - zero) * scale, rounded so, is equal bit for bit,
but for the exceptions named here.

======  =============================================================  =========================
folder  made and dequantized by                                        arithmetic
======  =============================================================  =========================
awq-*   autoawq WQLinear_GEMM.from_linear, dequantize_gemm             rounds to float16
gptq-*  gptqmodel TorchLinear.pack, dequantize_weight; v1 is made and  rounds to float16
        read with its convert_gptq_v2_to_v1 and _v1_to_v2
ct-*    compressed-tensors compress and decompress                     in the dtype of the scale;
                                                                       rounds to it
bnb-*   bitsandbytes Linear4bit, Linear8bitLt and their state_dict;    see `bnb_4bit`, `bnb_int8`
        dequantize_4bit, int8_vectorwise_dequant
mlx-*   mlx quantize, dequantize                                       see `mlx_affine`, `mlx_mode`
fp8-*   transformers finegrained_fp8: Fp8Quantize, Fp8Dequantize,      float32
        _dequantize_fp8_weight
mxfp4   blocks and scales by mlx, dequantized by transformers          exact in bfloat16
tao-*   torchao quantize_, flatten_tensor_state_dict, dequantize       each step in the dtype that
                                                                       the metadata name
======  =============================================================  =========================

autoawq's ``__init__`` wants packages that are of no use here, so its modules are loaded without.
GPTQ's scales and zeros are plain rounding to nearest, without the algorithm that minimizes the
error: the packing is the same.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import mlx.core as mx
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from gptqmodel import QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT
from gptqmodel.utils.model import (
    convert_gptq_v1_to_v2_format_module,
    convert_gptq_v2_to_v1_format_module,
)
from safetensors.torch import save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    quantize_,
)
from transformers import BitsAndBytesConfig
from transformers.integrations import finegrained_fp8
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = Path(__file__).parent
LAYER = "model.layers.0.mlp.down_proj"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def weight(rows: int, columns: int) -> torch.Tensor:
    """Return normal weights in float16, a few of them outliers, the first eight rows above 0."""
    w = np.random.default_rng(0).standard_normal((rows, columns)) * 0.02
    w[::5, ::17] *= 8
    w[:8] = np.abs(w[:8]) + 0.001
    return torch.from_numpy(w).to(torch.float16)


def write(name: str, config: dict, expected: dict[str, torch.Tensor]) -> None:
    """Write what lies beside the tensors of a checkpoint."""
    (HERE / name / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    arrays = {key: value.to(torch.float32).numpy() for key, value in expected.items()}
    np.savez_compressed(HERE / name / "expected.npz", **arrays)


def save(name: str, tensors: dict, method: dict, x_hat: torch.Tensor, x: torch.Tensor) -> None:
    """Write the checkpoint of one layer, whose tensors are named `weight`, `scales`, ..."""
    (HERE / name).mkdir(exist_ok=True)
    tensors = {f"{LAYER}.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(tensors, HERE / name / "model.safetensors", metadata={"format": "pt"})
    expected = {f"{LAYER}.weight": x_hat, f"{LAYER}.weight.original": x}
    write(name, {"model_type": "llama", "quantization_config": method}, expected)


def linear(w: torch.Tensor) -> torch.nn.Linear:
    """Return a layer of these weights."""
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    layer.weight.data = w
    return layer


def ranges(w: torch.Tensor, size: int, bits: int, sym: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales and zero points of a row's groups, [out, groups], codes from 0."""
    groups = w.float().unflatten(1, (-1, size))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    if sym:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / (2**bits - 1)).to(torch.float16).float()
    zero = torch.full_like(scale, 2 ** (bits - 1)) if sym else torch.round(-low / scale)
    return scale, zero.clamp(0, 2**bits - 1)


def awq(name: str, size: int) -> None:
    """4 bits with zero points; eight columns share a word in the order 0 2 4 6 1 3 5 7."""
    for part in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
        stub = ModuleType(part)
        root = Path(importlib.util.find_spec("transformers").origin).parents[1]
        stub.__path__ = [str(root / part.replace(".", "/"))]
        sys.modules.setdefault(part, stub)
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    w = weight(32, 256)  # from_linear asks for a multiple of 32 rows
    scale, zero = ranges(w, size, 4, sym=False)
    low, high = -zero * scale, (15 - zero) * scale  # from_linear lets greater codes spill over
    fits = w.float().clamp(low.repeat_interleave(size, 1), high.repeat_interleave(size, 1))
    made = WQLinear_GEMM.from_linear(
        linear(fits), 4, size, scales=scale.t().contiguous(), zeros=zero.t().contiguous()
    )
    x_hat = dequantize_gemm(made.qweight, made.qzeros, made.scales, 4, size).t()
    method = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    method |= {"version": "gemm", "modules_to_not_convert": None}
    save(name, made.state_dict(), method, x_hat, w)


def gptq(
    name: str, bits: int, size: int, *, sym: bool, v2: bool = False, order: bool = False
) -> None:
    """Format v1 stores zero - 1: as a difference of whole words, so that a field below 0 borrows
    from the next (gptq-4-asym-order has such zeros); of 3 bits, each field modulo 8.
    """
    w = weight(32, 128)
    index = torch.arange(128, dtype=torch.int32) // size
    by_group = torch.arange(128)
    if order:
        index = index[torch.from_numpy(np.random.default_rng(1).permutation(128))]
        by_group = torch.argsort(index, stable=True)
    scale, zero = ranges(w[:, by_group], size, bits, sym)
    options = {"bits": bits, "group_size": size, "sym": sym, "desc_act": order}
    layer = TorchLinear(in_features=128, out_features=32, **options)
    layer.pack(linear(w.float()), scale, zero, index)
    form = FORMAT.GPTQ_V2 if v2 else FORMAT.GPTQ
    config = QuantizeConfig(format=form, act_group_aware=False, **options)
    if not v2:
        convert_gptq_v2_to_v1_format_module(layer, config)
    tensors = {key: getattr(layer, key).clone() for key in ("qweight", "qzeros", "scales", "g_idx")}
    if not v2:
        convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    method = {key: value for key, value in config.to_dict().items() if key != "meta"}
    save(name, tensors, method, layer.dequantize_weight().t(), w)


def compressed(
    name: str, form: str, *, scale: torch.dtype = torch.float16, act: bool = False, **options
) -> None:
    """Scales are in the dtype `scale`; `act` adds the activations that a form asks for.

    pack-quantized: codes and zero points plus 2**(bits - 1), zero points packed along the rows
    [out * bits / 32, groups]; fields of 3 bits go on across words. The other integers: int8, as
    they are. NVFP4: the scale of a group is divided by that of the tensor in float32, and the
    product, in float32, rounds to bfloat16.
    """
    args = QuantizationArgs(**options)
    activations = QuantizationArgs(num_bits=8, type=args.type, strategy="token", dynamic=True)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=activations if act else None
    )
    w = weight(32, 128).to(scale)
    groups = w.unflatten(1, (-1, args.group_size)) if args.group_size else w[:, None]
    if args.strategy == "tensor":
        groups = w.reshape(1, 1, -1)
    tensors, unit = {"weight": w}, None
    if args.strategy == "tensor_group":
        unit = generate_gparam(w.min(), w.max())
        tensors["weight_global_scale"] = unit
    low, high = groups.amin(2), groups.amax(2)
    found, zero = calculate_qparams(low, high, args, global_scale=unit)
    shape = (1,) if args.strategy == "tensor" else found.shape
    tensors |= {"weight_scale": found.reshape(shape), "weight_zero_point": zero.reshape(shape)}
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(tensors, scheme)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status="compressed"
    )
    method = config.model_dump(mode="json")
    save(name, stored, method, compressor.decompress(stored, scheme)["weight"], w)


def bnb_4bit(name: str, kind: str, nested: bool, dtype: torch.dtype) -> None:
    """Blocks of 64 over the flat weight; the level times absmax in float32, rounded to `dtype`.

    Nested: absmax is nested_quant_map[code] * nested_absmax, rounded to float32, + offset, rounded.
    """
    w = weight(24, 128).to(dtype)
    layer = bnb.nn.Linear4bit(128, 24, bias=False, quant_type=kind, compress_statistics=nested)
    layer.weight = bnb.nn.Params4bit(
        w, requires_grad=False, quant_type=kind, blocksize=64, compress_statistics=nested
    )
    layer = layer.to("cpu")
    x_hat = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested
    )
    save(name, layer.state_dict(), config.to_dict(), x_hat, w)


def bnb_int8(name: str) -> None:
    """Rows; code * SCB * float32(1 / 127), each product rounded to float32."""
    w = weight(24, 96)
    layer = bnb.nn.Linear8bitLt(96, 24, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False)
    tensors = layer.to("cpu").state_dict()
    x_hat = bnb.functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])
    save(name, tensors, BitsAndBytesConfig(load_in_8bit=True).to_dict(), x_hat, w)


def save_mlx(name: str, parts: dict, how: dict, hats: dict, x: mx.array) -> None:
    """Write a checkpoint of mlx, with all that its dequantizer returned."""
    (HERE / name).mkdir(exist_ok=True)
    tensors = {f"{LAYER}.{key}": value for key, value in parts.items()}
    mx.save_safetensors(str(HERE / name / "model.safetensors"), tensors, {"format": "mlx"})
    expected = {f"{LAYER}.weight{end}": hat for end, hat in ({"": None} | hats).items()}
    expected[f"{LAYER}.weight.original"] = x
    arrays = {
        key: torch.from_numpy(np.array(value.astype(mx.float32))) for key, value in expected.items()
    }
    config = {"model_type": "llama", "quantization": how, "quantization_config": how}
    write(name, config, arrays)


def mlx_affine(name: str, bits: int, size: int, dtype: mx.Dtype) -> None:
    """code * scale + bias in the dtype of the scales, product and sum each rounded to it.

    Beside it ``NAME.weight.float32``: the same of scales and biases turned to float32 first.
    """
    x = mx.array(weight(16, 128).numpy()).astype(dtype)
    codes, scales, biases = mx.quantize(x, group_size=size, bits=bits)
    exact = scales.astype(mx.float32), biases.astype(mx.float32)
    hats = {
        "": mx.dequantize(codes, scales, biases, size, bits),
        ".float32": mx.dequantize(codes, *exact, size, bits),
    }
    parts = {"weight": codes, "scales": scales, "biases": biases}
    save_mlx(name, parts, {"group_size": size, "bits": bits}, hats, x)


def mlx_mode(name: str, mode: str, size: int, bits: int) -> None:
    """No biases; scales are uint8: powers of two (E8M0), nvfp4's E4M3. All exact in bfloat16."""
    x = mx.array(weight(16, 128).numpy()).astype(mx.bfloat16)
    codes, scales = mx.quantize(x, mode=mode)
    hats = {"": mx.dequantize(codes, scales, mode=mode)}
    how = {"group_size": size, "bits": bits, "mode": mode}
    save_mlx(name, {"weight": codes, "scales": scales}, how, hats, x)


def fp8_rows(name: str, per: str, method: dict) -> None:
    """One scale (a scalar) or one for each row ([out, 1]), named `weight_scale`."""
    w = weight(24, 96)
    top = w.float().abs().amax(1, keepdim=True) if per == "row" else w.float().abs().max()
    scale = top / 448
    codes = (w.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    x_hat = finegrained_fp8.Fp8Dequantize(None)._dequantize_one(codes, scale)
    save(name, {"weight": codes, "weight_scale": scale}, method, x_hat, w)


def fp8_blocks(
    name: str, shape: tuple[int, int], block: list[int], scale_fmt: str = "float"
) -> None:
    """Scales of blocks, `weight_scale_inv`, that multiply all the same; the last may be partial.

    Fp8Dequantize takes the shape of a block from the scales, not from the config, so of partial
    blocks it makes other blocks: there, as in a backward pass, _dequantize_fp8_weight.
    """
    w = weight(*shape)
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    method |= {"weight_block_size": block}
    if scale_fmt != "float":
        method["scale_fmt"] = scale_fmt
    settings = SimpleNamespace(weight_block_size=block, scale_fmt=scale_fmt)
    quantize = finegrained_fp8.Fp8Quantize(SimpleNamespace(quantization_config=settings))
    short = [-length % size for length, size in zip(w.shape, block, strict=True)]
    padded = torch.nn.functional.pad(w, (0, short[1], 0, short[0]))
    made = quantize.convert({"weight": padded})
    made["weight"] = made["weight"][: shape[0], : shape[1]]
    pair = made["weight"], made["weight_scale_inv"]
    if any(short):
        x_hat = finegrained_fp8._dequantize_fp8_weight(*pair, block, torch.float32)
    else:
        x_hat = quantize.reverse_op._dequantize_one(*pair, output_dtype=torch.float32)
    save(name, made, method, x_hat, w)


def mxfp4(name: str) -> None:
    """Experts of gpt-oss: blocks [experts, out, groups, 16], scales [experts, out, groups].

    The first code is in the low half of a byte. transformers gives the model the transposed
    weight, [experts, in, out]; here ``EXPERTS`` is that, and so is ``EXPERTS.original``.
    """
    w = weight(2 * 48, 96).unflatten(0, (2, 48))
    codes, scales = mx.quantize(mx.array(w.numpy()).astype(mx.bfloat16), mode="mxfp4")
    blocks = torch.from_numpy(np.array(codes).view(np.uint8).reshape(2, 48, 3, 16))
    exponents = torch.from_numpy(np.array(scales))
    (HERE / name).mkdir(exist_ok=True)
    tensors = {f"{EXPERTS}_blocks": blocks, f"{EXPERTS}_scales": exponents}
    save_file(tensors, HERE / name / "model.safetensors", metadata={"format": "pt"})
    x_hat = convert_moe_packed_tensors(blocks, exponents)
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
    skipped += ["model.embed_tokens", "lm_head"]
    method = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    config = {"model_type": "gpt_oss", "quantization_config": method}
    write(name, config, {EXPERTS: x_hat, f"{EXPERTS}.original": w.transpose(1, 2)})


def torchao_kind(name: str, method: Any, dtype: torch.dtype) -> None:
    """Codes of a byte each; the class and its blocks stand in the metadata of the file."""
    w = weight(32, 256).to(dtype)
    model = torch.nn.ModuleDict({"layer": linear(w)})
    quantize_(model, method)
    tensors, metadata = flatten_tensor_state_dict({f"{LAYER}.weight": model["layer"].weight})
    (HERE / name).mkdir(exist_ok=True)
    save_file(tensors, HERE / name / "model.safetensors", metadata=metadata)
    expected = {f"{LAYER}.weight": model["layer"].weight.dequantize()}
    config = {"model_type": "llama", "quantization_config": {"quant_method": "torchao"}}
    write(name, config, expected | {f"{LAYER}.weight.original": w})


def main() -> None:
    """Write all vectors."""
    per_group, fp8 = {"granularity": PerGroup(64)}, Float8WeightOnlyConfig()
    torchao_kind("tao-int8", Int8WeightOnlyConfig(), torch.bfloat16)
    asymmetric = {"mapping_type": MappingType.ASYMMETRIC, "granularity": PerAxis(0)}
    intx = IntxWeightOnlyConfig(weight_dtype=torch.int4, **per_group)
    torchao_kind("tao-int4", intx, torch.bfloat16)
    intx = IntxWeightOnlyConfig(weight_dtype=torch.int3, **asymmetric)
    torchao_kind("tao-int3-asym", intx, torch.float16)
    torchao_kind("tao-fp8", fp8, torch.bfloat16)
    awq("awq-g32", 32)
    awq("awq-g128", 128)
    gptq("gptq-4-sym", 4, 32, sym=True)
    gptq("gptq-4-asym-order", 4, 32, sym=False, order=True)
    gptq("gptq-4-v2", 4, 64, sym=False, v2=True)
    for bits in (2, 3, 8):
        gptq(f"gptq-{bits}-sym", bits, 32, sym=True)
    gptq("gptq-3-asym-v2", 3, 32, sym=False, v2=True)
    group = {"strategy": "group", "symmetric": True}
    compressed("ct-pack-4-sym", "pack-quantized", num_bits=4, group_size=32, **group)
    compressed(
        "ct-pack-4-asym", "pack-quantized", num_bits=4, group_size=64, strategy="group",
        symmetric=False, scale=torch.bfloat16,
    )  # fmt: skip
    compressed("ct-pack-3-sym", "pack-quantized", num_bits=3, group_size=32, **group)
    compressed("ct-pack-8-channel", "pack-quantized", num_bits=8, strategy="channel")
    compressed("ct-int8", "int-quantized", num_bits=8, strategy="channel", act=True)
    compressed(
        "ct-naive-asym", "naive-quantized", num_bits=8, strategy="channel", symmetric=False,
        scale=torch.float32,
    )  # fmt: skip
    fp8 = {"num_bits": 8, "type": "float", "act": True, "scale": torch.bfloat16}
    compressed("ct-fp8-channel", "float-quantized", strategy="channel", **fp8)
    compressed("ct-fp8-tensor", "float-quantized", strategy="tensor", **fp8)
    fp4 = {"num_bits": 4, "type": "float", "scale": torch.bfloat16}
    compressed(
        "ct-nvfp4", "nvfp4-pack-quantized", strategy="tensor_group", group_size=16,
        scale_dtype=torch.float8_e4m3fn, **fp4,
    )  # fmt: skip
    bnb_4bit("bnb-nf4", "nf4", False, torch.float32)
    bnb_4bit("bnb-fp4", "fp4", False, torch.float16)
    bnb_4bit("bnb-nf4-nested", "nf4", True, torch.bfloat16)
    bnb_4bit("bnb-nf4-nested-float32", "nf4", True, torch.float32)
    bnb_int8("bnb-int8")
    for bits, size in ((2, 32), (3, 64), (4, 64), (5, 128), (6, 32), (8, 64)):
        mlx_affine(f"mlx-{bits}-float16", bits, size, mx.float16)
        mlx_affine(f"mlx-{bits}-bfloat16", bits, size, mx.bfloat16)
    mlx_mode("mlx-mxfp4", "mxfp4", 32, 4)
    mlx_mode("mlx-mxfp8", "mxfp8", 32, 8)
    mlx_mode("mlx-nvfp4", "nvfp4", 16, 4)
    fp8_rows("fp8-tensor", "tensor", {"quant_method": "fp8", "activation_scheme": "dynamic"})
    fp8_rows("fp8-rows", "row", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0})
    fp8_blocks("fp8-blocks", (64, 192), [32, 64])
    fp8_blocks("fp8-blocks-partial", (136, 144), [128, 128])
    fp8_blocks("fp8-blocks-ue8m0", (64, 128), [32, 64], "ue8m0")
    mxfp4("mxfp4")


if __name__ == "__main__":
    main()
