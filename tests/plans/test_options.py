import itertools
import json
import math

import pytest

import quantlab
from quantlab.plans.options import (
    Option,
    float_width,
    parse_weights,
    read_originals,
    read_sensitivity,
    relative_error,
    total_bits,
)
from tests.conftest import run, run_quantlab
from tests.models.samples import two_layers
from tests.plans.samples import assigned, option, original, stored, sweep, two

NAMES = ["a.weight", "b,c"]


def test_options_sort_as_one_would_choose():
    best_first = [
        Option(4, 1.0, "a"), Option(4, 1.0, "b"), Option(4, 2.0, "a"), Option(5, 0.0, "a"),
    ]  # fmt: skip
    for order in itertools.permutations(best_first):
        assert sorted(order) == best_first


def test_tensors_together_cost_and_lose_the_sum():
    both = option(assigned("nf4", 4, 0.5), assigned("nf4", 6, 0.25))
    assert (both.bits, both.noise, both.format) == (10, 0.75, "nf4")
    assert option(stored(4), stored(2, "float16")).format == ("float32, float16")
    assert (total_bits([both, both]), both.noise) == (20, 0.75)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"sqnr_db": 20.0, "max_err": 1.0}, 0.01),
        ({"sqnr_db": -10.0, "max_err": 1.0}, 10.0),
        ({"sqnr_db": None, "max_err": 0.0}, 0.0),
        ({"sqnr_db": None, "max_err": 1.0}, math.inf),
        ({"max_err": 1.0}, math.inf),
    ],
)
def test_noise_is_the_relative_squared_error(row, error):
    assert relative_error(row, "sqnr_db") == pytest.approx(error)
    assert relative_error({"out_sqnr_db": 30.0, **row}, "out_sqnr_db") == pytest.approx(1e-3)


def test_the_size_is_that_of_the_dtype_or_of_the_file():
    tensors = [
        original("a", (3, 4), dtype="bfloat16"),
        original("b", (3, 4), dtype="int64", n_bytes=96, reason="int64 is no float"),
        original("c", (), dtype="float64"),
        original("d", (0, 4)),
    ]
    found = read_originals(sweep(two(), tensors))
    assert [each.bits for each in found] == [192, 768, 64, 0]
    assert [each.size for each in found] == [12, 12, 1, 0]
    assert [each.reason for each in found] == [None, "int64 is no float", None, None]


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", ""])
def test_only_floats_say_their_width(dtype):
    assert float_width("float4_e2m1fn") == 4
    with pytest.raises(ValueError, match="is no floating-point dtype"):
        float_width(dtype)


def test_two_sources_may_have_a_tensor_of_one_name():
    tensors = [original("w", dist="x"), original("w", dist="y")]
    assert [each.key for each in read_originals(sweep(two(), tensors))] == [("x", "w"), ("y", "w")]


def test_two_tensors_of_one_source_and_name_are_refused():
    tensors = [original("w", sha256=digit * 64) for digit in "123"]
    with pytest.raises(
        ValueError, match="holds 3 tensors 'w' of file/safetensors: a plan is of on"
    ):
        read_originals(sweep(two(), tensors))


def test_a_sweep_without_tensors_has_none():
    assert read_originals(sweep([])) == []


def test_what_is_listed_is_read(tmp_path):
    path = tmp_path / "w.csv"
    path.write_text('tensor,alpha\na.weight,2.5\n\n"b,c",0\n')
    assert parse_weights(path, NAMES) == {"a.weight": 2.5, "b,c": 0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must begin with the line tensor,alpha"),
        ("a.weight,2\n", "must begin with the line tensor,alpha"),
        ("tensor,alpha\nx,1\n", "line 2: the sweep has no tensor 'x': near"),
        (
            "tensor,alpha\na.weight,-1\n",
            "line 2: the alpha of 'a.weight' must be from 0 up, got '-1'",
        ),
        ("tensor,alpha\na.weight,nan\n", "must be from 0 up, got 'nan'"),
        ("tensor,alpha\na.weight,much\n", "must be from 0 up, got 'much'"),
        ("tensor,alpha\na.weight,1\na.weight,1\n", "line 3: 'a.weight' stands there twice"),
        ("tensor,alpha\na.weight\n", "line 2: a line is a tensor and its alpha, got 'a.weight'"),
        ("\xff", "w.csv cannot be read"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, content, said):
    path = tmp_path / "w.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{path}") as caught:
        parse_weights(path, NAMES)
    assert said.replace("near", "") in str(caught.value)


