import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import quantlab
from quantlab.formats import rounding as module
from quantlab.formats.blocks import Group, PerChannel, PerTensor, UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.floats import Log
from quantlab.formats.format import Format, compose
from quantlab.formats.gram import row_energies
from quantlab.formats.ranges import AbsMax, Mse, Percentile
from quantlab.formats.rounding import ORDERS, Gptq
from quantlab.formats.transform import Hadamard, multiply_hadamard
from quantlab.formats.uniform import Asymmetric, GptqSymmetric, Symmetric
from quantlab.measurement import load_mode
from quantlab.records import record
from quantlab.sources.calibration import ArrayInputs
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure, reconstruct
from tests.conftest import ROOT, run, run_quantlab
from tests.formats import oracle

VECTORS = oracle.vectors("gptq")
UPPER = VECTORS["h"].astype(np.float64)
PARTS = ("scale", "zero", "group")
SETTINGS = [
    key.removesuffix("-scale") for key in VECTORS if key.endswith("-scale") and key != "scale"
]


class Known:
    """Inputs of every weight with one Gram matrix."""

    name = "x.npz"

    def __init__(self, gram):
        self._gram = np.asarray(gram, np.float64)

    def width(self, _):
        return len(self._gram)

    def gram(self, _):
        return self._gram

    def identity(self, _):
        return "0" * 64


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def correlated(width, tokens=None, seed=1):
    """The Gram matrix of inputs that depend on each other, some larger than others."""
    x = draw(tokens or 2 * width, width, seed=seed) @ draw(width, width, seed=seed + 1)
    x *= np.exp(draw(width, seed=seed + 2))
    return x.T @ x


def opened(w, element, gram, block=None, **settings):
    """A tensor and the format that rounds it."""
    tensor = w if isinstance(w, Tensor) else Tensor("w", w.astype(np.float32))
    form = Format(element, block or PerChannel(), rounding=Gptq(Known(gram), **settings))
    return tensor, form.open(tensor)


def rounded(*arguments, **settings):
    return reconstruct(*opened(*arguments, **settings))


def energy(x_hat, w, gram):
    return row_energies((x_hat - w).astype(np.float64).reshape(-1, len(gram)), gram).sum()


@pytest.mark.parametrize("setting", SETTINGS)
def test_codes_are_those_of_gptqmodel(setting):
    """Theirs are computed in float32, so that scales of moved weights differ in the last bits."""
    bits, kind, group, order = setting.replace("--1", "-0").split("-")
    element = {"sym": GptqSymmetric, "asym": Asymmetric}[kind](int(bits))
    block = Group(int(group)) if int(group) else PerChannel()
    gram = UPPER + np.triu(UPPER, 1).T
    is_static = order == "static"
    x_hat = rounded(
        VECTORS["x"], element, gram, block,
        order="desc_act" if is_static else order, static_groups=is_static,
    )  # fmt: skip
    scale, zero, groups = (VECTORS[f"{setting}-{part}"] for part in PARTS)
    codes = x_hat / scale[:, groups] + zero[:, groups].astype(float)
    assert codes == pytest.approx(VECTORS[setting].astype(float), abs=1e-4)


def textbook(w, gram, quantize, damp=0.05):
    """GPTQ as the paper has it: the inverse of H, and its upper Cholesky factor."""
    damped = gram + damp * np.diagonal(gram).mean() * np.eye(len(gram))
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    w, x_hat = w.astype(np.float64), np.empty(w.shape, np.float32)
    for n in range(len(gram)):
        x_hat[:, n] = quantize(w[:, n].astype(np.float32))
        error = (w[:, n] - x_hat[:, n]) / factor[n, n]
        w[:, n:] -= np.multiply.outer(error, factor[n, n:])
    return x_hat


