import logging
import subprocess
import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.blocks import Group, PerChannel, PerTensor
from quantlab.formats.element import Element, Quantized, compiled_grid_of, fit_scale
from quantlab.formats.floats import FixedPoint, Float, Log, NormalFloat4
from quantlab.formats.format import Format
from quantlab.formats.ranges import NUMPY, AbsMax, Mse, Percentile
from quantlab.formats.scales import FLOAT32, PowerOfTwo, TwoLevel
from quantlab.formats.transform import Hadamard, multiply_hadamard
from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled
from quantlab.stats import measure as module
from quantlab.stats.compiled import CompiledEngine, engine_for, versions
from quantlab.stats.measure import reconstruct
from quantlab.stats.reference import CHUNK, NumpyEngine, combine_sums
from quantlab.stats.survey import survey
from tests.conftest import measure
from tests.stats.test_reference import exact, new_options

kernel = pytest.importorskip("quantlab.stats.kernel")

E4M3, E5M2 = Float(8, 4, 3, 448.0), Float(8, 5, 2, 57344.0)
FORMATS = {
    "sym8": Format(Symmetric(8)),
    "sym2": Format(Symmetric(2)),
    "sym16": Format(Symmetric(16)),
    "sym4 percentile": Format(Symmetric(4), PerTensor(), Percentile(p=99)),
    "sym4 mse": Format(Symmetric(4), PerTensor(), Mse()),
    "asym8": Format(Asymmetric(8)),
    "asym5 clip": Format(Asymmetric(5, "clip")),
    "asym16 wide_int": Format(Asymmetric(16, "wide_int")),
    "sym8 channel": Format(Symmetric(8), PerChannel()),
    "asym4 channel -1": Format(Asymmetric(4), PerChannel(axis=-1, scale="float16")),
    "sym4 group 32": Format(Symmetric(4), Group(size=32)),
    "asym4 group 50 mse": Format(Asymmetric(4), Group(size=50, scale="bfloat16"), Mse()),
    "sym4 group 7 mse": Format(Symmetric(4), Group(size=7), Mse()),
    "sym3 group 1000 mse": Format(Symmetric(3), Group(size=1000), Mse()),
    "e4m3": Format(E4M3),
    "e5m2 group": Format(E5M2, Group(size=100)),
    "fp4 percentile": Format(Float(4, 2, 1, 6.0), Group(size=64), Percentile(p=90)),
    "mx/fp4": Format(Float(4, 2, 1, 6.0, 4.0), Group(), AbsMax(), PowerOfTwo()),
    "mx/int8": Format(FixedPoint(8, 8, 6), Group(), AbsMax(), PowerOfTwo()),
    "nv/fp4": Format(Float(4, 2, 1, 6.0), Group(size=16), AbsMax(), TwoLevel()),
    "nf4": Format(NormalFloat4(4)),
    "nf4 group": Format(NormalFloat4(4), Group(size=64)),
    "nf4 group mse": Format(NormalFloat4(4), Group(size=64), Mse()),
    "log8": Format(Log(8)),
    "log12": Format(Log(12)),
    "log5 group": Format(Log(5), Group(size=32)),
}
RNG = np.random.default_rng(0)
AROUND = [edge + by for edge in (kernel.PIECE, CHUNK) for by in (-1, 0, 1)]


def awkward(shape):
    """Return normals with rows of zeros, of subnormal numbers, of extremes, and of one value."""
    x = RNG.standard_normal(shape).astype(np.float32)
    rows = x.reshape(-1, x.shape[-1])
    rows[0] = 0
    rows[1] *= np.float32(1e-42)
    rows[2, ::7] = [3.4e38, -3.4e38][x.size % 2]
    rows[3] = -0.0
    rows[4] = np.float32(0.1)
    rows[5] *= np.float32(1e-30)
    return x


def both(monkeypatch, x, form, **how):
    """Return what Numba and what NumPy measure."""
    monkeypatch.setattr(compiled, "MAX_NUMPY_SIZE", -1)
    fast = measure(x, form, **how)
    monkeypatch.setattr(compiled, "MAX_NUMPY_SIZE", 2**62)
    return fast, measure(x, form, **how)


