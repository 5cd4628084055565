import numpy as np
import pytest
from safetensors.numpy import save_file

import quantlab
from quantlab.sources.captured import ArrayInputs, CapturedInputs
from quantlab.sources.tensor import Tensor
from tests.conftest import run

pytestmark = pytest.mark.usefixtures("undrawn")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "up.weight": draw(7, 12),
    "down.weight": draw(12, 7, seed=1),
    "head": draw(3, 12, seed=2),
}
INPUTS = {"up.weight": draw(4, 9, 12, seed=3), "down": draw(30, 7, seed=4)}


@pytest.fixture
def checkpoint(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return ["dist=file/safetensors", f"dist.path={tmp_path}/model.safetensors"]


def write_npz(folder, arrays=INPUTS):
    np.savez(folder / "x.npz", **arrays)
    return str(folder / "x.npz")


def write_safetensors(folder):
    save_file(INPUTS, folder / "x.safetensors")
    return str(folder / "x.safetensors")


def tensor(name):
    return Tensor(name, WEIGHTS[name])


@pytest.mark.parametrize("write", [write_npz, write_safetensors])
def test_inputs_have_the_name_of_the_weight_or_its_layer(tmp_path, write):
    captured = CapturedInputs(write(tmp_path))
    for name, key in (("up.weight", "up.weight"), ("down.weight", "down")):
        x = INPUTS[key].reshape(-1, INPUTS[key].shape[-1]).astype(float)
        assert captured.open(tensor(name)).array.shape == INPUTS[key].shape
        assert captured.gram(tensor(name)) == pytest.approx(x.T @ x, rel=1e-12)
    assert captured.gram(tensor("head")) is captured.identity(tensor("head")) is None
    assert captured.identity(tensor("up.weight")) != captured.identity(tensor("down.weight"))


def test_a_file_that_changes_is_read_again(tmp_path):
    captured = CapturedInputs(write_npz(tmp_path))
    before = captured.gram(tensor("up.weight")), captured.identity(tensor("up.weight"))
    write_npz(tmp_path, {"up.weight": draw(400, 12, seed=5)})
    assert not (captured.gram(tensor("up.weight")) == before[0]).all()
    assert captured.identity(tensor("up.weight")) != before[1]


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (draw(5, 11), "has inputs of 11 values for tensor 'up.weight', whose shape is [7, 12]"),
        (np.float32(1), "has inputs of 0 values for tensor 'up.weight'"),
        (np.full((5, 12), np.nan, np.float32), "tensor 'up.weight' holds 60 NaN or Inf"),
        (np.zeros((5, 12), int), "has 'up.weight', but int64 is no floating-point type"),
    ],
)
def test_inputs_of_another_layer_are_refused(tmp_path, checkpoint, array, sentence):
    done = run(
        *checkpoint, f"metrics.inputs={write_npz(tmp_path, {'up.weight': array})}",
        f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode == 1
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("none.npz", "none.npz: no such file"), ("x.txt", "has none of the suffixes")],
)
def test_a_file_of_no_inputs_is_refused(tmp_path, checkpoint, name, sentence):
    (tmp_path / "x.txt").write_text("x")
    done = run(*checkpoint, f"metrics.inputs={tmp_path}/{name}", f"hydra.sweep.dir={tmp_path}/s")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert sentence in done.stderr


def output_sqnr_db(name, x, x_hat):
    """The SQNR of the outputs themselves."""
    inputs = INPUTS[name].reshape(-1, x.shape[1]).astype(float)
    signal, noise = (np.square(inputs @ m.T).sum() for m in (x.astype(float), x_hat - x))
    return 10 * np.log10(signal / noise)


def test_the_error_of_the_output_is_exact(tmp_path, checkpoint):
    settings = ["mode=sym", "n_bits=4", f"hydra.sweep.dir={tmp_path}/s"]
    path = write_npz(tmp_path)
    done = run("-m", *checkpoint, f"metrics.inputs={path}", *settings)
    assert done.returncode == 0, done.stderr
    table = quantlab.load(tmp_path / "s").set_index("tensor")
    for name, key in (("up.weight", "up.weight"), ("down.weight", "down")):
        w = WEIGHTS[name].astype(float)
        scale = float(np.float32(np.abs(w).max() / 7))
        expected = output_sqnr_db(key, w, np.rint(w / scale) * scale)
        assert table.out_sqnr_db[name] == pytest.approx(expected, abs=1e-4)
    assert "out_sqnr_db: x.npz has no inputs of it" in table.reasons["head"]
    again = run("-m", *checkpoint, f"metrics.inputs={path}", *settings)
    assert "resuming: 1 complete; 0 to do" in again.stdout
    write_npz(tmp_path, {"up.weight": INPUTS["up.weight"] * 2})
    changed = run("-m", *checkpoint, f"metrics.inputs={path}", *settings)
    assert "resuming: 1 changed; 1 to do" in changed.stdout


def test_arrays_in_memory_have_the_figures_of_a_file(tmp_path, checkpoint):
    path = write_npz(tmp_path)
    run(
        "-m", *checkpoint, f"metrics.inputs={path}", "block=group", "n_bits=4",
        f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    table = quantlab.load(tmp_path / "s").set_index("tensor")
    measured = quantlab.measure(
        WEIGHTS, n_bits=4, block=32, inputs={"up.weight": INPUTS["up.weight"]}
    ).set_index("tensor")
    assert measured.out_sqnr_db["up.weight"] == table.out_sqnr_db["up.weight"]
    one = quantlab.measure(WEIGHTS["up.weight"], n_bits=4, block=32, inputs=INPUTS["up.weight"])
    assert one["out_sqnr_db"] == table.out_sqnr_db["up.weight"]
    assert "out_sqnr_db" not in quantlab.measure(WEIGHTS["up.weight"])


def test_the_last_gram_matrix_in_memory_is_computed_once():
    inputs = ArrayInputs({"up.weight": Tensor("up.weight", INPUTS["up.weight"])})
    first = inputs.gram(tensor("up.weight"))
    assert inputs.gram(tensor("up.weight")) is first
    assert inputs.gram(tensor("head")) is inputs.identity(tensor("head")) is None
    assert len(inputs.identity(tensor("up.weight"))) == 64


def test_a_gram_matrix_that_takes_much_memory_is_announced(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("quantlab.experiment.SMALL_GRAM", 8 * 7 * 7)
    where = f"hydra.sweep.dir={tmp_path}/s"
    done = run(*checkpoint, f"metrics.inputs={write_npz(tmp_path)}", where)
    assert done.returncode == 0
    assert done.stderr == "up.weight: its inputs take a matrix of 12 x 12, 0 MiB\n"


def test_a_file_of_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    path = write_npz(tmp_path)
    monkeypatch.setattr("quantlab.sources.hub.locate", lambda *_: path)
    assert CapturedInputs("hf://org/model/x.npz").width(tensor("up.weight")) == 12
