import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from quantlab.formats.blocks import Group, PerChannel, PerTensor
from quantlab.formats.element import per_value
from quantlab.formats.floats import FixedPoint, Float, Log, NormalFloat4
from quantlab.formats.format import Format
from quantlab.formats.ranges import AbsMax, BlockValues, Mse, Percentile, bounds
from quantlab.formats.scales import PowerOfTwo, TwoLevel
from quantlab.formats.transform import Hadamard, multiply_hadamard
from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.sources.tensor import Tensor
from quantlab.stats import measure as module
from quantlab.stats.reference import CHUNK, NumpyEngine
from tests.conftest import measure

E2M1 = Float(4, 2, 1, 6.0)
FORMATS = [
    Format(Symmetric(8), PerChannel()),
    Format(Symmetric(4), PerChannel(axis=1, scale="float16")),
    Format(Asymmetric(4), Group(size=32, scale="bfloat16")),
    Format(Symmetric(4), Group(size=50), Mse()),
    Format(Symmetric(4), PerTensor(), Percentile(p=99)),
    Format(Symmetric(12), PerTensor(scale="float16")),
    Format(Asymmetric(3), PerChannel(axis=-1), Percentile()),
    Format(Float(8, 4, 3, 448.0)),
    Format(NormalFloat4(4), Group(size=64)),
    Format(Log(8)),
    Format(Log(5), Group(size=32)),
    Format(Float(4, 2, 1, 6.0, 4.0), Group(size=32), AbsMax(), PowerOfTwo()),
    Format(FixedPoint(8, 8, 6), Group(size=32), AbsMax(), PowerOfTwo()),
    Format(E2M1, Group(size=16), AbsMax(), TwoLevel()),
]
RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((300, 1000)).astype(np.float32)
MATRIX[5] *= 1e-4
MATRIX[7] = 0


def oracle(x, form):
    """The figures of a format by their definitions, block by block in plain Python."""
    x_hat, energy = np.empty_like(x), math.fsum(v * v for v in x.ravel().tolist())
    absmax = float(np.abs(x).max())
    for index in blocks(x.shape, form.block):
        block = np.ascontiguousarray(x[index]).reshape(1, -1)
        x_hat[index] = whole(form, block, absmax).reshape(x[index].shape)
    errors = (x_hat - x).ravel().astype(float).tolist()
    noise = math.fsum(e * e for e in errors)
    zeroed = (x_hat == 0) & (x != 0)
    return {
        "mae": math.fsum(map(abs, errors)) / x.size,
        "max_err": max(map(abs, errors)),
        "rmse": math.sqrt(noise / x.size),
        "sqnr_db": 10 * math.log10(energy / noise),
        "zeroed": np.count_nonzero(zeroed) / np.count_nonzero(x),
    }, x_hat


def blocks(shape, block):
    """Yield the index of every block of a matrix."""
    if block.name == "tensor":
        yield np.s_[:, :]
    elif block.name == "channel":
        for n in range(shape[block.axis]):
            yield np.s_[n, :] if block.axis == 0 else np.s_[:, n]
    else:
        for row in range(shape[0]):
            for start in range(0, shape[1], block.size):
                yield np.s_[row, start : start + block.size]


def whole(form, block, absmax):
    """Take one block through a format, chosen by all its values at once."""

    def store(scale):
        return form.scale_type.store(scale, absmax)

    values = BlockValues(block.size, lambda function, _=None: [function(block)])
    found = bounds(block, form.element.needs_min_magnitude)
    chosen = form.range.choose(found, values, form.element, store)
    params = form.element.fit(chosen, store).params
    return form.element.round_trip(block, per_value(params)).x_hat


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_figure_is_that_of_its_definition(form):
    x = MATRIX[:40, :100].copy()
    result = measure(x, form)
    figures, x_hat = oracle(x, form)
    for key, exact in figures.items():
        assert result["measured"][key] == pytest.approx(exact, rel=1e-9), key
    order = np.argsort(-x.ravel(), kind="stable")[:11]
    assert result["top"]["indices"] == order.tolist()
    assert result["top"]["x_hat"] == x_hat.ravel()[order].tolist()
    assert result["rank"]["top_swapped"] == swaps(x.ravel(), x_hat.ravel())


