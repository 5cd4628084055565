import re

import numpy as np
import pytest

import quantlab
from quantlab.formats.blocks import PerChannel, PerTensor, UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.floats import Float
from quantlab.formats.format import Format
from quantlab.formats.ranges import AbsMax, Entropy, Mse, Percentile
from quantlab.formats.transform import Hadamard
from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.records import record
from quantlab.sources.calibration import RULES, Calibrated
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure, reconstruct
from quantlab.sweep import job

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


def run_key(config):
    experiment = job.build(config)
    return record.run_key(config, *experiment.identify())


def test_a_run_is_another_when_its_calibration_is(tmp_path):
    np.save(tmp_path / "x.npy", X)
    config = {
        "dist": {"_target_": "quantlab.sources.numpy.Npy", "path": str(tmp_path / "x.npy")},
        "mode": {"_target_": "quantlab.formats.uniform.Symmetric"},
        "range": {
            "_target_": "quantlab.sources.calibration.Calibrated",
            "path": str(tmp_path / "calibration.npz"),
        },
        "n_bits": 8,
        "rank": {"k": 10},
        "metrics": {"rel_threshold": 1e-8},
    }
    keys = []
    for scale in (1, 2, 1):
        np.savez(tmp_path / "calibration.npz", x=CALIBRATION * scale)
        keys.append(run_key(config))
    assert keys[0] == keys[2] != keys[1]
