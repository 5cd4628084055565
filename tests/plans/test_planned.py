import json

import numpy as np
import pytest

import quantlab
from quantlab.formats.element import ContradictionError
from quantlab.plans.planned import Planned
from quantlab.sources.onnx import Onnx
from tests.conftest import run, run_quantlab
from tests.models.samples import two_layers

pytestmark = pytest.mark.usefixtures("undrawn")
FORMATS = [
    "mode=sym,asym n_bits=3,5",
    "mode=asym mode.zero_point=wide_int n_bits=4",
    "mode=sym block=group block.size=8 block.scale=float16 n_bits=4",
    "mode=sym block=group block.size=8 block.axis=input n_bits=4",
    "mode=sym block=channel block.axis=1 range=mse n_bits=4",
    "mode=sym range=percentile range.p=99 n_bits=4",
    "mode=log n_bits=5",
    "mode=nf4,mx/fp4,nv/fp4",
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


@pytest.mark.parametrize("formats", FORMATS)
def test_every_format_of_a_plan_is_the_one_that_was_measured(formats, answered, tmp_path):
    _, (dist, path, *_) = answered
    swept = run("-m", dist, path, *formats.split(), f"hydra.sweep.dir={tmp_path}/s")
    assert swept.returncode == 0, swept.stderr
    other = run("-m", dist, path, "mode=fp4", f"hydra.sweep.dir={tmp_path}/s")  # takes two or more
    assert other.returncode == 0, other.stderr
    table = quantlab.load(tmp_path / "s")
    for name in table.format.unique():
        done = run_quantlab("plan", tmp_path / "s", "--bits", "33", "--keep", f"*={name}")
        assert done.returncode == 0, done.stderr
        planned = Planned(str(tmp_path / "s" / "plan.json"))
        rows = table[table.format == name].set_index("tensor")
        for tensor in Onnx(path.removeprefix("dist.path=")).tensors():
            opened = planned.open(tensor)
            x, x_hat = tensor.array.ravel(), opened.read(0, tensor.size)
            noise = np.square(x_hat - x, dtype=float).sum()
            sqnr_db = 10 * np.log10(np.square(x, dtype=float).sum() / noise)
            assert sqnr_db == pytest.approx(rows.sqnr_db[tensor.name], rel=1e-9)
            assert opened.bits == pytest.approx(rows.bits_per_value[tensor.name] * tensor.size)


def test_what_goes_wrong_with_a_plan_is_named(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(ValueError, match="no such file"):
        Planned(str(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"plan\.json is no plan file"):
        Planned(str(path))
    with pytest.raises(ContradictionError, match="n_bits=4 does not go with mode=plan"):
        Planned(str(path), n_bits=4)
    row = {"tensor": "w", "dtype": "float32", "mode": "mine", "format": "mine", "n_bits": 4}
    path.write_text(json.dumps({"tensors": [row]}))
    with pytest.raises(ValueError, match="has a format of mode=mine, which does not exist"):
        Planned(str(path))
