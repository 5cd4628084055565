from pathlib import Path
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest
from omegaconf import OmegaConf

import quantlab
from quantlab import quant
from quantlab.formats import uniform
from quantlab.formats.blocks import Group, PerChannel
from quantlab.formats.format import Format
from quantlab.formats.ranges import Mse, Percentile
from quantlab.formats.transform import Hadamard
from tests.conftest import ROOT, measure
from tests.models.samples import answer_two_layers
from tests.models.test_figures import compare
from tests.models.test_model import TwoLayers
from tests.test_architecture import modules_after

X = np.random.default_rng(0).standard_normal((20, 50)).astype(np.float32)


@pytest.mark.parametrize("mode", uniform.MODES)
@pytest.mark.parametrize("n_bits", [2, 8, 16])
def test_an_array_is_measured_as_a_run_measures_it(mode, n_bits):
    result = quantlab.measure(X, mode=mode, n_bits=n_bits)
    entry = measure(X, uniform.MODES[mode](n_bits))
    figures = {**entry["params"], **entry["measured"], **entry["rank"]}
    assert {key: result[key] for key in figures} == figures
    assert len(result) == len(dict(result)) > len(figures)


@pytest.mark.parametrize("x", [X.tolist(), X.astype(np.float64), X.T.copy().T, X.astype(">f4")])
def test_whatever_holds_the_numbers(x):
    assert quantlab.measure(x)["sqnr_db"] == quantlab.measure(X)["sqnr_db"]


@pytest.mark.parametrize(
    "how",
    [{"n_bits": 4}, {"mode": "asym", "block": 10, "scale": "float16"}, {"mode": "ggml/q8_0"},
     {"mode": "mx/fp4", "transform": "hadamard"}, {"mode": "log", "block": "channel"}],
)  # fmt: skip
def test_what_comes_back_has_the_figures_that_are_measured(how):
    x = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float16)
    x_hat = quantlab.roundtrip(x, **how)
    assert (x_hat.dtype, x_hat.shape) == (np.float32, x.shape)
    error, result = x_hat - x.astype(np.float64), quantlab.measure(x, **how)
    assert result["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-12)
    assert result["max_err"] == np.float32(np.abs(error).max())


def test_what_comes_back_is_refused_as_what_is_measured():
    with pytest.raises(ValueError, match=r"x cannot be stored as ggml/q8_0: its rows of 50 values"):
        quantlab.roundtrip(X, mode="ggml/q8_0")


def test_a_grid_has_a_row_for_each_tensor_and_format(tmp_path):
    arrays = {"a": X, "b": X[:4, :32], "bias": X[0]}
    np.savez(tmp_path / "m.npz", **arrays)
    choices = {"mode": ["sym", "nf4", "ggml/q8_0"], "n_bits": [4, 8], "block": ["tensor", 10]}
    table = quantlab.measure_grid(tmp_path / "m.npz", **choices)
    assert table.columns[:4].tolist() == ["tensor", "mode", "n_bits", "block"]
    rows = table[["tensor", "mode", "n_bits", "block"]].to_numpy().tolist()
    formats = [["sym", 4, "tensor"], ["sym", 4, 10], ["sym", 8, "tensor"], ["sym", 8, 10],
               ["nf4", 4, "tensor"], ["nf4", 4, 10]]  # fmt: skip
    of_b = [*formats, ["ggml/q8_0", 8, "tensor"]]
    assert rows == [["a", *form] for form in formats] + [["b", *form] for form in of_b]
    assert table["sqnr_db"][1] == quantlab.measure(X, n_bits=4, block=10)["sqnr_db"]
    same = quantlab.measure_grid(arrays, **choices)
    assert same["sqnr_db"].tolist() == table["sqnr_db"].tolist()
    assert set(quantlab.measure_grid(arrays, select="all")["tensor"]) == set(arrays)


def test_a_mode_that_goes_with_nothing_is_refused():
    with pytest.raises(ValueError, match=r"nf4"):
        quantlab.measure_grid(X, mode=["sym", "nf4"], n_bits=[3, 8])


def test_whole_numbers_are_numbers():
    assert quantlab.measure(range(-127, 128))["max_err"] == 0
    assert quantlab.measure(np.arange(5).astype(ml_dtypes.bfloat16))["n_codes"] == 5


@pytest.mark.parametrize(
    ("x", "how", "why"),
    [
        (
            X,
            {"mode": "nf5"},
            "mode must be one of asym, .*, ggml/q4_k, .*, sym, .*got 'nf5'",
        ),
        (
            X,
            {"mode": "nf4", "n_bits": 8},
            "n_bits must be 4, the width of nf4, got 8",
        ),
        (X, {"mode": "mx/fp4", "block": 32}, "block=group does not go with a mode that fixes"),
        (
            X,
            {"block": "row"},
            "block must be one of channel, group, tensor, or a size of groups, got 'row'",
        ),
        (X, {"block": 0}, "block.size must be a whole number of 1 or more, got 0"),
        (X, {"range": "max"}, "range must be one of absmax, entropy, mse, percentile, got 'max'"),
        (X, {"scale": "int8"}, "block.scale must be one of float32, float16, bfloat16, got 'int8'"),
        (X, {"n_bits": 1}, "n_bits must be a whole number from 2 to 16, got 1"),
        (["a"], {}, "x must hold real numbers, got dtype <U1"),
        ("m.npz", {}, "x must be an array or a mapping of names to arrays, got 'm.npz': quantlab."),
        (Path("m.npz"), {}, "x must be an array or .*'m.npz': quantlab.measure_grid takes a file$"),
        (X + 1j, {}, "x must hold real numbers, got dtype complex64"),
        ([], {}, "tensor 'x' is empty"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), {}, "x is a masked array"),
        ([1, np.nan], {}, "tensor 'x' holds 1 NaN or Inf among its 2 values"),
    ],
)
def test_what_cannot_be_measured_is_named(x, how, why):
    with pytest.raises(ValueError, match=f"^{why}"):
        quantlab.measure(x, **how)


