import json
import math
import shlex
from pathlib import Path

import gguf
import numpy as np
import pytest
from onnx import helper, numpy_helper

from quantlab.report.files import diff_files, file_diff_summary
from tests.conftest import ROOT, run, run_quantlab
from tests.models.samples import two_layers
from tests.sources.onnx_samples import save
from tests.sources.samples import write_gguf, write_safetensors

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((4, 64)).astype(np.float32) for _ in range(2))
Q8, Q4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0


def encode(x, kind):
    return gguf.quants.quantize(x, kind), kind


def decode(x, kind):
    return gguf.quants.dequantize(encode(x, kind)[0], kind)


def sqnr_db(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return 10 * math.log10(np.square(x).sum() / np.square(x - y).sum())


@pytest.fixture
def files(tmp_path):
    """The same weights as safetensors and in two types of llama.cpp."""
    return (
        write_safetensors(tmp_path / "model.safetensors", x=X, y=Y),
        write_gguf(tmp_path / "q8.gguf", x=encode(X, Q8), y=(Y, None)),
        write_gguf(tmp_path / "q4.gguf", x=encode(X, Q4), y=(Y, None)),
    )


def test_a_quantized_file_beside_its_original(files):
    original, _, q4 = files
    compared = diff_files(original, q4)
    first, second = compared.pairs
    assert (first.name, first.dtypes, first.bits_per_value) == ("x", ("float32", "Q4_0"), (32, 4.5))
    assert first.sqnr_db == pytest.approx(sqnr_db(X, decode(X, Q4)), abs=1e-9)
    assert (second.name, second.is_equal, second.sqnr_db) == ("y", True, None)
    assert compared.is_whole
    assert not compared.is_equal
    text = file_diff_summary(compared)
    assert "x      float32 → Q4_0" in text
    assert "2 tensors compared, 1 equal" in text


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("x", "1 tensor compared, 0 equal; 1.02 kB → 144 B; SQNR {x:.2f} dB"),
        ("xy", "2 tensors compared, 0 equal; 2.05 kB → 288 B; SQNR {least:.2f} dB at least"),
        ("xz", "2 tensors compared, 1 equal; 2.05 kB → 1.17 kB; SQNR of the other {x:.2f} dB"),
    ],
)
def test_one_tensor_that_lost_something_has_an_sqnr_and_no_median(tmp_path, names, sentence):
    stored = {"x": encode(X, Q4), "y": encode(Y, Q4), "z": (X, None)}
    values = {"x": X, "y": Y, "z": X}
    before = write_safetensors(tmp_path / "m.safetensors", **{name: values[name] for name in names})
    after = write_gguf(tmp_path / "m.gguf", **{name: stored[name] for name in names})
    x, y = (sqnr_db(each, decode(each, Q4)) for each in (X, Y))
    assert sentence.format(x=x, least=min(x, y)) in file_diff_summary(diff_files(before, after))


def test_names_and_types_are_whole_in_a_pipe(tmp_path):
    name = "model.layers.10.mlp.experts.127.down_proj.weight" * 2
    before = write_safetensors(tmp_path / "a.safetensors", **{name: X})
    after = write_safetensors(tmp_path / "b.safetensors", **{name: X.astype(np.float16)})
    assert name in run_quantlab("diff", before, after).stdout
    compared = diff_files(before, after)
    assert name in file_diff_summary(compared, whole=True)
    assert name not in file_diff_summary(compared)


def test_two_quantized_files_are_compared_as_they_are_decoded(files):
    _, q8, q4 = files
    (pair, _) = diff_files(q8, q4).pairs
    assert pair.sqnr_db == pytest.approx(sqnr_db(decode(X, Q8), decode(X, Q4)), abs=1e-9)
    assert pair.dtypes == ("Q8_0", "Q4_0")


def test_the_original_may_be_the_second(files):
    original, q8, _ = files
    (pair, _) = diff_files(q8, original).pairs
    assert pair.sqnr_db == pytest.approx(sqnr_db(decode(X, Q8), X), abs=1e-9)


def test_an_onnx_model_and_a_checkpoint(tmp_path):
    model, _, weights, _ = two_layers(tmp_path)
    path = write_safetensors(tmp_path / "w.safetensors", **weights)
    text = file_diff_summary(diff_files(model, path))
    assert text == (
        f"{model} and {path} hold the same values: 2 tensors, 220 values, in the same types"
    )