def swaps(x, x_hat, k=10):
    """Strict inversions among the values that are, or come back, in the top k."""
    union = {*np.argsort(-x, kind="stable")[:k], *np.argsort(-x_hat, kind="stable")[:k]}
    return sum(x[a] > x[b] and x_hat[a] < x_hat[b] for a in union for b in union)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_threads_and_stretches_change_nothing(form, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 1000)
    monkeypatch.setattr(NumpyEngine, "min_share", CHUNK)
    found = []
    for threads, block in ((1, 1), (1, 3), (2, 1), (3, 2)):
        monkeypatch.setattr(NumpyEngine, "block_size", block * CHUNK)
        found.append(measure(MATRIX, form, threads=threads))
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_long_tensors_have_the_sums_of_short_ones(form):
    short, long = measure(MATRIX[:60], form), measure(np.tile(MATRIX[:60], (5, 1)), form)
    if form.block.name == "channel" and form.block.axis:
        return  # its blocks are longer
    for key in ("mae", "rmse", "sqnr_db", "zeroed", "clipped", "rel_err", "one_minus_cos"):
        assert long["measured"][key] == pytest.approx(short["measured"][key], rel=1e-5), key
    for key, share in short["error_budget"].items():
        assert long["error_budget"][key] == pytest.approx(share, rel=1e-5, abs=1e-9), key


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=0, max_dims=3, max_side=7),
        elements=st.floats(-9, 9, width=32) | st.floats(-(2.0**-99), 2.0**-99, width=32),
    ),
    st.sampled_from([each for each in FORMATS if each.block.name != "channel"]),
)
def test_shares_add_up_and_scales_are_counted(x, form):
    result = measure(x, form)
    assert result["storage"]["n_scales"] == form.block.layout(x.shape).n_blocks
    assert result["storage"]["scale_min"] <= result["storage"]["scale_max"]
    shares = result["error_budget"].values()
    if result["measured"]["max_err"]:
        assert sum(shares) == pytest.approx(1)
        assert all(share >= 0 for share in shares)
    else:
        assert set(shares) == {None}


def test_what_there_is_not_one_of_is_null_with_the_reason():
    result = measure(MATRIX, Format(Asymmetric(4), Group(size=32)))
    n = 300 * 32
    for key in ("scale", "zero_point"):
        assert (result["params"][key], result["reasons"][key]) == (None, f"there are {n} scales")
    assert result["reasons"]["bound_ratio"] == f"there are {n} scales"
    assert result["rank"]["top_bits_sufficient"] is None
    assert "one scale" in result["reasons"]["top_bits_sufficient"]
    one = measure(MATRIX, Format(Float(8, 4, 3, 448.0)))
    assert one["params"]["scale"] == np.float32(np.abs(MATRIX).max() / 448.0)
    assert one["reasons"]["bound_ratio"] == "the steps of the grid differ"


def test_the_landmark_goes_through_one_block_and_no_more():
    form = Format(Float(8, 4, 3, 448.0))
    result = measure(np.float32([448, 1.1]), form, landmark=1.1)["measured"]
    assert result["landmark_rel_err"] == pytest.approx(0.025 / 1.1, rel=1e-5)  # 1.125
    grouped = measure(MATRIX, Format(Symmetric(8), Group()), landmark=1.1)
    assert grouped["measured"]["landmark_rel_err"] is None
    assert grouped["reasons"]["landmark_rel_err"] == "there are 9600 scales"


def test_a_scale_that_vanishes_takes_its_block_to_zero():
    x = np.float32([[1e-7, -1e-7], [3, -3]])
    result = measure(x, Format(Symmetric(8), PerChannel(scale="float16")))
    assert result["storage"]["scales_vanished"] == 1
    assert result["measured"]["zeroed"] == 0.5
    whole_tensor = measure(x[0], Format(Symmetric(8), PerTensor(scale="float16")))
    assert whole_tensor["storage"]["scales_vanished"] == 1
    assert whole_tensor["measured"]["zeroed"] == 1
    huge = measure(x * np.float32(1e8), Format(Symmetric(2), PerChannel(scale="float16")))
    assert huge["storage"]["scales_saturated"] == 1
    assert huge["measured"]["clipped"] == 0.5


def test_a_range_that_is_empty_takes_its_block_to_zero():
    x = np.zeros(3000, np.float32)
    x[7] = 3.3
    result = measure(x, Format(NormalFloat4(4), PerTensor(), Percentile(p=99)))
    assert result["storage"]["scales_vanished"] == 1
    assert result["measured"]["zeroed"] == 1


