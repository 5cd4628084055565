"""Mistakes that people make, and the one line that each of them gets."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import quantlab
from tests.conftest import run, run_quantlab

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["-m", "m.safetensors"],
            "m.safetensors is no setting: to measure a file: "
            "dist=file/safetensors dist.path=m.safetensors",
        ),
        (
            ["-m", "dist.path=m.safetensors"],
            "dist.path=m.safetensors sets an unknown key: to measure a file: "
            "dist=file/safetensors dist.path=m.safetensors",
        ),
        (
            ["dist.path=sub/m.index.json"],
            "dist.path=sub/m.index.json sets an unknown key: to measure a file: "
            "dist=file/safetensors dist.path=sub/m.index.json",
        ),
        (
            ["my file.npy"],
            "my file.npy is no setting: to measure a file: "
            "dist=file/npy \"dist.path='my file.npy'\"",
        ),
        (
            ["-m", "dist=sub/m.safetensors,n.npz"],
            "dist=sub/m.safetensors does not exist: to measure a file: "
            "dist=file/safetensors dist.path=sub/m.safetensors",
        ),
        (
            ["mode=Q4_K_M.gguf"],
            "mode=Q4_K_M.gguf does not exist: to measure a quantized file: "
            "mode=file/gguf mode.path=Q4_K_M.gguf",
        ),
        (["m.txt"], "m.txt is no setting: write m.txt=VALUE"),
        (
            ["dist.path=m.txt"],
            "dist.path=m.txt sets an unknown key: add dist=file/gguf, dist=file/npy, "
            "dist=file/npz, dist=file/onnx or dist=file/safetensors, which have it",
        ),
        (
            ["mode.path=m.gguf"],
            "mode.path=m.gguf sets an unknown key: add mode=file/gguf, mode=file/onnx or "
            "mode=file/safetensors, which have it",
        ),
        (["dist=file/npy", "dist.path=m.npy"], "m.npy: no such file"),
        (["dist=file/npy", "dist.path=empty.npy"], "empty.npy is empty (0 bytes)"),
        (
            ["block=32"],
            "block=32 names no option; for groups of 32 values: block=group block.size=32",
        ),
        (
            ["-m", "block=tensor,64"],
            "block=64 names no option; for groups of 64 values: block=group block.size=64",
        ),
        (
            ["range=2"],
            "range=2 names no option; choose one of absmax, calibrated, entropy, mse, percentile",
        ),
        (
            ["mode=mx"],
            "mode=mx does not exist: choose one of asym, fp4, fp6_e2m3, fp6_e3m2, fp8_e4m3, "
            "fp8_e5m2, gptq, log, nf4, noise, plan, sym, bnb/fp4, bnb/int8, bnb/nf4, file/gguf, "
            "file/onnx, file/safetensors, ggml/..., hqq/affine, mlx/affine, mlx/mxfp4, mx/..., "
            "nv/fp4, onnx/matmulnbits, quanto/qint, torchao/int4, torchao/int8, torchao/intx",
        ),
        (
            ["-m", "dist=file/npy", "dist.path=glob(*.npy)"],
            "dist.path=glob(*.npy) matches nothing: glob(...) matches options, not files: list "
            "files with commas",
        ),
    ],
)
def test_a_mistake_of_a_run_is_one_line(tmp_path, arguments, sentence):
    (tmp_path / "empty.npy").touch()
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"quantlab: {sentence}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.npy"]


def test_a_home_directory_is_expanded_as_a_shell_would(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    x = np.ones(3, np.float32)
    np.save(tmp_path / "x.npy", x)
    save_file({"x": x}, tmp_path / "x.safetensors")
    for tilde in ("~/x", "'~/x"):
        quote = "'" if tilde.startswith("'") else ""
        done = run(
            "-m", "dist=file/npy", f"dist.path={tilde}.npy{quote}", "mode=file/safetensors",
            f"mode.path={tilde}.safetensors{quote}", "hydra.sweep.dir=~/s", cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"s", "x.npy", "x.safetensors"}
    assert (tmp_path / "s" / "results.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [(["check"], "DIR"), (["report"], "DIR"), (["plan", "--bar"], "DIR"), (["diff", "x"], "PATH")],
)
def test_settings_are_not_required(arguments, names):
    done = run_quantlab(*arguments)
    assert done.returncode == 2
    assert done.stderr.endswith(f"the following arguments are required: {names}\n")


def test_an_unknown_option_names_the_help_of_its_command():
    done = run_quantlab("plan", "x", "--bits", "4", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.endswith("unrecognized arguments: --dry-run: see quantlab plan --help\n")


def test_a_directory_that_does_not_exist_is_named():
    for read in (quantlab.load, lambda directory: quantlab.plan(directory, bits="9")):
        with pytest.raises(ValueError, match=r"^nowhere does not exist: give the directory of a "):
            read("nowhere")


def test_a_budget_may_be_text(lab_sweep):
    directory, _ = lab_sweep
    assert quantlab.plan(directory, bits="9").equals(quantlab.plan(directory, bits=9))
    with pytest.raises(
        ValueError, match=r"^bits takes a number of bits per value above 0, got 'x'"
    ):
        quantlab.plan(directory, bits="x")
    with pytest.raises(ValueError, match=r"^a plan takes one of bits, size, kl and bar$"):
        quantlab.plan(directory)
