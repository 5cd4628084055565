import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

import quantlab
from quantlab.formats.blocks import INPUT, Group, PerChannel, PerTensor, UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.floats import Float
from quantlab.formats.format import Format
from quantlab.formats.ranges import AbsMax, Entropy, Mse, Percentile
from quantlab.formats.transform import ColumnScales, Hadamard, multiply_hadamard
from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.records import record
from quantlab.sources.calibration import RULES, ArrayInputs, Awq, Calibrated, CapturedInputs, Smooth
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure, reconstruct
from quantlab.sweep import job
from tests.conftest import run

pytestmark = pytest.mark.usefixtures("undrawn")

RNG = np.random.default_rng(0)
X, CALIBRATION = (RNG.standard_normal((n, 16, 24)).astype(np.float32) for n in (5, 40))
OWN_RANGES = {rule.name: rule for rule in (AbsMax(), Percentile(p=99), Mse(), Entropy())}


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "calibration.npz", x=CALIBRATION, n=np.arange(3), other=X[..., :8])
    return str(tmp_path / "calibration.npz")


def opened(form, x=X):
    return form.open(Tensor("x", x))


BLOCKS = [PerTensor(), PerChannel(axis=1), PerChannel(axis=-1)]


@pytest.mark.parametrize("element", [Symmetric(4), Asymmetric(4), Float(8, 4, 3, 448.0)])
@pytest.mark.parametrize(
    ("block", "rule"),
    [
        (block, rule)
        for block in BLOCKS
        for rule in RULES
        if block in BLOCKS[:1] or rule != "entropy"
    ],
)
def test_what_is_calibrated_is_stored_with_the_scales_that_the_calibration_tensor_has(
    path, rule, element, block
):
    static = opened(Format(element, block, Calibrated(path, rule, p=99)))
    assert np.array_equal(
        reconstruct(Tensor("x", CALIBRATION), static),
        reconstruct(Tensor("x", CALIBRATION), Format(element, block, OWN_RANGES[rule])),
    )
    joined = np.concatenate([CALIBRATION, np.zeros_like(X[:1])])  # which widens no range
    assert np.array_equal(
        reconstruct(Tensor("x", joined), static)[: len(CALIBRATION)],
        reconstruct(Tensor("x", CALIBRATION), static),
    )


