import shlex
from pathlib import Path

import gguf
import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.conftest import run, run_quantlab
from tests.sources.onnx_samples import save
from tests.sources.samples import write_gguf, write_safetensors

X = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
Q4 = gguf.GGMLQuantizationType.Q4_0


@pytest.fixture
def files(tmp_path):
    """A checkpoint, and a file with one of its tensors in codes."""
    codes = gguf.quants.quantize(X, Q4)
    return (
        write_safetensors(tmp_path / "a file.safetensors", x=X, y=X[0]),
        write_gguf(tmp_path / "q4.gguf", x=(codes, Q4), y=(X[0], None)),
    )


def look(*paths):
    done = run_quantlab("look", *paths)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def last_command(text):
    return shlex.split(text.splitlines()[-1].partition("quantlab ")[2])


def test_a_quantized_file_asks_for_its_original(files):
    _, path = files
    text = look(path)
    assert text.splitlines()[0] == (
        f"{path}: gguf of test, 2 tensors, 320 values, 400 B, 10 bits per value"
    )
    assert "Q4_0            1         80.0%            4.5" in text
    assert last_command(text) == ["look", path, "ORIGINAL"]
    assert len(text.splitlines()) <= 12


@pytest.mark.usefixtures("undrawn")
def test_beside_its_original_it_says_what_was_lost_and_what_tells_more(files, tmp_path):
    original, path = files
    text = look(path, original)
    assert "worst: x 2" in text
    assert "F32             1         20.0%             32            exact exact" in text
    assert len(text.splitlines()) <= 14
    subcommand, *arguments = last_command(text)
    assert subcommand == "run"
    done = run(*arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    diff = next(line for line in text.splitlines() if line.startswith("every tensor"))
    assert run_quantlab(*shlex.split(diff.partition("quantlab ")[2])).returncode == 0


@pytest.mark.usefixtures("undrawn")
def test_a_file_without_codes_asks_what_fewer_bits_cost(files, tmp_path):
    text = look(files[0])
    assert "no tensor is in codes" in text
    done = run(*last_command(text)[1:], f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr


def test_the_type_of_weights_that_a_model_quantizes_itself_is_whole(tmp_path):
    scale, zero = np.float32(np.abs(X).max() / 127), np.int8(0)
    original = save(tmp_path / "a.onnx", numpy_helper.from_array(X, "w"))
    stored = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in (("w", X), ("s", scale), ("z", zero))
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    text = look(save(tmp_path / "b.onnx", *stored, nodes=nodes), original)
    assert text.count("int8, one scale, stored as float32") == 2
    assert "…" not in text


def test_a_copy_has_lost_nothing(files):
    assert look(files[0], files[0]).endswith("every value is that of the original\n")


def test_of_the_hub_the_header_is_enough(files, hub):
    hub.commit("org/model", {"q4.gguf": Path(files[1]).read_bytes()})
    text = look("hf://org/model/q4.gguf")
    assert text.replace("hf://org/model/q4.gguf", files[1]) == look(files[1])


def test_what_is_no_file_of_tensors_is_a_sentence(tmp_path):
    np.save(tmp_path / "x.npy", X)
    for name in ("x.npy", "missing.gguf", "README.md"):
        done = run_quantlab("look", tmp_path / name)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