def require_alike(fast, plain):
    """Hold two entries to each other: sums to 1e-12 of what was summed, the rest to the bit."""
    measured, expected = fast.pop("measured"), plain.pop("measured")
    for key, value in expected.items():
        # What is left of terms that cancel is held to their size; 1 - cos cancels from 1, to which
        # three sums contribute that are exact to 1e-14, and so may a logarithm.
        sizes = {"bias": expected["mae"], "kl": 1e-3, "one_minus_cos": 1e-2, "sqnr_db": 1e-1}
        size = sizes.get(key, 0)
        alike = value if value is None else pytest.approx(value, rel=1e-12, abs=1e-12 * size)
        assert measured[key] == alike, key
    for key in ("max_err", "n_codes", "err_p50", "err_p95", "zeroed", "clipped", "code_entropy"):
        assert measured[key] == expected[key], key
    for key in ("storage", "error_budget"):
        floats, others = fast.pop(key), plain.pop(key)
        for name, value in others.items():
            alike = value if value is None else pytest.approx(value, rel=1e-12, abs=1e-12)
            assert floats[name] == alike, name
    assert fast == plain


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(40, 999), (8, kernel.PIECE)])
def test_both_executions_measure_the_same(name, shape, monkeypatch):
    require_alike(*both(monkeypatch, awkward(shape), FORMATS[name]))


@pytest.mark.parametrize("name", ["sym8", "asym8", "sym16", "sym4 group 32", "e4m3", "log8"])
@pytest.mark.parametrize("size", [1, *AROUND, 3 * CHUNK + 5])
def test_sizes_around_every_boundary(name, size, monkeypatch):
    x = RNG.standard_normal(size).astype(np.float32)
    require_alike(*both(monkeypatch, x, FORMATS[name], threads=2))


@pytest.mark.parametrize("name", FORMATS)
def test_both_executions_reconstruct_the_same_bits(name, monkeypatch):
    tensor, x_hat = Tensor("x", awkward((40, 999))), []
    for size in (-1, 2**62):
        monkeypatch.setattr(compiled, "MAX_NUMPY_SIZE", size)
        x_hat.append(reconstruct(tensor, FORMATS[name], threads=2))
    assert np.array_equal(*x_hat)


@pytest.mark.parametrize("name", ["sym8", "asym4 channel -1", "nf4 group", "log8"])
def test_both_executions_transform_alike(name, monkeypatch):
    form = replace(FORMATS[name], transform=Hadamard(64))
    x = RNG.standard_normal((130, 1024)).astype(np.float32)
    require_alike(*both(monkeypatch, x, form, threads=2))


@pytest.mark.parametrize("width", [2, 4, 8, 64, 128, 512])
@pytest.mark.parametrize("rows", [1, kernel.LANES, kernel.LANES + 1, 100])
def test_both_executions_multiply_by_the_same_matrix(width, rows):
    x = RNG.standard_normal((rows, width)).astype(np.float32)
    fast = CompiledEngine(kernel).multiply_hadamard(x)
    assert np.array_equal(fast, multiply_hadamard(x))


@pytest.mark.parametrize("dtype", [">f4", "<f2", ">f2", "<f8"])
def test_every_dtype_is_measured_as_its_float32(dtype, monkeypatch):
    x = RNG.standard_normal(5000).astype("<f2").astype(dtype)
    require_alike(*both(monkeypatch, x, FORMATS["sym8"]))


def test_values_that_lie_unaligned_or_strided_are_measured(monkeypatch):
    octets = np.zeros(4 * 5000 + 1, np.uint8)
    unaligned = octets[1:].view(np.float32)
    unaligned[:] = RNG.standard_normal(5000)
    for x in (unaligned, awkward((50, 600)).T, awkward((50, 600))[:, ::3]):
        require_alike(*both(monkeypatch, x, FORMATS["sym8"]))
        require_alike(*both(monkeypatch, x, FORMATS["sym4 group 32"]))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits_is_widened(dtype):
    stored = np.arange(2**16, dtype=np.uint16).view(dtype)
    found = engine_for(2**17).reader(Tensor("x", stored))(0, stored.size)
    with np.errstate(invalid="ignore"):
        expected = stored.astype(np.float32)
    finite = np.isfinite(expected)
    assert np.array_equal(found[finite].view(np.uint32), expected[finite].view(np.uint32))
    assert not np.isfinite(found[~finite]).any()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, kernel.PIECE - 1, kernel.PIECE, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize("form", ["sym8", "sym4 group 32"])