def test_a_format_is_chosen_as_on_the_command_line():
    result = quantlab.measure(X, mode="sym", n_bits=4, block=32, scale="float16", range="mse")
    form = Format(uniform.Symmetric(4), Group(size=32, scale="float16"), Mse())
    assert result["sqnr_db"] == measure(X, form)["measured"]["sqnr_db"]
    assert result["bits_per_value"] == 4 + 16 * 40 / X.size  # two groups in each row of 50
    narrower = quantlab.measure(X, n_bits=4, range=Percentile(p=99))
    assert narrower["clip_share"] > 0
    rotated = quantlab.measure(X, n_bits=4, block="channel", transform="hadamard")
    form = Format(uniform.Symmetric(4), PerChannel(), transform=Hadamard())
    assert rotated["sqnr_db"] == measure(X, form)["measured"]["sqnr_db"]
    preset = quantlab.measure(X, mode="mx/fp4")
    assert (preset["n_scales"], preset["scale"]) == (40, None)
    assert "there are 40 scales" in preset["reasons"]


def test_a_mapping_gives_a_table():
    arrays = {"w": X, "b": X[0]}
    assert quantlab.measure(arrays)["tensor"].tolist() == ["w"]
    table = quantlab.measure(arrays, mode="nf4", block="channel", select="all")
    assert table["tensor"].tolist() == ["w", "b"]
    assert table["n_scales"].tolist() == [20, 1]
    assert table["sqnr_db"][1] == quantlab.measure(X[0], mode="nf4")["sqnr_db"]


class TorchLike:
    """What a PyTorch tensor of bfloat16 can do and cannot."""

    def __init__(self, values, dtype):
        self.values, self.dtype = values, dtype

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return TorchLike(self.values, "torch.float32")

    def __array__(self, dtype=None, copy=None):
        assert self.dtype != "torch.bfloat16", "NumPy has no such dtype"
        return self.values


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_arrays_of_other_libraries_are_taken_as_they_are(dtype):
    assert dict(quantlab.measure(TorchLike(X, dtype))) == dict(quantlab.measure(X))


