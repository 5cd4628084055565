"""The types of llama.cpp against gguf-py, which reads them all back and writes some."""

import ctypes
from math import prod

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.ggml import FALLBACKS, NUMBERS, Ggml
from quantlab.sources.tensor import Tensor
from tests.conftest import run_python
from tests.formats import oracle

pytest.importorskip("xllamacpp", reason="the types of llama.cpp take the package xllamacpp")

TAKE_IMPORTANCE = {"iq1_s", "iq2_xxs", "iq2_xs"}
FREE = sorted(NUMBERS.keys() - TAKE_IMPORTANCE)
WRITTEN_BY_GGUF = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4"]
SHAPES = [(3, 512), (2, 3, 256)]
few = settings(max_examples=6)  # of each of the many types


class Known:
    """An importance matrix with what it holds of every tensor."""

    name = "imatrix.gguf"

    def __init__(self, importance):
        self.importance = importance

    def of(self, name, shape):  # noqa: ARG002 as the real one
        return self.importance


QUICK = [  # types with a table for importance make it for seconds
    pytest.param(name, marks=pytest.mark.slow) if name.startswith("iq") else name
    for name in NUMBERS
]


def width(name):
    return int(next(letter for letter in name if letter.isdigit()))


def kind_of(name):
    return gguf.GGMLQuantizationType(NUMBERS[name])


def drawn(shape, seed=0):
    return np.asarray(oracle.awkward(np.random.default_rng(seed), shape), np.float32)


def importance_of(shape, seed=1):
    """Importance of each column, for every matrix its own."""
    matrices = shape[0] if len(shape) == 3 else 1
    return np.random.default_rng(seed).lognormal(0, 2, (matrices, shape[-1])).astype(np.float32)


def ggml(name, importance=None):
    known = Known(importance) if importance is not None or name in TAKE_IMPORTANCE else None
    return Ggml(name, width(name), known)


def round_trip(name, x, importance=None):
    return ggml(name, importance).open(Tensor("x", x)).read(0, x.size).reshape(x.shape)


