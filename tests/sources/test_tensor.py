import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantlab.sources.tensor import Tensor
from tests.conftest import ROOT, RUN, run_python

X = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 4)])
def test_the_hash_is_that_of_the_bytes(shape):
    x = np.full(shape, 0.75, np.float32)
    assert Tensor("x", x).sha256() == hashlib.sha256(x.tobytes()).hexdigest()


@pytest.mark.parametrize("view", [X, X.T, X[::-2], X.astype(">f8"), np.asfortranarray(X)])
def test_elements_count_in_c_order_whatever_the_layout(view):
    tensor = Tensor("x", view)
    assert tensor.sha256() == hashlib.sha256(view.tobytes()).hexdigest()
    assert tensor.block(3, 9).tolist() == view.astype(np.float32).ravel()[3:9].tolist()
    assert tensor.block(3, 9).dtype == np.float32
    values, indices = tensor.rows(4, np.array([0, 2]))
    assert indices.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert values.tolist() == view.astype(np.float32).ravel()[indices].tolist()


def test_values_that_underflow_are_counted():
    values = np.array([1.0, 0.0, 1e-46, -1e-300, 1e-45, np.finfo(np.float32).tiny])
    tensor, narrow = Tensor("x", values), Tensor("x", values.astype(np.float32))
    assert tensor.underflows(0, tensor.block(0, 6)) == 2
    assert tensor.underflows(3, tensor.block(3, 6)) == 1
    assert narrow.underflows(0, narrow.block(0, 6)) == 0


def test_a_finite_tensor_is_no_error():
    Tensor("x", X).require_finite()


truncates = pytest.mark.skipif(
    not hasattr(signal, "SIGBUS"), reason="this system has no such signal"
)
READ = """
import os, sys
from quantlab.sources.file import file_state
from quantlab.sources.tensor import map_values
path = sys.argv[1]
tensor = map_values("w", "<f4", (2**16,), file_state(path), 0)
assert tensor.block(0, 4).sum() == 4
os.truncate(path, 2**12)
{read}
"""
READS = {
    "numpy": "tensor.block(0, tensor.size).sum()",
    "hash": "tensor.sha256()",
    "thread": "import threading as t; t.Thread(target=tensor.sha256).start()",
    "python": "bytes(tensor.array.data)",
}


@truncates
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_of_a_file_that_was_truncated_is_a_sentence(tmp_path, read):
    path = tmp_path / "w.bin"
    np.ones(2**16, np.float32).tofile(path)
    done = run_python("-c", READ.format(read=read), str(path))
    assert done.returncode == 1
    assert done.stderr == (
        f"quantlab: {path} was truncated while it was read, and what is recorded stays: once the "
        "file is whole again, run the same command\n"
    )


FOREIGN = """
import mmap, os, sys
with open(sys.argv[1] + ".foreign", "w+b") as file:
    os.truncate(file.fileno(), 2**16)
    foreign = mmap.mmap(file.fileno(), 0)
    os.truncate(file.fileno(), 0)
from quantlab.sources.file import file_state
from quantlab.sources.tensor import map_values
tensor = map_values("w", "<f4", (2**16,), file_state(sys.argv[1]), 0)
foreign[0]
"""


@truncates
def test_a_fault_of_something_else_ends_as_the_system_has_it(tmp_path):
    np.ones(2**16, np.float32).tofile(tmp_path / "w.bin")
    done = run_python("-c", FOREIGN, str(tmp_path / "w.bin"))
    assert (done.returncode, done.stderr) == (-signal.SIGBUS, "")


@truncates
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_whose_file_is_truncated_says_so(tmp_path, launcher):
    path, sweep = tmp_path / "w.safetensors", tmp_path / "sweep"
    draw = np.random.default_rng(0).standard_normal
    save_file({f"w{n}": draw((512, 1024)).astype(np.float32) for n in range(24)}, path)
    command = [*RUN, "-m", "dist=file/safetensors", f"dist.path={path}", "n_bits=4,5"]
    settings = [
        "block=group",
        "range=mse",
        f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={sweep}",
    ]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *settings], cwd=ROOT, **pipes) as process:
        while not is_mapped(path):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.truncate(path, 2**12)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"quantlab: {path} was truncated while it was read" in errors
    assert "Traceback" not in errors


def is_mapped(path):
    """Test whether a process has a file in its memory, by what Linux lists."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(path) in maps.read_text():
                return True
        except OSError:
            continue
    if sys.platform != "linux":
        pytest.skip("only Linux lists what is mapped")
    return False
