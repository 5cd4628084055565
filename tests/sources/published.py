"""Small files of kinds that people publish, each with what is right, computed here in NumPy.

A case writes an original and a stored file below a folder, with shapes and a prefix of names that
it is given, and returns the arguments of a run and the values that must come back, by the names of
the originals. The kinds are those of issue threads of vLLM, llama.cpp, mlx-lm, GPTQModel, AutoAWQ,
compressed-tensors, Model-Optimizer and stable-diffusion.cpp.
"""

import json
import struct

import gguf
import ml_dtypes
import numpy as np

F8 = ml_dtypes.float8_e4m3fn
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
KINDS = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e8m0fnu": "F8_E8M0", "uint8": "U8", "int8": "I8",
    "int16": "I16", "int32": "I32", "uint32": "U32", "int64": "I64",
}  # fmt: skip


def draw(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


def write_safetensors(path, tensors, config=None, name="config.json", metadata=None):
    """Write arrays, or tuples of a dtype's name, a shape and bytes; and a config beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, content = {"__metadata__": metadata} if metadata else {}, b""
    for key, value in tensors.items():
        if not isinstance(value, tuple):
            raw = np.ascontiguousarray(value).tobytes()
            value = KINDS[value.dtype.name], list(value.shape), raw
        kind, shape, raw = value
        offsets = [len(content), len(content) + len(raw)]
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        content += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    if config is not None:
        (path.parent / name).write_text(json.dumps(config))
    return path


def write_weight(folder, prefix, x, y, stored, config=None, name="config.json"):
    """Write one weight, what is stored of it, and return it beside what that comes back as."""
    write_safetensors(folder / "a.safetensors", {f"{prefix}.weight": x})
    write_safetensors(folder / "b.safetensors", stored, config, name)
    return {f"{prefix}.weight": (x, y)}


def write_gguf(path, tensors, architecture="llama", **fields):
    """Write arrays, or pairs of codes and a type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture, **fields)
    for name, value in tensors.items():
        codes, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def q8_0(x):
    """Quantize by gguf; return codes with their type, and what comes back."""
    kind = gguf.GGMLQuantizationType.Q8_0
    codes = gguf.quants.quantize(np.ascontiguousarray(x), kind)
    return (codes, kind), gguf.quants.dequantize(codes, kind).reshape(x.shape)


def fp8(x, dtype=F8, largest=448):
    """Quantize with one scale; return codes, scale, and what comes back."""
    scale = np.float32(np.abs(x).max() / largest)
    codes = (x / scale).astype(dtype)
    return codes, scale, codes.astype(np.float32) * scale