def codes(name, matrix, importance=None):
    """The library's codes of a matrix, of one call, in rows of bytes."""
    library = ggml(name, importance)._ggml
    block, size = gguf.GGML_QUANT_SIZES[kind_of(name)]
    out = np.zeros((len(matrix), matrix.shape[1] // block * size), np.uint8)
    weights = None if importance is None else importance.ctypes.data_as(ctypes.c_void_p)
    written = library.ggml_quantize_chunk(
        NUMBERS[name], matrix.ctypes.data, out.ctypes.data, 0, *matrix.shape, weights
    )
    assert written == out.nbytes
    return out


def expected(name, x, importance=None):
    """What gguf-py reads from the library's codes of each matrix."""
    matrices = x.reshape(-1, *x.shape[-2:])
    each_has = [None] * len(matrices) if importance is None else importance
    found = [
        gguf.quants.dequantize(codes(name, matrix, weights), kind_of(name))
        for matrix, weights in zip(matrices, each_has, strict=True)
    ]
    return np.stack(found).reshape(x.shape)


def test_each_type_has_the_number_of_the_enum():
    theirs = {kind.name.lower(): kind.value for kind in gguf.GGMLQuantizationType}
    assert NUMBERS.items() <= theirs.items()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FREE)
def test_what_comes_back_is_what_gguf_reads_bit_for_bit(name, shape):
    x = drawn(shape)
    found = round_trip(name, x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected(name, x).view(np.uint32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUICK)
def test_importance_gives_the_codes_of_one_call_a_matrix(name, shape):
    x, importance = drawn(shape), importance_of(shape)
    found = round_trip(name, x, importance)
    np.testing.assert_array_equal(found, expected(name, x, importance))


def test_each_expert_has_importance_of_its_own():
    x, importance = np.repeat(drawn((1, 3, 256)), 2, axis=0), importance_of((2, 3, 256))
    first, second = round_trip("q4_k", x, importance)
    assert not np.array_equal(first, second)
    first, second = round_trip("q4_k", x, importance[[0, 0]])
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", WRITTEN_BY_GGUF)
def test_codes_are_those_that_gguf_writes(name, seed):
    x = drawn((4, 512), seed)
    theirs = gguf.quants.quantize(x, kind_of(name))
    np.testing.assert_array_equal(codes(name, x), theirs)
    np.testing.assert_array_equal(
        round_trip(name, x), gguf.quants.dequantize(theirs, kind_of(name))
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", QUICK)
@few
@given(st.sampled_from(SHAPES), st.data())
def test_nothing_depends_on_how_a_tensor_is_cut(name, weighted, shape, data):
    if not weighted and name in TAKE_IMPORTANCE:
        return
    x = drawn(shape)
    read = ggml(name, importance_of(shape) if weighted else None).open(Tensor("x", x)).read
    whole = read(0, x.size)
    start = data.draw(st.integers(0, x.size - 1))
    stop = data.draw(st.integers(start + 1, x.size))
    np.testing.assert_array_equal(read(start, stop), whole[start:stop])


@pytest.mark.parametrize("name", QUICK)
def test_what_is_stored_is_what_a_row_takes_in_ggml(name):
    shape = (2, 3, 512)
    library = ggml(name)._ggml
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_row_size.restype = ctypes.c_size_t
    opened = ggml(name, importance_of(shape)).open(Tensor("x", drawn(shape)))
    assert opened.bits == 8 * prod(shape[:-1]) * library.ggml_row_size(NUMBERS[name], shape[-1])
    assert (opened.dtype, opened.sha256) == (name, None)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((512,), "it has one dimension, which llama.cpp leaves as it is"),
        ((), "it has one dimension, which llama.cpp leaves as it is"),
        (
            (512, 33),
            "its rows of 33 values are no multiple of the 32 of a block of ggml/q4_0, so that "
            "llama.cpp leaves it as it is",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_left_out(shape, said):
    with pytest.raises(UnfitError) as caught:
        ggml("q4_0").open(Tensor("x", np.ones(shape, np.float32)))
    assert str(caught.value) == said


@pytest.mark.parametrize("name", QUICK)
def test_rows_that_256_does_not_divide_are_stored_as_llama_quantize_does(name):
    other = FALLBACKS.get(name)
    if not other:
        return
    tensor = Tensor("x", drawn((6, 96)))
    if name in TAKE_IMPORTANCE:
        known = Known(np.ones((1, 96), np.float32))
        opened = Ggml(name, width(name), known).open(tensor)
        direct = Ggml(other, width(other), known).open(tensor)
    else:
        opened, direct = ggml(name).open(tensor), ggml(other).open(tensor)
    assert (opened.dtype, opened.bits) == (other, direct.bits)
    np.testing.assert_array_equal(opened.read(0, 576), direct.read(0, 576))
    assert opened.remark == f"rows of 96 values are stored as {other}, as llama-quantize does"


def test_rows_that_32_does_not_divide_either_stay_in_float16():
    x = drawn((6, 50))
    opened = ggml("q6_k").open(Tensor("x", x))
    assert (opened.dtype, opened.bits) == ("f16", 16 * x.size)
    np.testing.assert_array_equal(opened.read(3, 299), x.astype(np.float16).reshape(-1)[3:299])


def test_blocks_of_32_fit_where_256_do_not():
    assert round_trip("q4_0", drawn((5, 96))).shape == (5, 96)


@pytest.mark.parametrize("name", sorted(TAKE_IMPORTANCE))
def test_a_type_that_takes_importance_is_refused_without(name):
    with pytest.raises(ContradictionError) as caught:
        Ggml(name, width(name))
    told = f"mode=ggml/{name} takes an importance matrix: add mode.imatrix=FILE"
    assert str(caught.value) == told


def test_a_tensor_without_importance_is_left_out_where_the_type_takes_it():
    tensor = Tensor("x", drawn((3, 512)))
    with pytest.raises(UnfitError) as caught:
        Ggml("iq2_xs", 2, Known(None)).open(tensor)
    assert str(caught.value) == "imatrix.gguf has no importance of it, which ggml/iq2_xs takes"
    without = Ggml("q4_k", 4, Known(None)).open(tensor).read(0, tensor.size)
    np.testing.assert_array_equal(without, Ggml("q4_k", 4).open(tensor).read(0, tensor.size))


def test_an_unknown_type_lists_the_known():
    with pytest.raises(ValueError, match=r"type must be one of q4_0, .*, nvfp4, got 'q8_k'"):
        Ggml("q8_k", 8)


@pytest.mark.parametrize("name", ["q4_k", "iq4_xs", "tq1_0", "mxfp4", "q8_0"])
def test_a_type_has_its_own_width(name):
    assert ggml(name).n_bits == width(name)
    told = f"n_bits must be {width(name)}, the width of mode=ggml/{name}, got 3: leave it out"
    with pytest.raises(ContradictionError) as caught:
        Ggml(name, 3)
    assert str(caught.value) == told


def test_the_version_of_the_library_is_told():
    assert list(ggml("q4_0").versions) == ["xllamacpp"]


@pytest.mark.parametrize("layout", ["transposed", "float16"])
def test_any_layout_and_dtype_is_read_as_float32_rows(layout):
    x = drawn((512, 512)).T if layout == "transposed" else drawn((3, 512)).astype(np.float16)
    same = np.ascontiguousarray(x, np.float32)
    np.testing.assert_array_equal(round_trip("q6_k", x), round_trip("q6_k", same))


HUGE = """
import numpy as np, quantlab
x = np.random.default_rng(0).standard_normal((4, 512)) * {size}
try:
    quantlab.measure(x.astype(np.float32), mode="ggml/{name}")
except ValueError as reason:
    print(reason)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "iq2_s", "iq3_xxs", "iq3_s"])
def test_values_that_a_type_cannot_hold_cost_one_tensor_and_not_the_process(name):
    done = run_python("-c", HUGE.format(size=1e20, name=name))
    assert done.returncode == 0, done.stderr  # the library aborts where a sum overflows
    (line,) = done.stdout.splitlines()
    assert "damaged" not in line  # nothing is stored that could be
