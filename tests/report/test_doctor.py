import sys

import pytest

from quantlab.report import doctor
from tests.conftest import run_quantlab


def states():
    return {(extra.name, extra.package): extra.state for extra in doctor.find_extras()}


def test_every_extra_has_a_line():
    done = run_quantlab("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("quantlab ")
    for name in ("fast", "ggml", "gguf", "hub", "joblib", "onnx", "ray", "safetensors", "slurm"):
        assert f"\n{name} " in done.stdout


def test_compiled_code_is_loaded():
    for package in (("fast", "numba"), ("ggml", "xllamacpp")):
        pytest.importorskip(package[1])
        assert states()[package] == "loads"


def test_what_does_not_load_says_why(monkeypatch):
    def fail():
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "load_library", fail)
    assert states()["ggml", "xllamacpp"] == (
        "does not load: libgomp.so.1: cannot open shared object file"
    )
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert states()["onnx", "onnx"].startswith("does not load: import of onnx halted")


def test_what_is_missing_or_too_old_says_what_to_do(monkeypatch):
    versions = {"numba": "0.1"}

    def version(package):
        if package not in versions:
            raise doctor.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(doctor, "version", version)
    assert states()["fast", "numba"] == "takes >=0.61"
    assert states()["onnx", "onnx"] == "missing: pip install 'onnx>=1.17'"
