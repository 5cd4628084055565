import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantlab
from quantlab.formats.blocks import INPUT, Group, PerChannel, UnfitError
from quantlab.formats.format import Format
from quantlab.formats.transform import ColumnScales, multiply_hadamard
from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.records import record
from quantlab.sources.input_scaling import Awq, Smooth
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure, reconstruct
from quantlab.sweep import job

RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_normal((40, 64)) * 0.05).astype(np.float32)
INPUTS = RNG.standard_normal((3, 50, 64)).astype(np.float32)
INPUTS[..., [3, 17, 40]] *= 30
INPUTS[..., 5] = 0  # an input that never comes
PLAIN = [Format(Symmetric(3), Group(32)), Format(Asymmetric(4), PerChannel())]


@pytest.fixture
def path(tmp_path):
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
def test_weights_come_back_as_by_the_published_rule(path, rule, scales_of, plain):
    x_hat = reconstruct(Tensor("w", WEIGHT), scaled(plain, rule(path)))
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


def test_a_float16_a_column_is_stored(path):
    plain, form = PLAIN[0], scaled(PLAIN[0], Awq(path))
    bits = [measure(Tensor("w", WEIGHT), f)["storage"]["bits_per_value"] for f in (plain, form)]
    assert bits[1] - bits[0] == pytest.approx(16 / len(WEIGHT))


def test_threads_change_nothing(path):
    tall = Tensor("w", np.tile(WEIGHT, (80, 1)))
    form = scaled(PLAIN[0], Awq(path), tall)
    assert measure(tall, form, threads=1) == measure(tall, form, threads=3)


def test_inputs_along_the_first_axis_take_groups_along_it(path):
    turned = Tensor("w", np.ascontiguousarray(WEIGHT.T), input_axis=0)
    form = Format(Symmetric(3), Group(32, INPUT), transform=Awq(path)).open(turned)
    expected = reconstruct(Tensor("w", WEIGHT), scaled(PLAIN[0], Awq(path)))
    assert np.array_equal(reconstruct(turned, form).T, expected)
    with pytest.raises(UnfitError, match=r"^its inputs lie along axis 0, and transform=awq scales"):
        Format(Symmetric(3), PerChannel(), transform=Awq(path)).open(turned)


def test_a_tensor_without_inputs_is_left_out(path):
    with pytest.raises(UnfitError, match=r"^captured\.npz has no inputs of it$"):
        scaled(PLAIN[0], Awq(path), Tensor("other", WEIGHT))
    sentence = f"{path} has inputs of 8 values for tensor 'narrow', whose shape is [40, 64]"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        scaled(PLAIN[0], Awq(path), Tensor("narrow", WEIGHT))
    stack = Tensor("w", WEIGHT.reshape(2, 20, 64))
    with pytest.raises(UnfitError, match=r"^its rows have 1280 values, and its layer 64 inputs$"):
        scaled(PLAIN[0], Awq(path), stack)


def test_a_file_that_is_missing_is_named():
    with pytest.raises(ValueError, match="none: no such file"):
        Awq("none")


def test_in_python_a_transform_is_an_object(path):
    with pytest.raises(ValueError, match="transform must be one of hadamard, none, got 'awq'"):
        quantlab.measure(WEIGHT, transform="awq")
    result = quantlab.measure({"w": WEIGHT}, n_bits=3, block=32, transform=Smooth(path))
    assert result["bits_per_value"].item() == 4.4


def test_a_run_is_another_when_its_inputs_are(tmp_path):
    np.save(tmp_path / "w.npy", WEIGHT)
    config = {
        "dist": {"_target_": "quantlab.sources.numpy.Npy", "path": str(tmp_path / "w.npy")},
        "mode": {"_target_": "quantlab.formats.uniform.Symmetric"},
        "transform": {
            "_target_": "quantlab.sources.input_scaling.Awq",
            "inputs": str(tmp_path / "captured.npz"),
        },
        "n_bits": 4,
        "rank": {"k": 10},
        "metrics": {"rel_threshold": 1e-8},
    }
    keys = []
    for power in (1, 2, 1):
        np.savez(tmp_path / "captured.npz", w=INPUTS**power)
        keys.append(record.run_key(config, *job.build(config).identify()))
    assert keys[0] == keys[2] != keys[1]