def fp8_blocks(x, block=128):
    """Quantize in blocks of the last two axes, the last ones short."""
    rows, columns = (-(-n // block) for n in x.shape[-2:])
    scale = np.empty((*x.shape[:-2], rows, columns), np.float32)
    codes, back = np.empty(x.shape, F8), np.empty_like(x)
    for i in range(rows):
        for j in range(columns):
            place = ..., slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scale[..., i, j] = np.abs(x[place]).max((-2, -1)) / 448
            factor = scale[..., i, j, None, None]
            codes[place] = (x[place] / factor).astype(F8)
            back[place] = codes[place].astype(np.float32) * factor
    return codes, scale, back


def fp4(x, group, scales):
    """Quantize groups by given scales; return two codes a byte, and what comes back."""
    grouped = x.reshape(*x.shape[:-1], -1, group)
    distance = np.abs(grouped[..., None] / scales[..., None, None] - E2M1)
    codes = distance.argmin(-1).astype(np.uint8)
    back = (E2M1[codes] * scales[..., None]).astype(np.float32).reshape(x.shape)
    codes = codes.reshape(x.shape)
    return codes[..., ::2] | codes[..., 1::2] << 4, back


def nvfp4(x):
    """Quantize in groups of 16; return bytes, scales, the scale of the tensor, what comes back."""
    whole = np.float32(np.abs(x).max() / (6 * 448))
    scales = (np.abs(x.reshape(*x.shape[:-1], -1, 16)).max(-1) / 6 / whole).astype(F8)
    packed, back = fp4(x, 16, scales.astype(np.float32) * whole)
    return packed, scales, whole, back


def mxfp4(x):
    """Quantize in groups of 32; return bytes, exponents with their offset, what comes back."""
    largest = np.abs(x.reshape(*x.shape[:-1], -1, 32)).max(-1)
    exponents = np.floor(np.log2(largest)) - 2
    packed, back = fp4(x, 32, (2.0**exponents).astype(np.float32))
    return packed, (exponents + 127).astype(np.uint8), back


def int4_groups(x, group):
    """Quantize groups of rows, the last short; return codes 0 to 15, scales, what comes back."""
    of = np.arange(x.shape[1]) // group
    n = of[-1] + 1
    scales = np.stack([np.abs(x[:, of == i]).max(1) / 7 for i in range(n)]).astype(np.float16)
    spread = scales.T[:, of]
    codes = np.clip(np.rint(x / spread.astype(np.float32)) + 8, 0, 15).astype(np.uint32)
    back = (codes.astype(np.float16) - np.float16(8)) * spread  # as kernels compute it
    return codes, scales, back.astype(np.float32)


def pack_words(codes):
    """Pack eight codes of four bits into a word along the last axis, lowest bits first."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    words = (codes.reshape(*codes.shape[:-1], -1, 8) << shifts).sum(-1).astype(np.uint32)
    return words.view(np.int32)


def scaled_fp8(folder, prefix, rows=64, columns=64):
    """ComfyUI's: the scale is called scale_weight, and a mark that is empty says so."""
    x = draw(rows, columns)
    codes, scale, y = fp8(x)
    stored = {
        f"{prefix}.weight": codes,
        f"{prefix}.scale_weight": np.array([scale]),
        f"{prefix}.scale_input": np.ones(1, np.float32),
        "scaled_fp8": ("F8_E4M3", [0], b""),
    }
    return write_weight(folder, prefix, x, y, stored)


def mistral_fp8(folder, prefix, rows=64, columns=96):
    """Mistral's: qscale_weight, and qscale_act of activations."""
    x = draw(rows, columns)
    codes, scale, y = fp8(x)
    stored = {
        f"{prefix}.weight": codes,
        f"{prefix}.qscale_weight": scale.reshape(()),
        f"{prefix}.qscale_act": np.float32(1).reshape(()),
    }
    return write_weight(folder, prefix, x, y, stored)


def fnuz_fp8(folder, prefix, rows=32, columns=64):
    """Fp8 of AMD's first kind, whose largest value is 240."""
    x = draw(rows, columns)
    codes, scale, y = fp8(x, ml_dtypes.float8_e4m3fnuz, 240)
    stored = {f"{prefix}.weight": codes, f"{prefix}.weight_scale": np.array([scale])}
    return write_weight(folder, prefix, x, y, stored)


def stacked_fp8(folder, prefix, rows=128, columns=256):
    """Experts in three dimensions, with scales of blocks and of rows."""
    x, n = draw(2, rows, columns), f"{prefix}.experts"
    codes, scale, y = fp8_blocks(x)
    by_row = (np.abs(x).max(-1, keepdims=True) / 448).astype(np.float32)
    row_codes = (x / by_row).astype(F8)
    write_safetensors(folder / "a.safetensors", {f"{n}.gate_up_proj": x, f"{n}.w1.weight": x})
    stored = {
        f"{n}.gate_up_proj": codes,
        f"{n}.gate_up_proj_scale_inv": scale,
        f"{n}.w1.weight": row_codes,
        f"{n}.w1.weight_scale": by_row,
    }
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    write_safetensors(folder / "b.safetensors", stored, config)
    return {
        f"{n}.gate_up_proj": (x, y),
        f"{n}.w1.weight": (x, row_codes.astype(np.float32) * by_row),
    }


def fused_fp8(folder, prefix, heads=8, size=16):
    """One scale for each of query, key and value in one matrix, of unequal parts."""
    parts = [draw(n * size, 64, seed=n) * n for n in (heads, 2, 1)]
    parts[2] = draw(2 * size, 64, seed=9)
    quantized = [fp8(part) for part in parts]
    codes, scales, back = zip(*quantized, strict=True)
    x, y = np.concatenate(parts), np.concatenate(back)
    config = {"num_attention_heads": heads, "num_key_value_heads": 2, "hidden_size": heads * size}
    write_safetensors(folder / "a.safetensors", {f"{prefix}.qkv_proj.weight": x})
    stored = {
        f"{prefix}.qkv_proj.weight": np.concatenate(codes),
        f"{prefix}.qkv_proj.weight_scale": np.array(scales),
    }
    write_safetensors(folder / "b.safetensors", stored, config)
    return {f"{prefix}.qkv_proj.weight": (x, y)}


def gptq_short_group(folder, prefix, rows=64, columns=1000):
    """The last group of a row is short."""
    x, groups = draw(rows, columns), -(-columns // 128)
    codes, scales, y = int4_groups(x, 128)
    stored = {
        f"{prefix}.qweight": np.ascontiguousarray(pack_words(codes).T),
        f"{prefix}.qzeros": np.full((groups, rows // 8), 0x77777777, np.int32),
        f"{prefix}.scales": scales,
    }
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    return write_weight(folder, prefix, x, y, stored, config)


def gptq_bytes(folder, prefix, rows=32, columns=128):
    """GPTQModel packs into words of a byte where it is told so."""
    x = draw(rows, columns)
    codes, scales, y = int4_groups(x, 64)
    octets = codes.T[::2] | codes.T[1::2] << 4
    stored = {
        f"{prefix}.qweight": octets.astype(np.uint8).view(np.int8),
        f"{prefix}.qzeros": np.full((columns // 64, rows // 2), 0x77, np.int8),
        f"{prefix}.scales": scales,
    }
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}}
    return write_weight(folder, prefix, x, y, stored, config)


def awq_gemv(folder, prefix, rows=64, columns=256, group=128):
    """AutoAWQ's gemv: codes along the inputs, groups beyond those that the inputs need."""
    x = draw(rows, columns)
    codes, scales, y = int4_groups(x, group)
    room = 8 * -(-(columns // group) // 8) * {128: 1, 64: 2, 32: 4}[group]
    padded = np.zeros((rows, room), np.float16)
    padded[:, : columns // group] = scales.T
    zeros = np.full((rows, room // 8), 0x88888888, np.uint32)
    stored = {
        f"{prefix}.qweight": pack_words(codes),
        f"{prefix}.qzeros": zeros.view(np.int32),
        f"{prefix}.scales": padded,
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemv"}
    return write_weight(folder, prefix, x, y, stored, {"quantization_config": config})


def modelopt_nvfp4(folder, prefix, rows=64, columns=128):
    """Model-Optimizer's: the scale of the tensor multiplies, and its config has another name."""
    x = draw(rows, columns)
    packed, scales, whole, y = nvfp4(x)
    stored = {
        f"{prefix}.weight": packed,
        f"{prefix}.weight_scale": scales,
        f"{prefix}.weight_scale_2": whole.reshape(()),
        f"{prefix}.input_scale": np.float32(0.01).reshape(()),
    }
    config = {"quantization": {"quant_algo": "NVFP4"}, "producer": {"name": "modelopt"}}
    return write_weight(folder, prefix, x, y, stored, config, "hf_quant_config.json")


def packed_mxfp4(folder, prefix, rows=64, columns=128):
    """compressed-tensors' and Quark's: exponents are bytes without a type of their own."""
    x = draw(rows, columns)
    packed, exponents, y = mxfp4(x)
    names = {f"{prefix}.a.weight": x, f"{prefix}.b.weight": x}
    write_safetensors(folder / "a.safetensors", names)
    stored = {
        f"{prefix}.a.weight_packed": packed,
        f"{prefix}.a.weight_scale": exponents,
        f"{prefix}.b.weight": packed,
        f"{prefix}.b.weight_scale": exponents,
    }
    config = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    write_safetensors(folder / "b.safetensors", stored, {"quantization_config": config})
    return dict.fromkeys(names, (x, y))


def mxfp8(folder, prefix, rows=32, columns=128):
    """Elements of fp8 in groups of 32, each with an exponent of a byte."""
    x = draw(rows, columns)
    grouped = x.reshape(rows, -1, 32)
    exponents = np.floor(np.log2(np.abs(grouped).max(-1))) - 8
    powers = (2.0**exponents).astype(np.float32)[..., None]
    codes = (grouped / powers).clip(-448, 448).astype(F8)
    y = (codes.astype(np.float32) * powers).reshape(x.shape)
    stored = {
        f"{prefix}.weight": codes.reshape(x.shape),
        f"{prefix}.weight_scale": (exponents + 127).astype(np.uint8),
    }
    return write_weight(folder, prefix, x, y, stored)


def deepseek_fp4(folder, prefix, rows=64, columns=128):
    """DeepSeek-V4's: two codes in each byte of an int8, exponents beside them."""
    x = draw(rows, columns)
    packed, exponents, y = mxfp4(x)
    stored = {
        f"{prefix}.weight": packed.view(np.int8),
        f"{prefix}.scale": exponents.view(ml_dtypes.float8_e8m0fnu),
    }
    return write_weight(folder, prefix, x, y, stored)


def types_below_a_byte(folder, prefix, rows=32, columns=64):
    """F4 and F6 of safetensors: with exponents, with the scales of NVFP4, and without any."""
    x, y, stored = {}, {}, {}
    for n, (kind, dtype) in enumerate(
        [("F4", None), ("F6_E2M3", ml_dtypes.float6_e2m3fn), ("F6_E3M2", ml_dtypes.float6_e3m2fn)]
    ):
        bits = int(kind[1])
        levels = E2M1 if dtype is None else np.arange(64, dtype=np.uint8).view(dtype)
        levels = levels.astype(np.float32)
        for scales in ("none", "exponents", "nvfp4"):
            name = f"{prefix}.{kind}.{scales}.weight"
            x[name] = draw(rows, columns, seed=n) * (100 if scales == "none" else 1)
            size, scale, whole = {"none": columns, "exponents": 32, "nvfp4": 16}[scales], 1, 1
            grouped = x[name].reshape(rows, -1, size)
            largest = np.abs(grouped).max(-1, keepdims=True) / levels.max()
            if scales == "exponents":
                exponents = np.ceil(np.log2(largest)).astype(np.int32)
                scale = np.ldexp(np.float32(1), exponents)
                stored[f"{name}_scale"] = (exponents[..., 0] + 127).astype(np.uint8)
            elif scales == "nvfp4":
                whole = np.float32(largest.max() / 448)
                scale = (largest / whole).astype(F8).astype(np.float32)
                stored[f"{name}_scale"] = scale[..., 0].astype(F8)
                stored[f"{name}_scale_2"] = np.array(whole)
            factor = np.float32(1) * scale * whole
            codes = np.abs((grouped / factor)[..., None] - levels).argmin(-1)
            y[name] = (levels[codes] * factor).astype(np.float32).reshape(rows, columns)
            digits = codes.reshape(-1, 1) >> np.arange(bits) & 1
            raw = np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
            stored[name] = kind, [rows, columns], raw
    write_safetensors(folder / "a.safetensors", x)
    write_safetensors(folder / "b.safetensors", stored)
    return {name: (x[name], y[name]) for name in x}


def torchao_int4(folder, prefix, rows=32, columns=128):
    """torchao's: two codes a byte, scales by group and row, a name with the class beside it."""
    x = draw(rows, columns).astype(ml_dtypes.bfloat16).astype(np.float32)
    grouped = x.reshape(rows, -1, 32)
    low, high = grouped.min(-1), grouped.max(-1)
    scale = ((high - low) / 15).astype(ml_dtypes.bfloat16)
    zero = (low + 8 * scale.astype(np.float32)).astype(ml_dtypes.bfloat16)
    spread = [part.astype(np.float32)[..., None] for part in (scale, zero)]
    codes = np.clip(np.rint((grouped - spread[1]) / spread[0]), -8, 7)
    y = (codes * spread[0] + spread[1]).reshape(x.shape).astype(ml_dtypes.bfloat16)
    octets = codes.reshape(x.shape).astype(np.int8).view(np.uint8)
    write_safetensors(folder / "a.safetensors", {f"{prefix}.proj.weight": x})
    stored = {
        f"{prefix}.proj._weight_qdata": (octets[:, ::2] & 15 | octets[:, 1::2] << 4).view(np.int8),
        f"{prefix}.proj._weight_scale": np.ascontiguousarray(scale.T),
        f"{prefix}.proj._weight_zero_point": np.ascontiguousarray(zero.T),
    }
    about = {"_type": "Int4Tensor", "_data": {"block_size": [1, 32], "shape": [rows, columns]}}
    metadata = {f"{prefix}.proj.weight": json.dumps(about)}
    write_safetensors(folder / "b.safetensors", stored, metadata=metadata)
    return {f"{prefix}.proj.weight": (x, y.astype(np.float32))}


def experts_apart(folder, prefix, experts=2, rows=64, columns=256):
    """Experts stacked in the original, each on its own in the release in fp8."""
    x, stored, n = draw(experts, 2 * rows, columns), {}, f"{prefix}.mlp.experts"
    y = np.empty_like(x)
    for i in range(experts):
        for half, place in (("gate", slice(0, rows)), ("up", slice(rows, None))):
            codes, scale, y[i, place] = fp8(x[i, place])
            stored[f"{n}.{i}.{half}_proj.weight"] = codes
            stored[f"{n}.{i}.{half}_proj.weight_scale_inv"] = np.array([[scale]])
    write_safetensors(folder / "a.safetensors", {f"{n}.gate_up_proj": x})
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [256, 256]}}
    write_safetensors(folder / "b.safetensors", stored, config)
    return {f"{n}.gate_up_proj": (x, y)}


def experts_transposed(folder, prefix, experts=3, rows=24, columns=64):
    """Experts as the transposes of what a linear layer has, halves side by side."""
    linear, stored, n = draw(experts, 2 * rows, columns), {}, f"{prefix}.mlp.experts"
    y = np.empty_like(linear)
    for i in range(experts):
        for half, place in (("gate", slice(0, rows)), ("up", slice(rows, None))):
            codes, scale, y[i, place] = fp8(linear[i, place])
            stored[f"{n}.{i}.{half}_proj.weight"] = codes
            stored[f"{n}.{i}.{half}_proj.weight_scale"] = scale.reshape(1)
    x, y = (np.ascontiguousarray(values.swapaxes(1, 2)) for values in (linear, y))
    write_safetensors(folder / "a.safetensors", {f"{n}.gate_up_proj": x})
    write_safetensors(folder / "b.safetensors", stored)
    return {f"{n}.gate_up_proj": (x, y)}


def two_prefixes(folder, prefix, rows=32, columns=64):
    """Each side has a prefix of its own before the same end."""
    x = draw(rows, columns)
    codes, scale, y = fp8(x)
    names = [f"{prefix}.language_model.layers.{n}.mlp.weight" for n in range(2)]
    others = [f"other.text.model.layers.{n}.mlp.weight" for n in range(2)]
    write_safetensors(folder / "a.safetensors", dict.fromkeys(names, x))
    stored = dict.fromkeys(others, codes) | {f"{n}_scale": scale.reshape(1) for n in others}
    write_safetensors(folder / "b.safetensors", stored)
    return dict.fromkeys(names, (x, y))


def transposed(folder, prefix, rows=48, columns=64):
    """GPT-2's layers are stored as [inputs, outputs] on one side."""
    x = draw(rows, columns)
    codes, scale, y = fp8(x)
    write_safetensors(folder / "a.safetensors", {f"{prefix}.c_attn.weight": x})
    stored = {
        f"{prefix}.c_attn.weight": np.ascontiguousarray(codes.T),
        f"{prefix}.c_attn.weight_scale": scale.reshape(1),
    }
    write_safetensors(folder / "b.safetensors", stored)
    return {f"{prefix}.c_attn.weight": (x, y)}


def original_in_fp8(folder, _, rows=256, columns=256):
    """The original is a release in fp8; the stored file is made from its values."""
    codes, scale, x = fp8_blocks(draw(rows, columns) * np.linspace(1, 50, rows)[:, None])
    x = x.astype(np.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    original = {name: codes, f"{name}_scale_inv": scale.astype(np.float32)}
    write_safetensors(folder / "a.safetensors", original, config)
    quantized, y = q8_0(x)
    write_gguf(folder / "b.gguf", {"blk.0.ffn_down.weight": quantized}, "deepseek2")
    return {name: (x, y)}


def experts_in_gguf(folder, prefix, experts=4, rows=64, columns=256):
    """llama.cpp stacks experts; the original has each on its own."""
    x = draw(experts, rows, columns)
    codes, y = q8_0(x)
    n = f"{prefix}.layers.0.mlp.experts"
    names = {f"{n}.{i}.gate_proj.weight": (x[i], y[i]) for i in range(experts)}
    write_safetensors(folder / "a.safetensors", {name: pair[0] for name, pair in names.items()})
    write_gguf(folder / "b.gguf", {"blk.0.ffn_gate_exps.weight": codes}, "qwen3moe")
    return names


def interleaved_in_gguf(folder, prefix, experts=2, rows=32, columns=64):
    """gpt-oss has gate and up in turns, side by side in transposes; llama.cpp has both apart."""
    gate, up = draw(experts, rows, columns), draw(experts, rows, columns, seed=1)
    (gate_codes, gate_y), (up_codes, up_y) = q8_0(gate), q8_0(up)
    x, y = (
        np.stack(pair, 2).reshape(experts, 2 * rows, columns).swapaxes(1, 2).copy()
        for pair in ((gate, up), (gate_y, up_y))
    )
    name = f"{prefix}.layers.0.mlp.experts.gate_up_proj"
    write_safetensors(folder / "a.safetensors", {name: x})
    stored = {"blk.0.ffn_gate_exps.weight": gate_codes, "blk.0.ffn_up_exps.weight": up_codes}
    write_gguf(folder / "b.gguf", stored, "gpt-oss")
    return {name: (x, y)}


CASES = [
    scaled_fp8, mistral_fp8, fnuz_fp8, stacked_fp8, fused_fp8, gptq_short_group, gptq_bytes,
    awq_gemv, modelopt_nvfp4, packed_mxfp4, mxfp8, deepseek_fp4, torchao_int4,
    types_below_a_byte, experts_apart,
    experts_transposed, two_prefixes, transposed, original_in_fp8, experts_in_gguf,
    interleaved_in_gguf,
]  # fmt: skip
OTHER_SHAPES = {
    scaled_fp8: (96, 32), mistral_fp8: (32, 128), fnuz_fp8: (64, 48), stacked_fp8: (200, 384),
    fused_fp8: (16, 8), gptq_short_group: (32, 328), gptq_bytes: (64, 256),
    awq_gemv: (16, 512, 64), modelopt_nvfp4: (32, 96), packed_mxfp4: (16, 96), mxfp8: (48, 64),
    deepseek_fp4: (24, 192), torchao_int4: (48, 64), types_below_a_byte: (24, 96),
    experts_apart: (5, 32, 64),
    experts_transposed: (4, 16, 96),
    two_prefixes: (16, 96), transposed: (96, 16), original_in_fp8: (200, 160),
    experts_in_gguf: (3, 32, 96), interleaved_in_gguf: (3, 16, 96),
}  # fmt: skip