@pytest.mark.parametrize("size", [4096, 3 * CHUNK])
@pytest.mark.parametrize("outlier", [1e4, 1e6])
def test_an_outlier_that_is_cut_leaves_the_cosine_exact(size, outlier):
    x = RNG.normal(size=size).astype(np.float32)
    x[7] = outlier
    form = Format(Float(8, 4, 3, 448.0), PerTensor(), Percentile(p=99))
    x_hat = whole(form, x.reshape(1, -1), outlier).ravel().astype(float)
    exact = x_hat @ x.astype(float) / np.sqrt((x_hat @ x_hat) * (x.astype(float) @ x.astype(float)))
    assert measure(x, form)["measured"]["cos_sim"] == pytest.approx(exact, rel=1e-6)


def test_a_scale_that_saturates_has_a_cosine():
    form = Format(NormalFloat4(4), PerTensor(scale="float16"))
    result = measure(np.float32([7e9, 3e9]), form)["measured"]
    assert result["cos_sim"] == pytest.approx(10 / math.sqrt(2 * 58))


def test_a_value_that_equals_the_last_of_the_top_may_not_overtake_the_first():
    x = np.float32([-1, -1, -6, -1, 0, -9])
    ranks = measure(x, Format(Symmetric(3), Group(size=2)), k=2)["rank"]
    assert not ranks["top_order_kept"]


def test_the_certificate_is_given_for_one_scale_over_the_whole_range():
    x = MATRIX[0]
    assert measure(x, Symmetric(8))["rank"]["top_bits_sufficient"] is not None
    for form in FORMATS:
        assert measure(x, form)["rank"]["top_bits_sufficient"] is None or form.plain


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tensor_in_groups():
    x = np.broadcast_to(RNG.random(2**12).astype(np.float16), (2**12, 2**12))
    tracemalloc.start()
    measure(x, Format(Symmetric(4), Group(size=32)), threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * 2**20  # less than the 64 MiB of its float32 values


ROTATED = [replace(form, transform=Hadamard(8)) for form in FORMATS]


@pytest.mark.parametrize("form", ROTATED, ids=lambda form: f"{type(form.element).__name__}")
def test_a_tensor_is_quantized_in_the_basis_of_its_transform(form):
    hadamard, plain = form.transform, replace(form, transform=None)
    rows = MATRIX.reshape(-1, 8)
    y = hadamard.forward(rows, multiply_hadamard).reshape(MATRIX.shape)
    y_hat = module.reconstruct(Tensor("y", y), plain).reshape(-1, 8)
    x_hat = hadamard.backward(y_hat, multiply_hadamard).reshape(MATRIX.shape)
    assert np.array_equal(module.reconstruct(Tensor("x", MATRIX), form, threads=2), x_hat)
    result = measure(MATRIX, form)
    error = (x_hat - MATRIX).astype(np.float64)
    assert result["measured"]["max_err"] == np.abs(error).max()
    assert result["measured"]["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)
    bits = measure(MATRIX, plain)["storage"]["bits_per_value"]
    assert result["storage"]["bits_per_value"] == pytest.approx(bits, rel=1e-6)


def test_outliers_cost_less_where_they_are_spread():
    x = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    x[:, 3] *= 100
    plain = Format(Symmetric(4), PerChannel())
    with_outlier, spread = (
        measure(x, form)["measured"]["worst_row_sqnr_db"]
        for form in (plain, replace(plain, transform=Hadamard()))
    )
    assert with_outlier + 10 < spread


@pytest.mark.parametrize("form", [ROTATED[0], ROTATED[2], ROTATED[7]])
@pytest.mark.parametrize("width", [64, 70_000])
def test_sums_beyond_float32_are_named(form, width):
    x = np.full((4, 8 * width // 8), 3e38, np.float32)
    with pytest.raises(ValueError, match="'x' has values whose sums are beyond float32"):
        measure(x, form)
    x[1, 1] = np.nan
    with pytest.raises(ValueError, match="holds 1 NaN or Inf"):
        measure(x, form)


@pytest.mark.parametrize("axis", [1, 2])
def test_an_axis_counts_from_either_end(axis):
    x = Tensor("x", np.random.default_rng(0).standard_normal((6, 8, 24)).astype(np.float32))
    forms = [Format(Symmetric(4), Group(8, n), transform=Hadamard()) for n in (axis, axis - 3)]
    assert len({form.row_length(x.shape) for form in forms}) == 1
    assert np.array_equal(*(module.reconstruct(x, form) for form in forms))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rows_are_those_of_groups_along_an_axis(axis):
    x = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    form = Format(Symmetric(4), Group(16, axis), transform=Hadamard(16))
    moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    last = replace(form, block=Group(16, -1))
    expected = np.moveaxis(module.reconstruct(Tensor("x", moved), last), -1, axis)
    assert np.array_equal(module.reconstruct(Tensor("x", x), form), expected)