def test_a_static_scale_is_the_largest_magnitude_of_the_calibration_tensor(path):
    result = measure(Tensor("x", X * 3), opened(Format(Symmetric(8), range=Calibrated(path))))
    scale = np.float32(np.float64(np.abs(CALIBRATION).max()) / 127)
    assert result["params"]["scale"] == scale
    codes = np.clip(np.rint(3 * X / scale), -128, 127)
    assert result["measured"]["clipped"] == np.mean(codes != np.rint(3 * X / scale))
    noise = np.square((codes * scale).astype(np.float64) - 3 * X).sum()
    signal = np.square(3 * X.astype(np.float64)).sum()
    assert result["measured"]["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise))


@pytest.mark.parametrize("element", [Symmetric(8), Asymmetric(8), Float(8, 4, 3, 448.0)])
@pytest.mark.parametrize("block", [PerTensor(), PerChannel(axis=1)])
def test_the_largest_float32_saturates(path, element, block):
    x = X.copy()
    x[0, 0, :2] = np.finfo(np.float32).max, np.finfo(np.float32).min
    x_hat = reconstruct(Tensor("x", x), opened(Format(element, block, Calibrated(path)), x))
    assert np.abs(x_hat).max() < 7
    assert x_hat[0, 0, 0] > 2
    assert x_hat[0, 0, 1] < -2


@pytest.mark.parametrize("block", [PerTensor(), PerChannel(axis=-1)])
def test_threads_change_nothing(path, block):
    x = np.tile(X, (300, 1, 1))
    form = opened(Format(Symmetric(4), block, Calibrated(path, "mse")), x)
    assert measure(Tensor("x", x), form, threads=1) == measure(Tensor("x", x), form, threads=3)


def test_what_is_rotated_is_calibrated_by_what_is_rotated(path):
    form = Format(Symmetric(4), PerTensor(), transform=Hadamard())
    static = opened(Format(Symmetric(4), PerTensor(), Calibrated(path), transform=Hadamard()))
    x = Tensor("x", CALIBRATION)
    assert np.array_equal(reconstruct(x, static), reconstruct(x, form))


def test_in_python_a_range_is_an_object(path):
    result = quantlab.measure({"x": X}, n_bits=8, range=Calibrated(path), select="all")
    assert result["scale"].item() == pytest.approx(np.abs(CALIBRATION).max() / 127)


def test_a_tensor_that_the_file_lacks_is_left_out(path):
    form = Format(Symmetric(8), range=Calibrated(path))
    with pytest.raises(UnfitError, match=r"^calibration\.npz has no tensor of this name"):
        form.open(Tensor("y", X))
    with pytest.raises(UnfitError, match=r"^calibration\.npz has no range of it: int64 is no"):
        form.open(Tensor("n", X))


def test_a_tensor_of_another_model_is_named(path):
    sentence = (
        "tensor 'other' has the shape [5, 16, 24], and [5, 16, 8] in "
        f"{path}: calibrate with the same model"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Format(Symmetric(8), range=Calibrated(path)).open(Tensor("other", X))


def test_scales_of_samples_are_not_static(path):
    message = r"which has 40 scales of block=channel: static scales are along an axis that counts"
    with pytest.raises(ValueError, match=message):
        opened(Format(Symmetric(8), PerChannel(), Calibrated(path)))


def test_values_that_are_not_finite_are_said_of_the_calibration_file(tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.full((2, 24), np.nan, np.float32))
    form = Format(Symmetric(8), range=Calibrated(str(tmp_path / "bad.npz")))
    message = r"^tensor 'x in .*bad\.npz' holds 48 NaN or Inf"
    with pytest.raises(ValueError, match=message):
        measure(Tensor("x", X[0]), form.open(Tensor("x", X[0])))


def test_a_bad_setting_is_named(path):
    with pytest.raises(ValueError, match=r"^range\.rule must be one of absmax, .*, got 'max'$"):
        Calibrated(path, "max")
    with pytest.raises(ValueError, match=r"^range\.p must be a number above 50"):
        Calibrated(path, "percentile", p=5)
    with pytest.raises(ValueError, match="none: no such file"):
        Calibrated("none")
    with pytest.raises(ContradictionError, match="range=calibrated does not go with block=group"):
        quantlab.measure(X, block=32, range=Calibrated(path))


LAYER_RNG = np.random.default_rng(0)
WEIGHT = (LAYER_RNG.standard_normal((40, 64)) * 0.05).astype(np.float32)
INPUTS = LAYER_RNG.standard_normal((3, 50, 64)).astype(np.float32)
INPUTS[..., [3, 17, 40]] *= 30
INPUTS[..., 5] = 0  # an input that never comes
PLAIN = [Format(Symmetric(3), Group(32)), Format(Asymmetric(4), PerChannel())]


@pytest.fixture
def inputs_path(tmp_path):
    np.savez(tmp_path / "captured.npz", w=INPUTS, narrow=INPUTS[..., :8])
    return str(tmp_path / "captured.npz")


def scaled(plain, transform, tensor=None):
    form = Format(plain.element, plain.block, transform=transform)
    return form.open(tensor or Tensor("w", WEIGHT))


def output_noise(x_hat):
    x = INPUTS.reshape(-1, 64).astype(np.float64)
    return np.square(x @ (x_hat.astype(np.float64) - WEIGHT).T).mean()


def best_of(scales_of, plain):
    """Search as llm-awq's `auto_scale_block`: quantize, run the layer, take the least loss."""
    best, least = None, np.inf
    for step in range(21):
        scales = scales_of(step / 20).astype(np.float16).astype(np.float32)
        x_hat = reconstruct(Tensor("w", WEIGHT * scales), plain) / scales
        loss = output_noise(x_hat)
        if loss < least:
            best, least = x_hat, loss
    return best


def awq_scales(ratio):
    """Compute the scales as llm-awq does: `get_act_scale`, then `_search_module_scale`."""
    x_max = np.abs(INPUTS).reshape(-1, 64).astype(np.float64).mean(0)
    scales = np.clip(x_max**ratio, 1e-4, None)
    return scales / np.sqrt(scales.max() * scales.min())


def smooth_scales(alpha):
    """Compute the scales as `smooth_ln_fcs` of SmoothQuant does."""
    act_scales = np.abs(INPUTS).reshape(-1, 64).max(0).astype(np.float64)
    weight_scales = np.clip(np.abs(WEIGHT).max(0).astype(np.float64), 1e-5, None)
    return np.clip(act_scales**alpha / weight_scales ** (1 - alpha), 1e-5, None)


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize(("rule", "scales_of"), [(Awq, awq_scales), (Smooth, smooth_scales)])
def test_weights_come_back_as_by_the_published_rule(inputs_path, rule, scales_of, plain):
    x_hat = reconstruct(Tensor("w", WEIGHT), scaled(plain, rule(inputs_path)))
    assert np.array_equal(x_hat, best_of(scales_of, plain))
    assert output_noise(x_hat) < output_noise(reconstruct(Tensor("w", WEIGHT), plain)) / 2


@pytest.mark.parametrize("rule", [Awq, Smooth])
@given(weight=arrays(np.float32, (3, 64), elements=st.floats(-4, 4, width=32)))
def test_the_output_is_never_worse_than_without(tmp_path_factory, rule, weight):
    file = tmp_path_factory.getbasetemp() / "law.npz"
    if not file.exists():
        np.savez(file, w=INPUTS)
    tensor, x = Tensor("w", weight), INPUTS.reshape(-1, 64).astype(np.float64)
    noises = [
        np.square(x @ (reconstruct(tensor, form).astype(np.float64) - weight).T).sum()
        for form in (scaled(PLAIN[0], rule(str(file)), tensor), PLAIN[0])
    ]
    assert noises[0] <= noises[1] * (1 + 1e-9)


@given(
    arrays(np.float32, (2, 8), elements=st.floats(-(2.0**90), 2.0**90, width=32)),
    arrays(np.float64, 8, elements=st.floats(1e-5, 6e4)),
)
def test_without_rounding_it_is_undone(x, scales):
    transform = ColumnScales.of("awq", scales)
    y = transform.forward(x, multiply_hadamard)
    x_hat = transform.backward(y, multiply_hadamard)
    np.testing.assert_allclose(x_hat, x, rtol=1e-6, atol=1e-38)


def test_a_float16_a_column_is_stored(inputs_path):
    plain, form = PLAIN[0], scaled(PLAIN[0], Awq(inputs_path))
    bits = [measure(Tensor("w", WEIGHT), f)["storage"]["bits_per_value"] for f in (plain, form)]
    assert bits[1] - bits[0] == pytest.approx(16 / len(WEIGHT))


def test_threads_change_no_scale_of_columns(inputs_path):
    tall = Tensor("w", np.tile(WEIGHT, (80, 1)))
    form = scaled(PLAIN[0], Awq(inputs_path), tall)
    assert measure(tall, form, threads=1) == measure(tall, form, threads=3)


def test_inputs_along_the_first_axis_take_groups_along_it(inputs_path):
    turned = Tensor("w", np.ascontiguousarray(WEIGHT.T), input_axis=0)
    form = Format(Symmetric(3), Group(32, INPUT), transform=Awq(inputs_path)).open(turned)
    expected = reconstruct(Tensor("w", WEIGHT), scaled(PLAIN[0], Awq(inputs_path)))
    assert np.array_equal(reconstruct(turned, form).T, expected)
    with pytest.raises(UnfitError, match=r"^its inputs lie along axis 0, and transform=awq scales"):
        Format(Symmetric(3), PerChannel(), transform=Awq(inputs_path)).open(turned)


def test_a_tensor_without_inputs_is_left_out(inputs_path):
    with pytest.raises(UnfitError, match=r"^captured\.npz has no inputs of it$"):
        scaled(PLAIN[0], Awq(inputs_path), Tensor("other", WEIGHT))
    sentence = f"{inputs_path} has inputs of 8 values for tensor 'narrow', whose shape is [40, 64]"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        scaled(PLAIN[0], Awq(inputs_path), Tensor("narrow", WEIGHT))
    stack = Tensor("w", WEIGHT.reshape(2, 20, 64))
    with pytest.raises(UnfitError, match=r"^its rows have 1280 values, and its layer 64 inputs$"):
        scaled(PLAIN[0], Awq(inputs_path), stack)


def test_a_file_that_is_missing_is_named():
    with pytest.raises(ValueError, match="none: no such file"):
        Awq("none")


def test_in_python_a_transform_is_an_object(inputs_path):
    with pytest.raises(ValueError, match="transform must be one of hadamard, none, got 'awq'"):
        quantlab.measure(WEIGHT, transform="awq")
    result = quantlab.measure({"w": WEIGHT}, n_bits=3, block=32, transform=Smooth(inputs_path))
    assert result["bits_per_value"].item() == 4.4


@pytest.mark.parametrize(
    ("group", "setting", "target"),
    [("range", "path", "Calibrated"), ("transform", "inputs", "Awq")],
)
def test_a_run_is_another_when_its_file_is(tmp_path, group, setting, target):
    np.savez(tmp_path / "x.npz", x=X[0])
    config = {
        "dist": {"_target_": "quantlab.sources.numpy.Npz", "path": str(tmp_path / "x.npz")},
        "mode": {"_target_": "quantlab.formats.uniform.Symmetric"},
        group: {
            "_target_": f"quantlab.sources.calibration.{target}",
            setting: str(tmp_path / "calibration.npz"),
        },
        "n_bits": 4,
        "rank": {"k": 10},
        "metrics": {"rel_threshold": 1e-8},
    }
    keys = []
    for power in (1, 2, 1):
        np.savez(tmp_path / "calibration.npz", x=CALIBRATION[0] ** power)
        keys.append(record.run_key(config, *job.build(config).identify()))
    assert keys[0] == keys[2] != keys[1]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "up.weight": draw(7, 12),
    "down.weight": draw(12, 7, seed=1),
    "head": draw(3, 12, seed=2),
}
CAPTURED = {"up.weight": draw(4, 9, 12, seed=3), "down": draw(30, 7, seed=4)}


@pytest.fixture
def checkpoint(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return ["dist=file/safetensors", f"dist.path={tmp_path}/model.safetensors"]


def write_npz(folder, arrays=CAPTURED):
    np.savez(folder / "x.npz", **arrays)
    return str(folder / "x.npz")


def write_safetensors(folder):
    save_file(CAPTURED, folder / "x.safetensors")
    return str(folder / "x.safetensors")


def tensor(name):
    return Tensor(name, WEIGHTS[name])


@pytest.mark.parametrize("write", [write_npz, write_safetensors])
def test_inputs_have_the_name_of_the_weight_or_its_layer(tmp_path, write):
    captured = CapturedInputs(write(tmp_path))
    for name, key in (("up.weight", "up.weight"), ("down.weight", "down")):
        x = CAPTURED[key].reshape(-1, CAPTURED[key].shape[-1]).astype(float)
        assert captured.open(tensor(name)).array.shape == CAPTURED[key].shape
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
    inputs = CAPTURED[name].reshape(-1, x.shape[1]).astype(float)
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
    write_npz(tmp_path, {"up.weight": CAPTURED["up.weight"] * 2})
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
        WEIGHTS, n_bits=4, block=32, inputs={"up.weight": CAPTURED["up.weight"]}
    ).set_index("tensor")
    assert measured.out_sqnr_db["up.weight"] == table.out_sqnr_db["up.weight"]
    one = quantlab.measure(WEIGHTS["up.weight"], n_bits=4, block=32, inputs=CAPTURED["up.weight"])
    assert one["out_sqnr_db"] == table.out_sqnr_db["up.weight"]
    assert "out_sqnr_db" not in quantlab.measure(WEIGHTS["up.weight"])


def test_the_last_gram_matrix_in_memory_is_computed_once():
    inputs = ArrayInputs({"up.weight": Tensor("up.weight", CAPTURED["up.weight"])})
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