def test_equal_values_are_one_sentence_whatever_their_types(tmp_path):
    x = np.round(X)  # which float16 holds exactly
    paths = [
        write_safetensors(tmp_path / f"{dtype.__name__}.safetensors", x=x.astype(dtype))
        for dtype in (np.float32, np.float16)
    ]
    done = run_quantlab("diff", *paths)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert "hold the same values: 1 tensor, 256 values, 1 tensor in another type" in done.stdout


def test_what_is_gone_fails_and_is_named(tmp_path):
    before = write_safetensors(tmp_path / "a.safetensors", x=X, gone=Y)
    after = write_safetensors(tmp_path / "b.safetensors", x=X, new=Y[:, :32])
    done = run_quantlab("diff", before, after)
    assert done.returncode == 1
    assert f"only {before} has gone\nonly {after} has new" in done.stdout
    content = json.loads(run_quantlab("diff", before, after, "--json").stdout)
    assert content["only"] == [["gone"], ["new"]]
    assert not content["equal"]


def test_a_tensor_that_cannot_be_compared_costs_no_other(tmp_path):
    bad = Y.copy()
    bad[1, 2] = np.nan
    before = write_safetensors(tmp_path / "a.safetensors", x=X, y=bad, z=X)
    after = write_safetensors(tmp_path / "b.safetensors", x=X, y=Y, z=X[:2])
    done = run_quantlab("diff", before, after)
    assert done.returncode == 1
    assert "1 tensor compared" in done.stdout
    assert "'y' has 1 of 256 values that are" in done.stdout or "NaN" in done.stdout
    assert "has the shape [2, 64], the original [4, 64]" in done.stdout


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["{model}", "{missing}"], "missing.safetensors is not there"),
        (["{model}", "{other}"], "have no tensor in common: name files of one model"),
        (["{model}", "{npy}"], "x.npy is an npy file, which holds no codes: name one of gguf or"),
        (["{model}", "{lab}"], "a diff is of two sweeps or of two files"),
        (["{lab}", "{lab}", "--json"], "--json is of two files"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(tmp_path, paths, sentence):
    np.save(tmp_path / "x.npy", X)
    names = {
        "model": write_safetensors(tmp_path / "model.safetensors", x=X),
        "other": write_safetensors(tmp_path / "other.safetensors", bias=X[0]),
        "missing": tmp_path / "missing.safetensors",
        "npy": tmp_path / "x.npy",
        "lab": ROOT / "multirun" / "lab",
    }
    done = run_quantlab("diff", *(path.format(**names) for path in paths))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("undrawn")
def test_the_figures_are_those_of_a_sweep(files, tmp_path):
    original, _, q4 = files
    run(
        "dist=file/safetensors", f"dist.path={original}", "mode=file/gguf", f"mode.path={q4}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    tensors = json.loads((tmp_path / "run" / "record.json").read_bytes())["tensors"]
    for pair in diff_files(original, q4).pairs:
        assert pair.sqnr_db == tensors[pair.name]["measured"]["sqnr_db"]
        assert pair.bits_per_value[1] == tensors[pair.name]["storage"]["bits_per_value"]


@pytest.fixture
def coded(tmp_path):
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


def test_a_quantized_file_asks_for_its_original(coded):
    _, path = coded
    text = look(path)
    assert text.splitlines()[0] == (
        f"{path}: gguf of test, 2 tensors, 320 values, 400 B, 10 bits per value"
    )
    assert "Q4_0            1         80.0%            4.5" in text
    assert last_command(text) == ["look", path, "ORIGINAL"]
    assert len(text.splitlines()) <= 12


@pytest.mark.usefixtures("undrawn")
def test_beside_its_original_it_says_what_was_lost_and_what_tells_more(coded, tmp_path):
    original, path = coded
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
def test_a_file_without_codes_asks_what_fewer_bits_cost(coded, tmp_path):
    text = look(coded[0])
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


def test_a_copy_has_lost_nothing(coded):
    assert look(coded[0], coded[0]).endswith("every value is that of the original\n")


def test_of_the_hub_the_header_is_enough(coded, hub):
    hub.commit("org/model", {"q4.gguf": Path(coded[1]).read_bytes()})
    text = look("hf://org/model/q4.gguf")
    assert text.replace("hf://org/model/q4.gguf", coded[1]) == look(coded[1])


def test_what_is_no_file_of_tensors_is_a_sentence(tmp_path):
    np.save(tmp_path / "x.npy", X)
    for name in ("x.npy", "missing.gguf", "README.md"):
        done = run_quantlab("look", tmp_path / name)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