def test_weights_given_in_python_are_held_to_the_same():
    assert parse_weights({"a.weight": 1.0}, NAMES) == {"a.weight": 1.0}
    with pytest.raises(ValueError, match=r"weights: the alpha of 'a.weight' must be from 0 up"):
        parse_weights({"a.weight": -1.0}, NAMES)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """Sweeps of noise and of formats, of a model of two layers with each tensor alone."""
    folder = tmp_path_factory.mktemp("sweeps")
    path, inputs, _, _ = two_layers(folder)
    answers = ["model=onnx", f"model.inputs={inputs}", "model.each=true"]
    for name, *overrides in (
        ("noise", "mode=noise", "mode.sqnr_db=-20,30,40", *answers),
        ("formats", "mode=sym", "n_bits=4,6,8", "block=group", "block.size=4", *answers),
        ("silent", "mode=noise", "mode.sqnr_db=30", "dist.include=w1"),
    ):
        directory = f"hydra.sweep.dir={folder / name}"
        done = run("-m", "dist=file/onnx", f"dist.path={path}", *overrides, directory)
        assert done.returncode == 0, done.stderr
    return folder


def test_alphas_are_the_kl_over_the_noise(sweeps):
    found = read_sensitivity(sweeps / "noise", ["w1", "w2"])
    table = quantlab.load(sweeps / "noise").set_index(["tensor", "mode.sqnr_db"])
    answers = quantlab.answers(sweeps / "noise").set_index(["tensor", "mode.sqnr_db"])
    for name, alpha in found.alphas.items():
        product = 1.0
        for level in (-20, 30, 40):
            noise = 10 ** (-table.sqnr_db[name, level] / 10)
            product *= answers.kl[name, level] / noise
        assert alpha == pytest.approx(product ** (1 / 3))
    assert found.levels == (-20, 40)
    assert {*found.doubtful} <= {"w1", "w2"}


def test_a_plan_by_noise_predicts_a_kl(sweeps):
    done = run_quantlab("plan", sweeps / "formats", "--bits", "15", "--weights", sweeps / "noise")
    assert done.returncode == 0, done.stderr
    content = json.loads((sweeps / "formats" / "plan.json").read_text())
    assert content["asked"]["weights"] == str(sweeps / "noise")
    assert content["predicted_kl"] == content["noise"]
    alphas = read_sensitivity(sweeps / "noise", ["w1", "w2"]).alphas
    expected = sum(
        alphas[row["tensor"]] * 10 ** (-row["sqnr_db"] / 10) for row in content["tensors"]
    )
    assert content["predicted_kl"] == pytest.approx(expected)
    assert f"lose {expected:.3g} bits" in done.stdout
    small = quantlab.plan(sweeps / "formats", kl=2 * expected, weights=sweeps / "noise")
    assert expected / 2 < small.noise.sum() <= 2 * expected


def test_sizes_of_noise_that_disagree_are_named(sweeps):
    done = run_quantlab("plan", sweeps / "formats", "--bits", "15", "--weights", sweeps / "noise")
    doubtful = read_sensitivity(sweeps / "noise", ["w1", "w2"]).doubtful
    assert doubtful  # at -20 dB the answers are far from the straight part
    sentence = (
        f"The alpha of {len(doubtful)} of 2 tensors differs more than 2 times between -20 and 40 dB"
    )
    assert sentence in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("formats", {}, "is no sweep of noise: sweep with mode=noise mode.sqnr_db=30,40 model="),
        ("silent", {}, "silent/answers.csv does not exist: sweep with model="),
        ("noise", {"by": "kl"}, "by takes sqnr_db with weights of noise, got 'kl'"),
    ],
)
def test_a_sweep_that_measured_no_alphas_is_refused(sweeps, name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        quantlab.plan(sweeps / "formats", bits=9, weights=sweeps / name, **options)


def test_a_tensor_without_noise_is_named(sweeps):
    with pytest.raises(ValueError, match=r"no alpha of 1 of the 3 tensors measured \(w3\)"):
        read_sensitivity(sweeps / "noise", ["w1", "w2", "w3"])