ELEMENTS = [
    Symmetric(3), Asymmetric(4), GptqSymmetric(4), Log(4), load_mode("nf4"), load_mode("fp4"),
]  # fmt: skip


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: type(element).__name__)
def test_it_is_gptq_as_the_paper_has_it(element):
    w, gram = draw(30, 200).astype(np.float32), correlated(200)
    quantizer, _ = oracle.quantizer(Format(element, PerChannel()), w)
    params = quantizer.block_params(0, w.size)[0].params
    expected = textbook(w, gram, lambda column: element.reconstruct(column, params))
    nearest = quantizer.round_trip(0, w.size)[0].x_hat.reshape(w.shape)
    lost, lost_nearest = (
        row_energies((x_hat - w).astype(float), gram) for x_hat in (expected, nearest)
    )
    is_better = lost < lost_nearest
    assert is_better.mean() > 0.9
    ours = rounded(w, element, gram, order="natural")
    assert np.array_equal(ours, np.where(is_better[:, None], expected, nearest))


BLOCKS = [PerTensor(), PerChannel(), Group(4), Group(5), Group(64), Group(300)]
FORMS = st.builds(
    lambda element, block, range_: Format(element, block, range_),
    st.sampled_from([element for element in ELEMENTS if element.accepts_range]),
    st.sampled_from(BLOCKS),
    st.sampled_from([AbsMax(), Mse(), Percentile(90.0)]),
) | st.sampled_from([load_mode("mx/fp4"), load_mode("nv/fp4"), Format(Log(4), Group(8))])


@given(
    FORMS,
    st.integers(1, 12),
    st.integers(2, 150),
    st.integers(1, 200),
    st.sampled_from(ORDERS),
    st.booleans(),
    st.sampled_from([1e-6, 0.05, 0.9]),
    st.integers(0, 100),
)
def test_outputs_lose_no_more_than_by_rounding_to_nearest(
    form, rows, width, tokens, order, static_groups, damp, seed
):
    w = Tensor("w", (draw(rows, width, seed=seed) ** 3).astype(np.float32))
    gram = correlated(width, tokens, seed)
    how = Gptq(Known(gram), damp, order, static_groups)
    nearest, x_hat = (
        reconstruct(w, replace(form, rounding=choice).open(w)) for choice in (None, how)
    )
    # Sums of `width` squared terms differ by their rounding, and H has products of both signs.
    slack = 1e-12 * np.abs(gram).sum() * np.square(nearest - w.array).max()
    assert energy(x_hat, w.array, gram) <= energy(nearest, w.array, gram) * (1 + 1e-12) + slack


def test_plain_gptq_can_lose_more(monkeypatch):
    w, gram = (draw(40, 96) ** 3).astype(np.float32), correlated(96, 5)
    form = Format(Symmetric(2), Group(8))
    nearest = reconstruct(Tensor("w", w), form)
    ours = rounded(w, form.element, gram, form.block, order="natural")
    monkeypatch.setattr(module, "row_energies", lambda rows, _: np.zeros(len(rows)))
    plain = rounded(w, form.element, gram, form.block, order="natural")
    lost, lost_plain, lost_nearest = (
        row_energies((x_hat - w).astype(float), gram) for x_hat in (ours, plain, nearest)
    )
    assert 0 < (lost_plain > lost_nearest).sum() < len(w)
    assert np.array_equal(lost, np.minimum(lost_plain, lost_nearest))


def test_the_order_of_columns_is_by_their_inputs():
    diagonal = np.array([1.0, 5, 2, 2, 9, 3, 7])
    assert module._order_columns(diagonal, 3, "natural").tolist() == [*range(7)]
    assert module._order_columns(diagonal, 3, "desc_act").tolist() == [4, 6, 1, 5, 2, 3, 0]
    assert module._order_columns(diagonal, 3, "act_group_aware").tolist() == [4, 5, 3, 1, 2, 0, 6]


