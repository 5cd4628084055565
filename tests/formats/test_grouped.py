"""What all codecs of groups have in common, whichever runtime's rule they follow."""

from math import prod

import numpy as np
import pytest
from hydra.utils import get_object
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quantlab.conf import load_option, option_names
from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import ContradictionError
from quantlab.formats.grouped import GroupCodec, group_ends, round_to_type
from quantlab.formats.scales import BFLOAT16, FLOAT16, FLOAT32
from quantlab.measurement import form_of, load_mode, measure
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import reconstruct
from tests.conftest import ROOT
from tests.formats import oracle


def is_grouped(option):
    """Test whether a mode is a rule of a runtime."""
    config = load_option("mode", option)
    cls = get_object(config.get("mode", config)["_target_"])
    return isinstance(cls, type) and issubclass(cls, GroupCodec)


MODES = [option for option in option_names("mode") if is_grouped(option)]
N_BITS = {"quanto/qint": 4}  # of modes that have no 8 bits, the default
SHAPES = [(6, 256), (2, 3, 128)]


def draw(shape, seed=0):
    return np.asarray(oracle.awkward(np.random.default_rng(seed), shape), np.float32)


def test_modes_are_found():
    runtimes = {mode.partition("/")[0] for mode in MODES}
    assert runtimes >= {"mlx", "torchao", "bnb", "onnx"}


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10)
@given(st.sampled_from(SHAPES), st.data())
def test_nothing_depends_on_how_a_tensor_is_cut(mode, shape, data):
    x = draw(shape)
    try:
        read = load_mode(mode, N_BITS.get(mode)).open(Tensor("x", x)).read
    except UnfitError:  # some take matrices alone
        assume(len(shape) == 2)
        raise
    whole = read(0, x.size)
    start = data.draw(st.integers(0, x.size - 1))
    stop = data.draw(st.integers(start + 1, x.size))
    np.testing.assert_array_equal(read(start, stop), whole[start:stop])
    assert whole.dtype == np.float32


@pytest.mark.parametrize("mode", MODES)
def test_a_large_tensor_is_what_its_rows_are_on_any_number_of_threads(mode):
    x = np.random.default_rng(1).standard_normal((600, 256)).astype(np.float32)
    codec = load_mode(mode, N_BITS.get(mode))
    whole = reconstruct(Tensor("x", x), codec.open(Tensor("x", x)), threads=3)
    np.testing.assert_array_equal(
        whole, codec.open(Tensor("x", x)).read(0, x.size).reshape(x.shape)
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_measurement_says_what_stores_it(mode):
    x = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    codec = load_mode(mode, N_BITS.get(mode))
    result = measure(x, mode, N_BITS.get(mode))
    assert result["stored_dtype"] == codec.label
    assert codec.label.startswith(f"{mode} {codec.n_bits} bits")
    assert codec.n_bits < result["bits_per_value"] <= codec.n_bits + 2
    assert result["sqnr_db"] > 5 * codec.n_bits - 4


@pytest.mark.parametrize("mode", MODES)
def test_blocks_and_ranges_do_not_go_with_it(mode):
    with pytest.raises(ContradictionError, match=r"block=channel does not go with a mode that"):
        form_of(mode, N_BITS.get(mode), block="channel")
    with pytest.raises(ContradictionError, match=r"range=mse does not go with a mode that"):
        form_of(mode, N_BITS.get(mode), range="mse")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(mode, value):
    x = np.ones((4, 256), np.float32)
    x[2, 5] = value
    with pytest.raises(ValueError, match=r"tensor 'x' holds 1 NaN or Inf .* at index \[2, 5\]"):
        measure(x, mode, N_BITS.get(mode))


@pytest.mark.parametrize("mode", MODES)
def test_zeros_come_back_as_zeros(mode):
    zeros = np.zeros((2, 256), np.float32)
    assert not load_mode(mode, N_BITS.get(mode)).open(Tensor("x", zeros)).read(0, zeros.size).any()


def test_values_beyond_the_type_that_a_runtime_holds_are_named():
    codec = load_mode("mlx/affine")
    x = Tensor("x", np.full((1, 64), 1e5, np.float32))
    codec.dtype = "float16"
    with pytest.raises(ValueError, match=r"tensor 'x' holds .* beyond float16"):
        codec.open(x).read(0, 64)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((64,), "it has one dimension, which MLX leaves as it is"),
        (
            (64, 48),
            "its rows of 48 values are no multiple of the 64 of a group, so that MLX leaves it as "
            "it is",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_left_out(shape, reason):
    with pytest.raises(UnfitError) as caught:
        load_mode("mlx/affine").open(Tensor("x", np.ones(shape, np.float32)))
    assert str(caught.value) == reason


@pytest.mark.parametrize("mode", MODES)
def test_nothing_else_knows_the_name_of_a_rule(mode):
    cls = type(load_mode(mode, N_BITS.get(mode)))
    own = cls.__module__.replace(".", "/") + ".py"
    for path in (ROOT / "quantlab").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name != own and "plans/runtimes" not in name:
            text = path.read_text()
            assert mode not in text, name
            assert cls.__name__ not in text, name


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_rounding_is_that_of_a_cast(dtype, values):
    x = np.array(values, np.float32)
    expected = oracle.typed(x, dtype.name).array.astype(np.float32)
    np.testing.assert_array_equal(round_to_type(x, dtype), expected)


@pytest.mark.parametrize("shape", [(5, 32), (3, 128), (1, 7), (40, 1)])
def test_ends_are_those_of_each_group(shape):
    x = draw((prod(shape),)).reshape(shape)
    lo, hi = group_ends(x)
    np.testing.assert_array_equal(lo[:, 0], x.min(1))
    np.testing.assert_array_equal(hi[:, 0], x.max(1))
