import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats import uniform
from quantlab.formats.blocks import Group, PerChannel, PerTensor
from quantlab.formats.floats import Log
from quantlab.formats.format import Format
from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled, rank
from quantlab.stats import measure as module
from quantlab.stats.compiled import CompiledEngine
from quantlab.stats.measure import reconstruct
from quantlab.stats.reference import CHUNK, NumpyEngine
from tests.conftest import measure
from tests.stats.test_metrics import oracle

RNG = np.random.default_rng(0)
LONG = RNG.standard_normal(5 * CHUNK + 777).astype(np.float32)
QUANTIZERS = [Symmetric(8), Asymmetric(8), Symmetric(3), Asymmetric(12), Asymmetric(8, "clip")]


def test_a_bad_tensor_is_named():
    x = np.array([1, 2, np.nan, np.inf], np.float32)
    with pytest.raises(ValueError, match=r"tensor 'w' holds 2 NaN or Inf among its 4 .* \[2\]"):
        measure(x, Symmetric(8), "w")


def test_values_that_float32_cannot_hold_are_distinguished_from_inf():
    x = np.array([[1, 2], [3, 1e300]])
    with pytest.raises(
        ValueError, match=r"1 values beyond float32 .*\(1e\+300\) at index \[1, 1\]: rescale them"
    ):
        measure(x, Symmetric(8), "w")


