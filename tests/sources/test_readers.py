import contextlib
import json

import gguf
import numpy as np
import pytest

from quantlab.sources import readers
from quantlab.sources.readers import count_cached_values
from tests import tiny_llama
from tests.sources.samples import X, read, write_gguf, write_safetensors


@pytest.mark.parametrize("offset", range(0, 200, 7))
@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "gguf"])
def test_a_flipped_byte_is_read_or_refused(tmp_path, kind, offset):
    """Whatever a reader makes of it: a ValueError or a tensor, nothing else."""
    path = tmp_path / f"w.{kind}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        np.savez(path, w=X)
    elif kind == "safetensors":
        write_safetensors(path, w=X)
    else:
        write_gguf(path, w=(X, None))
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x91
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        read(readers.reader_of(path)(str(path)))


def test_a_suffix_that_nobody_reads_is_told(tmp_path):
    (tmp_path / "w.txt").write_text("x")
    with pytest.raises(ValueError, match=r"has none of the suffixes \.npy, \.npz, "):
        readers.reader_of(tmp_path / "w.txt")
    with pytest.raises(ValueError, match=r"x\.bin: no such file"):
        readers.reader_of(tmp_path / "x.bin")


def test_gguf_and_hugging_face_say_the_same(tmp_path):
    tiny_llama.write_gguf(tmp_path / "tiny.gguf")
    path = tiny_llama.write_hugging_face(tmp_path)
    n_values = tiny_llama.LAYERS * tiny_llama.KV_HEADS * 2 * tiny_llama.HEAD
    assert count_cached_values(str(tmp_path / "tiny.gguf")) == n_values
    assert count_cached_values(str(path)) == n_values


def write(path, **fields):
    writer = gguf.GGUFWriter(path, "m")
    for key, value in fields.items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(f"m.{key}", value)
    writer.add_tensor("a", np.zeros(32, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    return str(path)


HEADS = {"attention.head_count": 4, "embedding_length": 64, "block_count": 3}


@pytest.mark.parametrize(
    ("fields", "n_values"),
    [
        (HEADS, 3 * 4 * 32),
        (HEADS | {"attention.head_count_kv": 2}, 3 * 2 * 32),
        (HEADS | {"attention.head_count_kv": [2, 0, 1]}, 3 * 32),
        (HEADS | {"attention.key_length": 24, "attention.value_length": 8}, 3 * 4 * 32),
        (HEADS | {"attention.kv_lora_rank": 8}, None),
        ({"block_count": 3}, None),
        ({"attention.head_count": 4, "embedding_length": 64}, None),
    ],
)
def test_layers_may_have_numbers_of_their_own(tmp_path, fields, n_values):
    assert count_cached_values(write(tmp_path / "m.gguf", **fields)) == n_values


@pytest.mark.parametrize(
    ("config", "n_values"),
    [
        ({"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 3}, 3 * 4 * 32),
        ({"text_config": {"num_attention_heads": 4, "head_dim": 8, "num_hidden_layers": 3}}, 192),
        ({"num_attention_heads": 4, "num_hidden_layers": 3}, None),
        (
            {"kv_lora_rank": 1, "num_attention_heads": 4, "head_dim": 8, "num_hidden_layers": 3},
            None,
        ),
        ({}, None),
    ],
)
def test_a_config_may_lack_it(tmp_path, config, n_values):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert count_cached_values(str(tmp_path / "m.safetensors")) == n_values
