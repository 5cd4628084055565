import contextlib
import json
import subprocess
import sys

import gguf
import numpy as np
import pytest

from quantlab.sources import hub as hubs
from quantlab.sources import readers
from quantlab.sources.readers import count_cached_values
from tests import hub as loopback
from tests import tiny_llama
from tests.conftest import ROOT, run_quantlab
from tests.sources.samples import X, read, write_gguf, write_safetensors
from tests.sources.test_hub import as_shards


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


VECTORS = ROOT / "tests/data/stored"
LARGE = np.zeros((2048, 1024), np.float32)


def list_tensors(path, *options):
    done = run_quantlab("tensors", path, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def n_sent(hub):
    """Count the bytes of ranges that were read."""
    ranges = (span for _, path, span in hub.requests if span and path.startswith(loopback.BLOBS))
    spans = (span.removeprefix("bytes=").split("-") for span in ranges)
    return sum(int(last) + 1 - int(first) for first, last in spans)


@pytest.mark.parametrize("name", ["large.safetensors", "large.gguf"])
def test_of_a_file_the_header_alone_is_read(hub, tmp_path, name):
    path = tmp_path / name
    if name.endswith("gguf"):
        write_gguf(path, w=(LARGE, None), b=(LARGE[0], None))
    else:
        write_safetensors(path, w=LARGE, b=LARGE[0])
    hub.commit("org/model", {name: path.read_bytes()})
    assert list_tensors(f"hf://org/model/{name}") == list_tensors(path)
    assert n_sent(hub) <= 2**18
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("folder", sorted(path.name for path in VECTORS.glob("*/")))
def test_a_quantized_file_is_listed_as_one_on_disk(hub, folder):
    names = {path.name for path in (VECTORS / folder).iterdir()} & {
        "model.safetensors",
        "config.json",
    }
    if "model.safetensors" not in names:
        pytest.skip("it is no safetensors file")
    hub.commit("org/model", {name: (VECTORS / folder / name).read_bytes() for name in names})
    local = VECTORS / folder / "model.safetensors"
    remote = list_tensors("hf://org/model")
    assert remote == list_tensors(local).replace(str(local), "hf://org/model")


def test_a_checkpoint_in_several_files_is_listed_by_its_index(hub, tmp_path):
    files = as_shards(tmp_path)
    hub.commit("org/model", files)
    listed = json.loads(list_tensors("hf://org/model", "--json"))
    assert [tensor["name"] for tensor in listed["tensors"]] == ["a", "b"]


def test_a_damaged_file_is_called_by_its_id(hub):
    hub.commit("org/model", {"a.safetensors": b"no header", "b.gguf": b"GGUFnothing"})
    for name in ("a.safetensors", "b.gguf"):
        done = run_quantlab("tensors", f"hf://org/model/{name}")
        assert done.returncode == 1
        assert done.stderr.startswith("quantlab: hf://org/model@")
        assert "is cut off or damaged" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_offline_the_file_in_the_cache_is_listed(hub, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, w=LARGE)
    hub.commit("org/model", {path.name: path.read_bytes()})
    hubs.locate("hf://org/model", [".safetensors"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hubs._located.clear()
    assert list_tensors("hf://org/model") == list_tensors(path)


def test_a_user_lists_and_measures_by_id(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", w=LARGE[:8] + np.arange(1024, dtype=np.float32))
    with loopback.serve() as (served, address):
        served.commit("org/model", {"a.safetensors": (tmp_path / "a.safetensors").read_bytes()})
        path = "hf://org/model@main/a.safetensors"
        environ = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "PATH": ""}
        for command in (
            ["tensors", path],
            ["run", "dist=file/safetensors", f"dist.path={path}", "n_bits=4"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "quantlab", *command],
                cwd=tmp_path,
                env=environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
    assert "sqnr" in done.stdout