def test_it_shows_itself_in_a_terminal_and_in_a_notebook():
    result = quantlab.measure(X, mode="asym", n_bits=4)
    assert repr(result).startswith("x [20, 50], asymmetric, 4 bits\n  scale ")
    shown = result._repr_html_()
    picture = ElementTree.fromstring(shown[shown.index("<svg") : shown.index("</svg>") + 6])
    assert picture.get("aria-label").startswith("Above, how often errors of each size occur")
    assert f"{result['sqnr_db']:.6g}" in shown
    assert "The 10 largest values, before and after" in shown
    assert shown == quantlab.measure(X, mode="asym", n_bits=4)._repr_html_()


@pytest.mark.parametrize("mode", uniform.MODES)
def test_a_mode_is_called_as_its_yaml(mode):
    named = uniform.MODES[mode]
    target = OmegaConf.load(ROOT / "conf" / "mode" / f"{mode}.yaml")["_target_"]
    assert target == f"{named.__module__}.{named.__name__}"


def test_the_public_names_are_few_and_sorted():
    assert quantlab.__all__ == sorted(quantlab.__all__)
    assert set(quantlab.__all__) <= set(dir(quantlab))
    with pytest.raises(AttributeError, match="has no attribute 'maesure'"):
        quantlab.__getattr__("maesure")


def test_importing_quantlab_loads_nothing():
    assert {"quantlab"} == {
        name for name in modules_after("import quantlab") if "quantlab" in name or name == "numpy"
    }


def test_a_model_answers_with_the_arrays_of_a_mapping():
    model = TwoLayers()
    table = quantlab.measure(model.weights, "sym", n_bits=4, model=model)
    (answer,) = table.attrs["answers"].to_dict("records")
    stored = {name: round_trip(array, 4) for name, array in model.weights.items()}
    before = answer_two_layers(model.x, model.weights)
    after = answer_two_layers(model.x, stored)
    expected = compare(before, after, "probabilities", k=10)["figures"]
    assert answer["kl"] == pytest.approx(expected["kl"], rel=1e-12)
    assert answer["top1_same"] == expected["top1_same"]
    with pytest.raises(ValueError, match="model answers with a mapping"):
        quantlab.measure(model.weights["w1"], model=model)


def round_trip(x, n_bits):
    """The lab's symmetric quantizer, in its six functions."""
    scale = quant.choose_scale_symmetric(x, n_bits)
    codes = quant.quantize_fp32_to_int8(x, scale, n_bits)
    return quant.dequantize_int8_to_fp32(codes, scale)


def test_the_scale_of_a_grid_is_a_figure_and_its_type_a_choice():
    table = quantlab.measure_grid(X, scale=["float32", "float16"])
    assert table["scale_dtype"].tolist() == ["float32", "float16"]
    assert table["scale"][0] == quantlab.measure(X)["scale"]


def test_a_grid_tells_objects_of_one_class_apart():
    table = quantlab.measure_grid(X, range=[Percentile(90.0), Percentile(99.0)])
    assert table["range"].nunique() == 2


def test_a_grid_that_fits_nothing_says_why():
    with pytest.raises(ValueError, match=r"no tensor can be stored .* its rows of 50 values"):
        quantlab.measure_grid(X, mode="ggml/q8_0")


@pytest.mark.parametrize(
    ("x", "inputs", "why"),
    [
        ({"w": X}, X, "inputs must be a mapping of names to arrays where x is one"),
        (X, {"x": X}, "inputs must be a mapping of names to arrays where x is one"),
        ({"w": X}, {"v": X}, "inputs are of 'v', which x has not"),
    ],
)
def test_inputs_that_are_of_no_array_are_refused(x, inputs, why):
    with pytest.raises(ValueError, match=why):
        quantlab.measure(x, inputs=inputs)


def test_what_comes_back_is_rounded_as_what_is_measured():
    choices = {"n_bits": 3, "rounding": "gptq", "inputs": X[:20]}
    error = quantlab.roundtrip(X, **choices) - X
    assert quantlab.measure(X, **choices)["max_err"] == np.abs(error).max()
