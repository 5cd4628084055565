import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.formats.scales import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT16,
    FLOAT32,
    FLOAT_TYPES,
    PowerOfTwo,
    TwoLevel,
    scale_type,
)
from tests.formats import oracle

TYPES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16, "e4m3": FLOAT8_E4M3}
positive = st.floats(0, oracle.FLT_MAX)


def rows(stored):
    return list(zip(*(each.tolist() for each in stored), strict=True))


@pytest.mark.parametrize("name", TYPES)
@given(st.lists(positive | st.floats(2.0**-150, 2.0**-120) | st.floats(1e-9, 1e5), min_size=1))
def test_a_scale_is_rounded_once_as_exact_fractions_say(name, scales):
    stored = TYPES[name].store(np.array(scales))
    expected = [oracle.stored_as(name)(scale) for scale in scales]
    assert rows(stored) == expected
    assert stored.scale.dtype == np.float32


@pytest.mark.parametrize("name", TYPES)
def test_halves_between_two_numbers_go_to_the_even_one(name):
    mantissa_bits, min_exponent, _ = oracle.SCALE_TYPES[name]
    for exponent in (min_exponent, 0, 5):
        ulp = 2.0 ** (exponent - mantissa_bits)
        halves = 2.0**exponent + np.array([0.5, 1.5, 2.5, 3.5]) * ulp
        kept = 2.0**exponent + np.array([0, 2, 2, 4]) * ulp
        assert TYPES[name].store(halves).scale.tolist() == kept.tolist()
    least = 2.0 ** (min_exponent - mantissa_bits)  # subnormal numbers are its multiples
    halves = np.array([0.5, 1.5, 2.5, 3.5]) * least
    stored = TYPES[name].store(halves)
    assert stored.scale.tolist() == [0, 2 * least, 2 * least, 4 * least]
    assert stored.vanished.tolist() == [True, False, False, False]


def casts():
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            np.exp2(rng.uniform(-149, 128, 20_000)),
            rng.uniform(0, 448, 2_000),
            np.float32(2.0) ** np.arange(-149, 128),
            1 + np.arange(2**13) * 2.0**-13,
        ]
    ).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_a_scale_is_what_a_cast_makes_of_it(name, dtype):
    x = casts()  # float32: from float64, ml_dtypes rounds twice
    stored = FLOAT_TYPES[name].store(x)
    with np.errstate(over="ignore"):
        theirs = x.astype(dtype).astype(np.float32)
    assert np.array_equal(stored.saturated, np.isinf(theirs))
    kept = ~stored.saturated
    assert np.array_equal(stored.scale[kept], theirs[kept])
    assert (stored.scale[~kept] == np.float32(ml_dtypes.finfo(dtype).max)).all()
    assert np.array_equal(stored.vanished, theirs == 0)


def test_e4m3_scales_are_what_a_cast_makes_of_them():
    x = casts()
    stored = FLOAT8_E4M3.store(x)
    theirs = np.minimum(x, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(stored.scale, theirs)
    # 464 lies half-way to 480, and is even at 448; beyond it the cast gives NaN, and we saturate.
    assert np.array_equal(stored.saturated, np.isnan(x.astype(ml_dtypes.float8_e4m3fn)))
    assert FLOAT8_E4M3.store([464.0, 464.1]).saturated.tolist() == [False, True]


def test_float16_saturates_and_vanishes_where_ieee_754_says():
    stored = FLOAT16.store([65519.99, 65520.0, 2.0**-25, np.nextafter(2.0**-25, 1), 0.0])
    assert stored.scale.tolist() == [65504, 65504, 0, 2.0**-24, 0]
    assert stored.saturated.tolist() == [False, True, False, False, False]
    assert stored.vanished.tolist() == [False, False, True, False, False]


def test_rounding_once_differs_from_rounding_twice():
    scale = 1 + 2.0**-11 + 2.0**-40  # float32 makes a tie of it, which would go down
    assert FLOAT16.store(scale).scale == 1 + 2.0**-10
    assert FLOAT16.store(np.float32(scale)).scale == 1


@given(st.floats(0, 2.0**140))
def test_a_power_of_two_is_the_greatest_that_is_not_above_the_scale(scale):
    kept, saturated, vanished = PowerOfTwo().store(scale)
    assert (float(kept), saturated, vanished) == oracle.power_of_two(scale)
    if 2.0**-127 <= scale < 2.0**128:
        assert kept <= scale < 2 * float(kept)


def test_a_power_of_two_agrees_with_the_type_of_ml_dtypes():
    x = casts()
    kept = PowerOfTwo().store(x).scale
    assert np.array_equal(kept.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32), kept)
    assert PowerOfTwo().store([0.0, 2.0**-149, 1.99, 2.0]).scale.tolist() == [
        2.0**-127,
        2.0**-127,
        1,
        2,
    ]


@given(st.floats(2.0**-60, 2.0**100, width=32), st.lists(st.floats(0, 1), min_size=1))
def test_two_levels_are_float8_in_units_of_the_tensor(absmax, shares):
    scales = [share * absmax / 6 for share in shares]
    stored = TwoLevel().store(scales, absmax)
    expected = [oracle.two_level(absmax)(scale) for scale in scales]
    assert rows(stored) == expected


def test_the_largest_block_of_two_levels_takes_the_largest_float8():
    stored = TwoLevel().store([2688.0 / 6, 1.0, 2.0**-10, 2.0**-11], 2688.0)
    assert stored.scale.tolist() == [448, 1, 0, 0]
    assert stored.vanished.tolist() == [False, False, True, True]


@pytest.mark.parametrize("absmax", [0.0, 1e-42])
def test_a_tensor_too_small_for_a_unit_of_its_own_vanishes(absmax):
    stored = TwoLevel().store([absmax / 6, 0.0], absmax)
    assert not stored.scale.any()
    assert stored.vanished.tolist() == [absmax > 0, False]
    assert not stored.saturated.any()


def test_the_bits_of_each_type():
    assert {name: kind.bits for name, kind in FLOAT_TYPES.items()} == {
        "float32": 32,
        "float16": 16,
        "bfloat16": 16,
    }
    assert (PowerOfTwo.bits, PowerOfTwo.tensor_bits) == (8, 0)
    assert (TwoLevel.bits, TwoLevel.tensor_bits) == (8, 32)


@pytest.mark.parametrize("name", ["float8", "Float32", None, 16])
def test_an_unknown_type_is_named_with_those_there_are(name):
    message = rf"^block\.scale must be one of float32, float16, bfloat16, got {name!r}$"
    with pytest.raises(ValueError, match=message):
        scale_type(name)
