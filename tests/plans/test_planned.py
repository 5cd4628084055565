import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

import quantlab
from quantlab.conf import CONF
from quantlab.formats.element import ContradictionError
from quantlab.formats.format import FormatSpec
from quantlab.formats.uniform import mode_name
from quantlab.models.activations import ModelInputs
from quantlab.plans.planned import Planned, build_format
from quantlab.records.record import format_spec
from quantlab.sources.onnx import Onnx
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import reconstruct
from quantlab.sweep import job
from tests.conftest import run, run_quantlab
from tests.models.samples import draw, two_layers

pytestmark = pytest.mark.usefixtures("undrawn")
FORMATS = [
    "mode=asym n_bits=5",
    "mode=asym mode.zero_point=wide_int n_bits=4",
    "mode=sym block=group block.size=8 block.scale=float16 n_bits=4",
    "mode=sym block=group block.size=8 block.axis=input n_bits=4",
    "mode=sym block=channel block.axis=1 range=mse n_bits=4",
    "mode=sym range=percentile range.p=99 n_bits=4",
    "mode=log n_bits=5",
    "mode=sym transform=hadamard transform.seed=3 n_bits=4",
    "mode=mx/fp4 transform=hadamard transform.size=16",
    "mode=nf4",
    "mode=mx/fp4",
    "mode=nv/fp4",
    "mode=ggml/q4_0",
]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A sweep of a model of two layers, each tensor alone too."""
    folder = tmp_path_factory.mktemp("answered")
    path, inputs, _, _ = two_layers(folder)
    source = ["dist=file/onnx", f"dist.path={path}", "model=onnx", f"model.inputs={inputs}"]
    done = run(
        "-m", *source, "model.each=true", "mode=sym", "n_bits=2,3,4,6,8",
        "block=group", "block.size=4", f"hydra.sweep.dir={folder}/s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "s", source


def answers_of(directory):
    return quantlab.answers(directory).set_index(["format", "tensor"])


def test_the_kl_of_a_plan_is_the_sum_of_each_tensor_alone(answered):
    directory, _ = answered
    plan = quantlab.plan(directory, bits=15, by="kl")
    measured = answers_of(directory)
    for row in plan.itertuples():
        assert row.noise == pytest.approx(measured.loc[(row.format, row.tensor), "kl"])


def test_the_plan_by_kl_is_the_best_of_all_mixtures(answered):
    directory, _ = answered
    table, measured = quantlab.load(directory), answers_of(directory)
    options = {
        name: [(row.bits_per_value * row.n_elements, measured.loc[(row.format, name), "kl"])
               for row in rows.itertuples()]
        for name, rows in table.groupby("tensor")
    }  # fmt: skip
    for bits in (13, 15, 17):
        plan = quantlab.plan(directory, bits=bits, by="kl")
        size = bits * plan.n_elements.sum()
        mixtures = [(a[0] + b[0], a[1] + b[1]) for a in options["w1"] for b in options["w2"]]
        best = min(kl for total, kl in mixtures if total <= size)
        assert plan.noise.sum() == pytest.approx(best)
        smallest = min(total for total, kl in mixtures if kl <= best)
        of_kl = quantlab.plan(directory, kl=best * (1 + 1e-9))
        assert (of_kl.bits_per_value * of_kl.n_elements).sum() == pytest.approx(smallest)


def test_a_plan_is_measured_as_a_format(answered, tmp_path):
    directory, source = answered
    done = run_quantlab("plan", directory, "--by", "kl", "--bits", "15")
    assert done.returncode == 0, done.stderr
    content = json.loads((directory / "plan.json").read_text())
    assert f"lose {content['predicted_kl']:.3g} bits" in done.stdout
    done = run(
        "-m", *source, "mode=plan", f"mode.path={directory}/plan.json",
        f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    planned = quantlab.load(tmp_path / "s").set_index("tensor")
    for row in quantlab.plan(directory, bits=15, by="kl").itertuples():
        assert planned.loc[row.tensor, "sqnr_db"] == pytest.approx(row.sqnr_db, rel=1e-12)
        assert planned.loc[row.tensor, "bits_per_value"] == row.bits_per_value
        assert planned.loc[row.tensor, "stored_dtype"] == row.format
    (answer,) = quantlab.answers(tmp_path / "s").itertuples()
    assert answer.predicted_kl == content["predicted_kl"]
    assert 0.5 < answer.kl / answer.predicted_kl < 2


@pytest.mark.parametrize("overrides", FORMATS)
def test_a_format_is_made_again_from_what_identifies_it(overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides.split(), return_hydra_config=True)
    config = job.settings(cfg)
    form = job.build(config).form
    mode = mode_name(cfg.hydra.runtime.choices.mode)
    spec = format_spec(mode, cfg.n_bits, config, form.columns())
    again = build_format(FormatSpec.from_json(spec.to_json()))
    tensor = Tensor("w", draw(6, 64), input_axis=0)
    x_hat = [reconstruct(tensor, made.open(tensor)) for made in (form, again)]
    assert np.array_equal(*x_hat)
    assert again.columns() == form.columns()


def test_what_goes_wrong_with_a_plan_is_named(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(ValueError, match="no such file"):
        Planned(str(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"plan\.json is no plan: quantlab plan writes one"):
        Planned(str(path))
    with pytest.raises(ContradictionError, match="n_bits=4 does not go with mode=plan"):
        Planned(str(path), n_bits=4)
    row = {
        "tensor": "w",
        "dtype": "float32",
        "mode": "mine",
        "format": "mine",
        "n_bits": 4,
        "n_elements": 1,
    }
    path.write_text(json.dumps({"tensors": [row]}))
    with pytest.raises(ValueError, match="has a format of mode=mine, which does not exist"):
        Planned(str(path))
    path.write_text(json.dumps({"tensors": [row, row]}))
    with pytest.raises(ValueError, match="two tensors of one name"):
        Planned(str(path))
    row |= {"mode": "sym", "n_bits": 4, "block": "tensor", "scale_dtype": "float32"}
    path.write_text(json.dumps({"tensors": [row | {"range": "absmax"}]}))
    with pytest.raises(ValueError, match="with 1 values, not 12: it is the plan of another"):
        Planned(str(path)).open(Tensor("w", draw(3, 4)))


def test_what_a_plan_s_format_reads_is_part_of_what_identifies_it(tmp_path):
    row = {"tensor": "w", "dtype": "float32", "n_elements": 12, "mode": "sym", "format": "sym"}
    row |= {"n_bits": 4, "block": "group", "block_size": 2, "scale_dtype": "float32"}
    row |= {"range": "absmax", "settings": '{"block.axis": "input"}'}
    (tmp_path / "plan.json").write_text(json.dumps({"tensors": [row]}))
    planned = Planned(str(tmp_path / "plan.json"))
    hashes = {planned.open(Tensor("w", draw(3, 4), input_axis=axis)).sha256 for axis in (0, 1)}
    assert len(hashes) == 2


def test_a_plan_predicts_for_the_output_that_loses_most_and_for_all_its_tensors(tmp_path):
    row = {"tensor": "w", "dtype": "float32", "n_elements": 12, "mode": "sym", "format": "sym"}
    row |= {"n_bits": 4, "block": "tensor", "scale_dtype": "float32", "range": "absmax"}
    (tmp_path / "plan.json").write_text(json.dumps({"tensors": [row], "predicted_kl": 0.5}))
    planned = Planned(str(tmp_path / "plan.json"))
    answers = [{"figures": {"kl": kl}} for kl in (None, 0.1, 0.7, 0.2)]
    planned.add_prediction(answers, [])
    assert not any("predicted_kl" in answer for answer in answers)
    planned.add_prediction(answers, ["w", "v"])
    assert [answer.get("predicted_kl") for answer in answers] == [None, None, 0.5, None]


def write_rounded_plan(folder, tensor, n_elements, inputs):
    """Write a plan of one tensor that is rounded with feedback."""
    settings = {"rounding": "gptq", "rounding.inputs": inputs}
    row = {"tensor": tensor, "dtype": "float32", "n_elements": n_elements, "mode": "sym"}
    row |= {"n_bits": 4, "block": "tensor", "scale_dtype": "float32", "format": "sym, gptq"}
    row |= {"range": "absmax", "settings": json.dumps(settings)}
    (folder / "plan.json").write_text(json.dumps({"tensors": [row]}))
    return Planned(str(folder / "plan.json"))


def test_inputs_of_a_rounding_are_part_of_what_identifies_a_planned_tensor(tmp_path):
    hashes = set()
    for seed in (0, 1):
        np.savez(tmp_path / "x.npz", w=draw(9, 4, seed=seed))
        planned = write_rounded_plan(tmp_path, "w", 12, str(tmp_path / "x.npz")).bind(None)
        hashes.add(planned.open(Tensor("w", draw(3, 4))).sha256)
    assert len(hashes) == 2


def test_a_plan_of_a_model_rounds_by_the_inputs_of_its_layers(tmp_path):
    path, inputs, weights, _ = two_layers(tmp_path)
    planned = write_rounded_plan(tmp_path, "w1", 120, inputs).bind(Onnx(path))
    opened = planned.open_format(Tensor("w1", weights["w1"], input_axis=0))
    assert opened.rounding.inputs == ModelInputs(path, inputs)