def test_one_bad_value_is_found_wherever_it_stands(bad, place, form):
    x = np.ones(2 * CHUNK + 4, np.float32)
    x[place] = bad
    with pytest.raises(ValueError, match=rf"holds 1 NaN or Inf .* at index \[{place}\]"):
        measure(x, FORMATS[form], threads=2)


@pytest.mark.parametrize("name", ["sym8", "asym4 channel -1", "sym4 group 32", "nf4", "log5 group"])
def test_threads_and_block_sizes_change_nothing(name, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 1000)
    monkeypatch.setattr(
        CompiledEngine, "min_share", CHUNK
    )  # so that each chunk may have its thread
    x, found = RNG.standard_normal((257, 1024)).astype(np.float32), []
    for threads, block in ((1, 1), (2, 1), (3, 2), (2, 8)):
        monkeypatch.setattr(CompiledEngine, "block_size", block * CHUNK)
        found.append(measure(x, FORMATS[name], threads=threads))
    assert all(each == found[0] for each in found)


@given(
    arrays(np.float32, 70, elements=st.floats(-9, 9, width=32)),
    arrays(np.float32, 70, elements=st.sampled_from([-2.0, -0.25, 0.0, 0.25, 7.5])),
    arrays(bool, 70),
    st.sampled_from([0, 1e-8, 0.25]),
)
def test_each_sum_is_that_of_its_definition(x, x_hat, clipped, rel_threshold):
    found = gathered(x, x_hat, clipped, rel_threshold)
    for key, value in exact(x, x_hat, rel_threshold, clipped).items():
        size = 400 if key in ("err", "x", "x_err", "dot") else 0
        assert getattr(found, key) == pytest.approx(value, rel=1e-14, abs=1e-14 * size), key


def gathered(x, x_hat, clipped, rel_threshold):
    """Return the sums of values that came back as others, as the loops add them."""
    engine, options = engine_for(2**17), new_options(x.size, rel_threshold)
    quantized = Quantized(None, x_hat, clipped)
    sums = engine.gather(0, x, quantized, options, engine.new_table(None))
    assert np.array_equal(options.errors, np.abs(x_hat - x))
    assert options.maxima.max() == x_hat.max()
    return combine_sums([sums], survey(Tensor("x", x), 1, engine).moments)


@pytest.mark.parametrize("width", [1, 7, 32, 300, 5000])
@pytest.mark.parametrize("blocks", [1, 3, 40])
def test_what_is_reduced_by_block_is_what_numpy_reduces(width, blocks):
    x = RNG.standard_normal((blocks, width)).astype(np.float32)
    x[0] = 0
    reduce = engine_for(2**17).reductions
    for least in (False, True):
        for found, expected in zip(reduce.bounds(x, least), NUMPY.bounds(x, least), strict=True):
            assert np.array_equal(found, expected)
    for element in (Symmetric(4), Asymmetric(4), E4M3, NormalFloat4(4)):
        bounds = NUMPY.bounds(x, False)
        factors = np.array([[1.0], [0.8], [0.3]])
        scaled = bounds._replace(lo=bounds.lo * factors, hi=bounds.hi * factors)
        params = element.fit(scaled, FLOAT32.store).params
        found = reduce.squared_errors(element, x, params)
        assert found == pytest.approx(NUMPY.squared_errors(element, x, params), rel=1e-13)


CHANGED = """
import numpy as np
from quantlab.stats import reference
reference.CHUNK = {chunk}
from quantlab import measure
from quantlab.stats import kernel
x = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
card = measure(x, "sym", 4)
print(kernel.CHUNK, kernel.SHARED_KEY, *(repr(float(card[key])) for key in ("mae", "rmse", "bias")))
"""


