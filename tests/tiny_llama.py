"""A tiny llama, the same numbers twice: a Hugging Face checkpoint, and what llama.cpp makes of it.

Five megabytes in 21 tensors, drawn from a seed, with heads of two counts, so that the rows of q and
of k move differently. Every value is one of float16 and of bfloat16, so each file holds it exactly.
"""

import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "hidden_size": 256,  # a block of K-quants has 256 values of one row
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
VOCABULARY, HIDDEN, FEED_FORWARD = 1000, 256, 1024
LAYERS, HEADS, KV_HEADS, HEAD = 2, 8, 4, 32
CHUNKS, CHUNK_SIZE = 10, 512


def shapes():
    """Return the shape of every tensor by its Hugging Face name, rows first."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
        "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD),
    }
    return {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        **{
            f"model.layers.{number}.{name}.weight": shape
            for number in range(LAYERS)
            for name, shape in layer.items()
        },
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }


def tensors(seed=0):
    """Return every tensor by its Hugging Face name, in float16."""
    rng = np.random.default_rng(seed)
    return {name: _draw(rng, shape) for name, shape in shapes().items()}


def _draw(rng, shape):
    """Draw norms about 1, and matrices with heavy tails, whose rows and columns vary in size."""
    if len(shape) == 1:
        x = 1 + 0.1 * rng.standard_normal(shape)
    else:
        rows, columns = (rng.lognormal(0, 0.3, n) for n in shape)
        x = rng.standard_t(6, shape) * rows[:, None] * columns / shape[1] ** 0.5
    return x.astype(ml_dtypes.bfloat16).astype(np.float16)


def permute(weights, heads):
    """Move the rows of each head as llama.cpp pairs them for its rotary embedding."""
    halves = weights.reshape(heads, 2, len(weights) // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weights.shape)


def converted(name, weights):
    """Return a tensor as llama.cpp's convert_hf_to_gguf.py writes it: F16, norms F32."""
    if name.endswith("q_proj.weight"):
        return permute(weights, HEADS)
    if name.endswith("k_proj.weight"):
        return permute(weights, KV_HEADS)
    return weights.astype(np.float32) if weights.ndim == 1 else weights


def gguf_name(name):
    """Return the GGUF name of a tensor, e.g. blk.0.attn_q.weight."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    return names.get_name(name, try_suffixes=(".weight",))


def write_hugging_face(directory, seed=0, dtype=ml_dtypes.bfloat16):
    """Write model.safetensors in bfloat16 or float16, beside config.json."""
    path = Path(directory) / "model.safetensors"
    arrays = {name: x.astype(dtype) for name, x in tensors(seed).items()}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    config = CONFIG | {"torch_dtype": np.dtype(dtype).name}
    path.with_name("config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def write_gguf(path, seed=0, shard_tensors=0):
    """Write the model as the F16 GGUF that llama-quantize takes, in shards of so many tensors."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=shard_tensors)
    writer.add_type("model")
    writer.add_name("Tiny Llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(HEAD)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("no_vocab")
    return _write(writer, {gguf_name(k): converted(k, x) for k, x in sorted(tensors(seed).items())})


def importance(seed=0):
    """Return by GGUF name what llama-imatrix sums: squared activations, one sum for each column.

    As there, only layers are measured, and matrices that read the same activations share sums.
    """
    rng = np.random.default_rng(seed)
    sums = {}
    for number in range(LAYERS):
        for names, columns in (
            ("attn_q attn_k attn_v", HIDDEN),
            ("attn_output", HEADS * HEAD),
            ("ffn_gate ffn_up", HIDDEN),
            ("ffn_down", FEED_FORWARD),
        ):
            squares = (rng.lognormal(-2, 1.5, columns) * CHUNKS * CHUNK_SIZE).astype(np.float32)
            sums |= {f"blk.{number}.{name}.weight": squares for name in names.split()}
    return dict(sorted(sums.items()))


def write_imatrix(path, seed=0):
    """Write an importance matrix as llama-imatrix does."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # of an architecture, which an importance matrix does not name
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", CHUNK_SIZE)
    arrays = {}
    for name, squares in importance(seed).items():
        arrays[f"{name}.in_sum2"] = squares
        arrays[f"{name}.counts"] = np.array([CHUNKS * CHUNK_SIZE], np.float32)
    return _write(writer, arrays)


def _write(writer, arrays):
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.path