@pytest.mark.parametrize("order", ORDERS)
def test_columns_without_inputs_become_0(order):
    gram = correlated(20)
    gram[3], gram[:, 3] = 0, 0
    x_hat = rounded(draw(5, 20), Symmetric(4), gram, order=order)
    assert not x_hat[:, 3].any()
    assert x_hat[:, 2].all()
    others = np.delete(np.arange(20), 3)
    without = rounded(draw(5, 20)[:, others], Symmetric(8), gram[np.ix_(others, others)])
    # The largest magnitudes of rows, and hence scales, are of other columns here.
    assert np.array_equal(rounded(draw(5, 20), Symmetric(8), gram)[:, others], without)
    assert not rounded(draw(5, 20), Symmetric(4), np.zeros((20, 20))).any()


def test_h_that_is_not_positive_definite_is_damped_more():
    gram = np.diag([1.0, 1, 1, -0.1])
    tensor, form = opened(draw(5, 4), Symmetric(4), gram)
    assert measure(tensor, form)["remark"] == "H is damped by 0.14, as 0.05 is too little"
    assert "remark" not in measure(*opened(draw(5, 4), Symmetric(4), np.eye(4)))
    with pytest.raises(ValueError, match="the Gram matrix of its inputs is not positive definite"):
        rounded(draw(5, 4), Symmetric(4), -np.eye(4))


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({}, 4 + 32 / 8),
        ({"order": "desc_act"}, 4 + 32 / 8 + 32 * 40 / (10 * 40)),
        ({"order": "desc_act", "static_groups": True}, 4 + 32 / 8),
        ({"order": "desc_act", "block": PerChannel()}, 4 + 32 / 40),
    ],
)
def test_the_groups_of_columns_count_where_they_are_stored(settings, bits):
    settings = {"block": Group(8), **settings}
    tensor, form = opened(draw(10, 40), Symmetric(4), correlated(40), **settings)
    assert measure(tensor, form)["storage"]["bits_per_value"] == pytest.approx(bits, abs=1e-9)
    assert form.bits_per_value(form.block.layout(tensor.shape)) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("block", "turned"),
    [
        (PerTensor(), PerTensor()),
        (PerChannel(axis=1), PerChannel()),
        (Group(8, 0), Group(8)),
        (Group(8, "input"), Group(8)),
    ],
)
def test_inputs_may_lie_along_the_first_axis(block, turned):
    w, gram = draw(48, 20).astype(np.float32), correlated(48)
    expected = rounded(np.ascontiguousarray(w.T), Symmetric(4), gram, turned)
    ours = rounded(Tensor("w", w, input_axis=0), Symmetric(4), gram, block)
    assert np.array_equal(ours, expected.T)


def test_matrices_of_a_stack_and_kernels_are_rows():
    w, gram = draw(3, 5, 16).astype(np.float32), correlated(16)
    expected = [rounded(matrix, Symmetric(4), gram, Group(8)) for matrix in w]
    assert np.array_equal(rounded(w, Symmetric(4), gram, Group(8)), expected)
    kernels = w.reshape(3, 5, 4, 4)
    gram = correlated(80)
    expected = rounded(kernels.reshape(3, 80), Symmetric(4), gram)
    assert np.array_equal(rounded(kernels, Symmetric(4), gram).reshape(3, 80), expected)


@pytest.mark.parametrize("block", [PerChannel(axis=1), Group(8, 0), Group(9)])
def test_scales_across_rows_of_inputs_are_refused(block):
    w = draw(3, 6, 12) if block == Group(9) else draw(24, 12)
    with pytest.raises(UnfitError, match=r"rows of inputs, .* or block=group block\.axis=input"):
        opened(w, Symmetric(4), correlated(12), block)