@pytest.mark.slow
def test_a_constant_that_both_engines_use_is_changed_in_one_place():
    (chunk, key, *figures), (other, other_key, *others) = (
        run(CHANGED.format(chunk=size)) for size in (CHUNK, CHUNK // 2)
    )
    assert (int(chunk), int(other)) == (CHUNK, CHUNK // 2)
    assert list(map(float, others)) == pytest.approx(list(map(float, figures)), rel=1e-12)
    assert key != other_key  # so that Numba keeps the loops of both on disk, each for its own


def test_the_fast_engine_has_every_method_of_the_reference():
    methods = {name for name, value in vars(NumpyEngine).items() if callable(value)}
    assert methods == {
        "reader", "survey", "new_table", "gather", "multiply_hadamard", "place_in_bins",
    }  # fmt: skip
    assert methods < vars(CompiledEngine).keys()


def test_an_element_that_rounds_in_a_way_of_its_own_is_left_to_numpy(monkeypatch):
    class Truncated(Symmetric):
        def round_trip(self, x, params):
            trip = super().round_trip(x, params)
            return trip._replace(x_hat=trip.x_hat * np.float32(0.5))

        def reconstruct(self, x, params):
            return self.round_trip(x, params).x_hat

    x = RNG.standard_normal((70, 1000)).astype(np.float32)
    form = Format(Truncated(8), Group())
    assert compiled_grid_of(form.element) is None
    fast, plain = both(monkeypatch, x, form)
    assert fast["measured"]["mae"] > 0.1
    require_alike(fast, plain)


def test_a_grid_of_sixteen_bits_has_all_its_codes_in_both(monkeypatch):
    x = RNG.standard_normal(compiled.MAX_NUMPY_SIZE + 1).astype(np.float32)
    fast, plain = both(monkeypatch, x, Format(Float(16, 5, 10, 65504.0)))
    assert plain["measured"]["n_codes"] > 10_000
    require_alike(fast, plain)


@pytest.mark.parametrize("size", [100, compiled.MAX_NUMPY_SIZE + 1])
def test_codes_beyond_the_width_of_an_element_are_refused(size):
    class Unsigned(Element):
        n_bits = 4

        def fit(self, bounds, store):
            return fit_scale(bounds.absmax / 7, store)

        def round_trip(self, x, params):
            codes = np.rint(x / params.scale) + 8
            return Quantized(codes.astype(np.int8), (codes - 8) * params.scale, None)

    x = np.linspace(-1, 1, size, dtype=np.float32)
    with pytest.raises(ValueError, match="codes from 1 to 15, and those of 4 bits are"):
        measure(x, Format(Unsigned()))


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


MEASURE = """
import sys, numpy as np
from quantlab import measure
measure(np.ones({size}, np.float32))
print("numba" in sys.modules)
"""


@pytest.mark.slow
def test_small_tensors_do_without_numba():
    assert run(MEASURE.format(size=2**16)) == ["False"]
    assert run(MEASURE.format(size=2**16 + 1)) == ["True"]


FRESH = """
from quantlab.stats.kernel import entry, i64

@entry(i64, returns=i64)
def twice(x):
    return 2 * x

@entry(i64, returns=i64)
def thrice(x):
    return 3 * x
"""


@pytest.mark.slow
def test_what_takes_seconds_to_compile_is_announced_once(tmp_path):
    path = tmp_path / "fresh.py"
    path.write_text(FRESH)
    run = [subprocess.run([sys.executable, path], capture_output=True, text=True) for _ in range(2)]
    assert [each.stderr.count("Numba compiles") for each in run] == [1, 0]
    assert not any(each.returncode for each in run)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        ("find_spec", "pip install numba"),
        ("import_module", "Numba does not work, so NumPy measures: cannot load"),
    ],
)
def test_numba_that_is_absent_or_broken_is_told_once(break_it, said, monkeypatch, caplog):
    def broken(name):
        if break_it == "import_module":
            raise OSError(f"cannot\nload {name}")

    monkeypatch.setattr(compiled, break_it, broken)
    compiled._load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "quantlab"):
            for _ in range(2):
                assert type(engine_for(2**17)) is NumpyEngine
        assert measure(np.ones(2**17, np.float32), Symmetric(8))["measured"]["mae"] == 0
        assert versions(2**17) == {}
    finally:
        compiled._load.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert said in line
    assert "\n" not in line


def test_the_version_is_that_of_what_measured():
    assert versions(2**16) == {}
    assert list(versions(2**16 + 1)) == ["numba"]