def test_an_empty_tensor_is_named():
    with pytest.raises(ValueError, match=r"tensor 'w' is empty \(shape \(0, 3\)\)"):
        measure(np.empty((0, 3)), Symmetric(8), "w")


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("quantizer", [Symmetric(2), Asymmetric(16)])
def test_any_shape_is_measured(shape, quantizer):
    result = measure(np.full(shape, 0.75, np.float32), quantizer)
    assert result["shape"] == list(shape)
    assert result["measured"]["max_err"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f8", "<f8"])
def test_any_float_dtype_is_measured_as_its_float32(dtype):
    x = LONG[:5000].astype("<f2").astype(dtype)
    plain = measure(x.astype(np.float32), Asymmetric(8))
    assert measure(x, Asymmetric(8)) | {"dtype": "float32"} == plain


@pytest.mark.parametrize("view", [LONG[::3], LONG[: CHUNK * 4].reshape(512, -1).T, LONG[::-1]])
def test_a_view_is_measured_as_its_copy(view):
    assert measure(view, Symmetric(8)) == measure(np.ascontiguousarray(view), Symmetric(8))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize("x", [LONG, np.abs(LONG), LONG * 1e-30, LONG[: CHUNK + 1] * 0], ids=len)
def test_threads_and_block_sizes_change_nothing(x, quantizer, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 1000)  # so that the errors are strided
    monkeypatch.setattr(NumpyEngine, "min_share", CHUNK)  # so that each block may have its thread
    found = []
    for threads, block in ((1, 1), (1, 2), (1, 4), (2, 1), (3, 1), (2, 2)):
        monkeypatch.setattr(NumpyEngine, "block_size", block * CHUNK)
        found.append(measure(x, quantizer, threads=threads))
    assert all(each == found[0] for each in found)


def test_sampled_errors_fall_on_every_column_of_a_matrix(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 2**12)
    x = np.zeros((2**10, 2**4), np.float32)
    x[:, 1::2] = 0.26  # an even step between samples would see the exact columns alone
    x[0, 0] = 1
    result = measure(x, Symmetric(4))
    assert result["error_histogram"]["stride"] == 5
    assert result["measured"]["err_p95"] == result["measured"]["max_err"]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize("scale", [1, 1e-3, 1e30])
def test_the_engine_measures_what_the_plain_functions_do(quantizer, scale):
    x = LONG[: CHUNK + 999] * np.float32(scale)
    result = measure(x, quantizer, threads=2)
    params = quantizer.choose(*uniform.value_range(x))
    assert result["params"]["scale"] == params.scale
    exact = oracle(x, quantizer)
    for key, value in exact.items():
        tolerance = 1e-12 * result["measured"]["mae"] if key == "bias" else 0
        assert result["measured"][key] == pytest.approx(value, rel=1e-12, abs=tolerance), key
    for key in ("max_err", "n_codes", "zeroed", "err_p50", "err_p95"):
        assert result["measured"][key] == exact[key], key
    clipped = uniform.unclipped_codes(x, params) != uniform.quantize(x, params, quantizer.n_bits)
    assert result["measured"]["clipped"] == np.count_nonzero(clipped) / x.size


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@given(x=arrays(np.float32, 20, elements=st.floats(-9, 9, width=32)), repeats=st.integers(1, 400))
def test_a_tiled_tensor_keeps_its_means(quantizer, x, repeats):
    once, often = (measure(each, quantizer) for each in (x, np.tile(x, 10 * repeats)))
    for key in ("mae", "rmse", "rel_err", "max_err", "n_codes", "zeroed", "clipped"):
        exact = once["measured"][key]
        assert often["measured"][key] == (exact and pytest.approx(exact, rel=1e-12)), key


@pytest.mark.parametrize("excluded", [0, 1e-9])
def test_values_without_a_relative_error_are_left_out_of_it(excluded):
    x = np.where(np.arange(LONG.size) % 3, LONG, np.float32(excluded))
    result, kept = measure(x, Symmetric(8)), measure(x[x != np.float32(excluded)], Symmetric(8))
    assert result["measured"]["rel_err"] == pytest.approx(kept["measured"]["rel_err"], rel=1e-7)
    assert result["measured"]["zeroed"] == np.count_nonzero(
        (x != 0) & (np.abs(x) <= result["params"]["scale"] / 2)
    ) / np.count_nonzero(x)


@pytest.mark.slow
@pytest.mark.parametrize("small", [2**16, 2**62], ids=["Numba", "NumPy"])
def test_sums_of_ten_million_are_exact_to_1e_12(small, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_NUMPY_SIZE", small)
    x = RNG.standard_normal(10**7).astype(np.float32)
    for quantizer in (Symmetric(8), Asymmetric(4)):
        params = quantizer.choose(*uniform.value_range(x))
        x_hat = uniform.dequantize(uniform.quantize(x, params, quantizer.n_bits), params)
        err = (x_hat - x).astype(np.longdouble)
        exact = {
            "mae": np.abs(err).mean(),
            "rmse": np.sqrt(np.square(err).mean()),
            "bias": err.mean(),
            "rel_err": (np.abs(err) / np.abs(x))[np.abs(x) > 1e-8].mean(),
        }
        a, b = x.astype(np.longdouble), x_hat.astype(np.longdouble)
        aa, bb, ab = (a * a).sum(), (b * b).sum(), (a * b).sum()
        exact["cos_sim"] = ab / np.sqrt(aa * bb)
        exact["sqnr_db"] = 10 * np.log10(aa / np.square(err).sum())
        measured = measure(x, quantizer, threads=2)["measured"]
        for key, value in exact.items():
            size = measured["mae"] if key == "bias" else 0  # it is what is left of signed errors
            assert measured[key] == pytest.approx(float(value), rel=1e-12, abs=1e-12 * size), key
        one_minus_cos = (aa * bb - ab * ab) / (aa * bb) / (1 + exact["cos_sim"])
        assert measured["one_minus_cos"] == pytest.approx(float(one_minus_cos), rel=1e-5)
        assert measured["max_err"] == np.abs(err).max()


def test_the_range_of_a_long_tensor_finds_the_one_bad_value():
    x = LONG.copy()
    x[3 * CHUNK + 5] = np.nan
    with pytest.raises(ValueError, match=rf"1 NaN or Inf .* at index \[{3 * CHUNK + 5}\]"):
        measure(x, Symmetric(8), threads=2)


@pytest.mark.parametrize(
    ("rows", "place"),
    [(1, 2999), (200, NumpyEngine.block_size + 500), (200, CompiledEngine.block_size + 500)],
)
@pytest.mark.parametrize("element", [Symmetric(8), Asymmetric(8), Log(8)])
def test_a_bad_value_in_a_block_that_ends_in_another_stretch_is_found(element, rows, place):
    x = RNG.standard_normal((rows, 3000)).astype(np.float32)
    x.reshape(-1)[place] = np.nan
    with pytest.raises(ValueError, match=rf"1 NaN or Inf .* at index \[{place // 3000}, "):
        measure(x, Format(element, PerChannel()))


def exact_cosine(x, x_hat):
    a, b = x.astype(np.longdouble), x_hat.astype(np.longdouble)
    aa, bb, ab = (a * a).sum(), (b * b).sum(), (a * b).sum()
    cos = ab / np.sqrt(aa * bb)
    return float(cos), float((aa * bb - ab * ab) / (aa * bb) / (1 + cos)), float(aa)


@pytest.mark.parametrize("size", [1, 1000, 2 * CHUNK])
@pytest.mark.parametrize(
    ("make", "quantizer"),
    [
        (lambda n: np.full(n, -3e9), Asymmetric(8, "clip")),
        (lambda n: 1000 + RNG.random(n), Asymmetric(8, "clip")),
        (lambda n: 1e7 + 100 * RNG.random(n), Asymmetric(16, "clip")),
        # of one seed: 1 - cos is 5e-13 here, of which a few thousandths are the rounding of sums
        (
            lambda n: 1 + 1e-6 * np.random.default_rng(0).standard_normal(n),
            Asymmetric(16, "wide_int"),
        ),
        (lambda n: np.full(n, 3e38), Asymmetric(8, "clip")),
    ],
)
def test_an_error_as_large_as_the_signal_cancels_nothing(make, quantizer, size):
    x = make(size).astype(np.float32)
    result = measure(x, quantizer)
    params = quantizer.choose(*uniform.value_range(x))
    x_hat = uniform.dequantize(uniform.quantize(x, params, quantizer.n_bits), params)
    cos, one_minus_cos, energy = exact_cosine(x, x_hat)
    noise = float(np.square((x_hat - x).astype(np.longdouble)).sum())
    assert result["measured"]["cos_sim"] == pytest.approx(cos, rel=1e-9)
    assert result["measured"]["one_minus_cos"] == pytest.approx(one_minus_cos, rel=1e-3, abs=1e-15)
    if noise:
        sqnr_db = 10 * np.log10(energy / noise)
        assert result["measured"]["sqnr_db"] == pytest.approx(sqnr_db, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("small", [1e-25, 1e-28, 1e-12])
def test_errors_whose_squares_underflow_float32_still_count(small):
    x = np.tile(np.array([0, 1, small, small], np.float32), CHUNK)
    result = measure(x, Symmetric(8))["measured"]
    assert result["rmse"] == pytest.approx(np.float32(small) / np.sqrt(2), rel=1e-6)
    assert result["sqnr_db"] is not None


def test_the_widest_range_warns_of_nothing():
    measure(np.array([-3.3e38, 3.3e38, 0], np.float32), Symmetric(8))


@pytest.mark.parametrize("n_bits", [8, 16])
def test_memory_does_not_grow_with_the_tensor(n_bits):
    x = np.broadcast_to(RNG.random(2**12).astype(np.float16), (2**12, 2**12))
    tracemalloc.start()
    measure(x, Symmetric(n_bits), threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 * 2**20  # less than the 64 MiB of its float32 values


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    size=st.sampled_from([1, 2, 5, 32]),
    quantizer=st.sampled_from([Symmetric(4), Asymmetric(3), Log(4)]),
    data=st.data(),
)
def test_groups_along_an_axis_are_those_of_the_moved_tensor(shape, size, quantizer, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape)
    x = x.astype(data.draw(st.sampled_from(["<f2", "<f4", ">f4", "<f8"])))
    require_moved(x, axis, lambda axis: Format(quantizer, Group(size, axis)))


def require_moved(x, axis, form, **settings):
    """Compare the figures of an array with those of its copy that has an axis at the end."""
    along = measure(x, form(axis), **settings)
    moved = measure(np.ascontiguousarray(np.moveaxis(x, axis, -1)), form(-1), **settings)
    places = along["top"].pop("indices")
    moved["top"].pop("indices")
    if not axis % x.ndim:  # what is moved to the end counted the matrices of a stack
        for key in ("worst_matrix", "worst_matrix_sqnr_db"):
            assert key not in along["measured"] or x.ndim == 1
            moved["measured"].pop(key, None)
    assert [float(np.float32(x.flat[place])) for place in places] == along["top"]["x"]
    assert along == moved | {"shape": list(x.shape)}


@pytest.mark.parametrize("small", [2**10, 2**62], ids=["Numba", "NumPy"])
@pytest.mark.parametrize(("shape", "axis"), [((700, 800), 0), ((3, 300, 200), 1)])
def test_large_groups_along_an_axis_in_chunks(shape, axis, small, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_NUMPY_SIZE", small)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    for size in (32, 77):
        require_moved(x, axis, lambda axis, size=size: Format(Asymmetric(4), Group(size, axis)))


def test_memory_does_not_grow_with_groups_along_an_axis():
    x = np.broadcast_to(RNG.random(2**12).astype(np.float16), (2**12, 2**12))
    tracemalloc.start()
    measure(x, Format(Symmetric(4), Group(32, 0)), threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 * 2**20


def test_a_value_that_is_not_finite_is_named_by_its_place_in_the_tensor():
    x = np.ones((3, 4), np.float32)
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        measure(x, Format(Symmetric(4), Group(2, 0)))


def test_the_importance_of_columns_does_not_go_with_groups_along_another_axis():
    x, importance = np.ones((3, 4), np.float32), np.ones((1, 4), np.float32)
    with pytest.raises(ValueError, match=r"leave out imatrix or block\.axis"):
        measure(x, Format(Symmetric(4), Group(2, 0)), importance=importance)


def test_the_top_is_kept_place_by_place_and_the_next():
    x = np.float32([[3, 1, 7], [2, 5, 6.9]])
    top = measure(x, Symmetric(4), k=3)["top"]
    assert top["indices"] == [2, 5, 4, 0]
    assert top["x"] == x.ravel()[[2, 5, 4, 0]].tolist()
    assert top["x_hat"] == [7.0, 7.0, 5.0, 3.0]
    long = measure(LONG, Symmetric(8), k=rank.SHOWN + 5)["top"]
    assert [len(each) for each in long.values()] == [rank.SHOWN + 1] * 3


@pytest.mark.parametrize("size", [30, 3 * CHUNK])
def test_a_tensor_of_equal_values_loses_no_order(size):
    result = measure(np.ones(size, np.float32), Symmetric(8))
    assert result["rank"]["top_order_kept"]
    spiked = np.ones(size, np.float32)
    spiked[5] = 1.0001
    assert not measure(spiked, Symmetric(8))["rank"]["top_order_kept"]


@pytest.mark.parametrize("threads", [1, 2])
def test_values_that_float32_turns_to_zero_are_counted(threads):
    x = np.ones(3 * 2**20)
    x[::1000] = 1e-60
    assert measure(x, Symmetric(8), threads=threads)["underflowed"] == len(x[::1000])
    assert measure(x.astype(np.float32), Symmetric(8), threads=threads)["underflowed"] == 0


def test_an_entry_says_what_it_is_about():
    result = measure(np.float32([[-1, 2], [7, 3]]), Symmetric(4))
    assert result["shape"] == [2, 2]
    assert (result["dtype"], result["n_elements"], result["range"]) == ("float32", 4, [-1.0, 7.0])
    assert result["params"] == {
        "scale": 1.0, "zero_point": 0, "scale_replaced": False, "zero_point_clipped": False,
        "qmin": -8, "qmax": 7,
    }  # fmt: skip


@pytest.mark.parametrize("size", [10, 3 * CHUNK])
def test_a_tensor_that_is_lost_as_float32_does_not_look_perfect(size):
    x = np.zeros(size)
    x[3:6] = [1e-60, -3e-60, 2e-60]
    result = measure(x, Symmetric(8))
    assert result["underflowed"] == 3
    assert result["measured"]["max_err"] == 3e-60
    assert result["measured"]["zeroed"] == 1
    assert result["measured"]["sqnr_db"] is None
    assert result["reasons"]["sqnr_db"] == "every value that is not 0 is too small for float32"
    assert measure(x * 0, Symmetric(8))["measured"]["max_err"] == 0


@pytest.mark.parametrize("form", [Format(Symmetric(3)), Format(Symmetric(3), PerChannel(axis=1))])
@pytest.mark.parametrize("size", [50, CHUNK + 7])
def test_what_is_reconstructed_is_what_was_measured(form, size):
    x = np.random.default_rng(0).standard_normal((size, 3)).astype(np.float32)
    tensor = Tensor("w", x)
    x_hat = reconstruct(tensor, form, threads=2)
    assert x_hat.shape == x.shape
    noise = np.square(x_hat - x, dtype=np.float64).mean()
    assert module.measure(tensor, form)["measured"]["rmse"] == pytest.approx(
        math.sqrt(noise), rel=1e-9
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_groups_along_an_axis_come_back_in_the_shape_of_the_tensor(axis):
    x = np.random.default_rng(0).standard_normal((6, 10, 4)).astype(np.float32)
    moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    along = Format(Symmetric(3), Group(size=2, axis=axis))
    rows = reconstruct(Tensor("w", moved), Format(Symmetric(3), Group(size=2)))
    assert np.array_equal(reconstruct(Tensor("w", x), along), np.moveaxis(rows, -1, axis))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("block", [PerTensor(), PerChannel(), Group(8), Group(8, 0)])
def test_the_output_error_of_captured_inputs_is_that_of_the_outputs(axis, block, monkeypatch):
    monkeypatch.setattr(module, "OUTPUT_BYTES", 2**10)  # several stretches
    w = RNG.standard_normal((24, 40)).astype(np.float32)
    inputs = RNG.standard_normal((50, 24 if axis == 0 else 40))
    tensor, form = Tensor("w", w, input_axis=axis), Format(Symmetric(4), block)
    results = {
        n: module.measure(tensor, form, threads=n, gram=inputs.T @ inputs)["measured"]
        for n in (1, 2)
    }
    errors = [m.astype(float) for m in (w, reconstruct(tensor, form) - w)]
    signal, noise = (np.square(inputs @ (m if axis == 0 else m.T)).sum() for m in errors)
    expected = 10 * np.log10(signal / noise)
    assert results[1]["out_sqnr_db"] == pytest.approx(expected, abs=1e-9)
    assert results[1] == results[2]