def test_what_does_not_go_with_it_is_refused():
    how = Gptq(Known(np.eye(12)))
    with pytest.raises(ContradictionError, match="rounding=gptq does not go with"):
        compose(load_mode("bnb/nf4"), PerTensor(), AbsMax(), rounding=how)
    with pytest.raises(ContradictionError, match=r"add rounding\.inputs=FILE"):
        Gptq(None)
    form = Format(
        Symmetric(4), PerChannel(axis=1), transform=Hadamard(), rounding=Gptq(Known(np.eye(12)))
    )
    with pytest.raises(UnfitError, match="transform=hadamard is not of rows of its inputs"):
        form.open(Tensor("w", draw(12, 12), input_axis=0))
    unknown = Gptq(ArrayInputs({}))
    with pytest.raises(UnfitError, match="inputs has no inputs of it, which rounding=gptq takes"):
        Format(Symmetric(4), rounding=unknown).open(Tensor("w", draw(12, 12)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"damp_percent": 0}, "rounding.damp_percent must be a number between 0 and 1, got 0"),
        ({"damp_percent": "x"}, "rounding.damp_percent must be a number between 0 and 1, got 'x'"),
        ({"order": "act"}, "must be one of act_group_aware, desc_act, natural, got 'act'"),
        ({"static_groups": 1}, "rounding.static_groups must be true or false, got 1"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Gptq(Known(np.eye(4)), **settings)


def test_a_bad_weight_is_named():
    w = draw(5, 12)
    w[2, 3] = np.nan
    for block in (PerTensor(), PerChannel(), Group(4)):
        with pytest.raises(ValueError, match=r"tensor 'w' holds 1 NaN or Inf .* \[2, 3\]"):
            measure(*opened(w, Symmetric(4), correlated(12), block))


def test_rotated_rows_are_rounded_by_rotated_inputs():
    width, hadamard = 64, Hadamard(16)
    w, x = draw(20, width).astype(np.float32), draw(200, width, seed=1) @ draw(width, width, seed=2)

    def rotate(rows):
        y = hadamard.forward(rows.astype(np.float32).reshape(-1, 16), multiply_hadamard)
        return y.reshape(rows.shape)

    tensor, form = opened(w, Symmetric(4), x.T @ x, Group(16))
    x_hat = reconstruct(tensor, replace(form, transform=hadamard))
    turned = rotate(x).astype(np.float64)
    expected = rounded(rotate(w), Symmetric(4), turned.T @ turned, Group(16))
    # H differs in the last bits of float32, which changes a few codes that lie half-way.
    assert np.mean(np.abs(rotate(x_hat) - expected) < 1e-4) > 0.99
    nearest = reconstruct(tensor, replace(form, transform=hadamard, rounding=None))
    assert energy(x_hat, w, x.T @ x) < energy(nearest, w, x.T @ x)


BITS = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from quantlab.formats.gram import compute_gram
from tests.formats.test_rounding import *
w, x = draw(700, 333), draw(500, 333, seed=1).astype("f4")
gram = compute_gram(lambda start, stop: x.reshape(-1)[start:stop], x.size, 333)
for block in (PerTensor(), Group(32)):
    for threads in (1, 2):
        x_hat = reconstruct(*opened(w, Symmetric(4), gram, block), threads)
        print(hashlib.sha256(x_hat.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_bits_do_not_depend_on_threads():
    lines = [
        subprocess.run(
            [sys.executable, "-c", BITS, str(ROOT)],
            env={"OPENBLAS_NUM_THREADS": n}, capture_output=True, text=True, check=True,
        ).stdout.split()
        for n in ("1", "2", "4")
    ]  # fmt: skip
    assert lines[0] == lines[1] == lines[2]
    assert lines[0][0] == lines[0][1] != lines[0][2] == lines[0][3]


@pytest.fixture
def checkpoint(tmp_path):
    weights = {name: draw(*shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_file(weights, tmp_path / "model.safetensors")
    inputs = {name: (draw(99, 48) @ draw(48, 48, seed=1)).astype(np.float32) for name in ("a", "b")}
    np.savez(tmp_path / "x.npz", **inputs)
    return ["dist=file/safetensors", f"dist.path={tmp_path}/model.safetensors"]


SHAPES = {"a.weight": (20, 48), "b.weight": (30, 48), "c.weight": (8, 40)}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_compares_roundings(checkpoint, tmp_path):
    sweep = [
        "-m", *checkpoint, "rounding=nearest,gptq", f"rounding.inputs={tmp_path}/x.npz",
        "block=group", "block.size=16", "n_bits=3,4", f"hydra.sweep.dir={tmp_path}/s",
    ]  # fmt: skip
    done = run(*sweep)
    assert done.returncode == 0, done.stderr
    table = quantlab.load(tmp_path / "s").set_index(["format", "tensor"])
    decibels = table.out_sqnr_db.unstack("format")
    for n_bits in (3, 4):
        plain = f"sym {n_bits} bits, group 16"
        rounded_by = f"{plain}, rounding.inputs={tmp_path}/x.npz, gptq"
        assert (decibels[rounded_by] > decibels[plain])[["a.weight", "b.weight"]].all()
    assert "resuming: 4 complete; 0 to do" in run(*sweep).stdout
    np.savez(tmp_path / "x.npz", a=np.ones((5, 48), np.float32), b=draw(50, 48))
    assert "resuming: 4 changed; 4 to do" in run(*sweep).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_nearest_is_what_it_was_before_there_was_another(checkpoint, tmp_path):
    where = f"hydra.sweep.dir={tmp_path}/s"
    run("-m", *checkpoint, "mode=sym", where)
    (path,) = (tmp_path / "s").glob("*/record.json")
    assert "rounding" not in record.read(path)["config"]
    inputs = f"rounding.inputs={tmp_path}/x.npz"
    run("-m", *checkpoint, "mode=sym", "rounding=nearest", inputs, where)
    configs = [record.read(path)["config"] for path in (tmp_path / "s").glob("*/record.json")]
    assert [config["metrics"]["inputs"] for config in configs if config["metrics"]["inputs"]] == [
        f"{tmp_path}/x.npz"
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_plan_rounds_its_tensors_again(checkpoint, tmp_path):
    run(
        "-m", *checkpoint, "rounding=gptq", f"rounding.inputs={tmp_path}/x.npz", "n_bits=3,4",
        "dist.exclude=c*", "mode=sym", f"hydra.sweep.dir={tmp_path}/s",
    )  # fmt: skip
    done = run_quantlab("plan", tmp_path / "s", "--bits", "7.2")
    assert done.returncode == 0, done.stderr
    again = run(
        "-m", *checkpoint, "dist.exclude=c*", "mode=plan", f"mode.path={tmp_path}/s/plan.json",
        f"hydra.sweep.dir={tmp_path}/p",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    planned = quantlab.load(tmp_path / "p").set_index("tensor").sqnr_db
    measured = quantlab.load(tmp_path / "s").set_index(["tensor", "n_bits"]).sqnr_db
    rows = json.loads((tmp_path / "s" / "plan.json").read_bytes())["tensors"]
    widths = {row["tensor"]: row["n_bits"] for row in rows if "mode" in row}
    assert planned.to_dict() == {name: measured[name, n] for name, n in widths.items()}
    assert widths
    refused = run_quantlab("plan", tmp_path / "s", "--bits", "32", "--recipe", "torchao")
    assert refused.returncode == 2
    assert "torchao has none of the formats tried (sym" in refused.stderr


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "rounding=gptq takes a setting of its own: add rounding.inputs=..."),
        (["rounding.inputs=none.npz"], "none.npz: no such file"),
        (["rounding.inputs={x}", "rounding.order=act"], "rounding.order must be one of"),
        (["rounding.inputs={x}", "mode=torchao/int8"], "rounding=gptq does not go with a mode"),
        (["rounding.inputs={x}", "block=channel", "block.axis=1"], "not those of rows of inputs"),
    ],
)
def test_a_run_that_cannot_be_says_so_in_a_sentence(checkpoint, tmp_path, overrides, sentence):
    settings = [text.format(x=tmp_path / "x.npz") for text in overrides]
    done = run(*checkpoint, "rounding=gptq", *settings, f"hydra.sweep.dir={tmp_path}/s")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert sentence in done.stderr
