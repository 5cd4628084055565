import numpy as np
import pytest

from quantlab.formats.blocks import Group, PerTensor
from quantlab.formats.element import Scaled
from quantlab.formats.format import Format
from quantlab.formats.levels import NF4, NormalFloat4
from tests.formats import oracle


def codes_of(y):
    return NormalFloat4(4).round_trip(y, Scaled(np.float32(1)))


def test_the_levels_are_those_of_bitsandbytes():
    assert np.array_equal(oracle.vectors("bitsandbytes_nf4")["levels"], NF4)


def test_bitsandbytes_makes_the_same_of_a_tensor():
    # It multiplies by 1 / absmax where we divide: they part where a value lies within an ulp of a
    # midpoint, and none of these does.
    theirs = oracle.vectors("bitsandbytes_nf4")
    x = theirs["x"]
    codes, x_hat, _, scales = oracle.round_trip(Format(NormalFloat4(4), Group(64)), x)
    packed = theirs["packed"].ravel()
    their_codes = np.stack([packed >> 4, packed & 15], axis=-1).ravel().astype(int)
    zeros = np.repeat(theirs["absmax"] == 0, 64)
    assert np.array_equal(codes[~zeros] + 8, their_codes[~zeros])
    assert np.array_equal(x_hat, theirs["x_hat"].ravel())
    assert (scales.least, scales.greatest) == (theirs["absmax"].min(), theirs["absmax"].max())


def test_each_level_is_its_own_code():
    trip = codes_of(NF4)
    assert trip.codes.tolist() == list(range(-8, 8))
    assert np.array_equal(trip.x_hat, NF4)
    assert trip.clipped is None


def test_at_a_midpoint_the_lower_level_is_taken():
    exact = NF4.astype(np.float64)
    for code, middle in enumerate((exact[1:] + exact[:-1]) / 2, start=-8):
        nearest = np.float32(middle)
        around = np.float32(
            [np.nextafter(nearest, -9), nearest, np.nextafter(nearest, np.float32(9))]
        )
        expected = [code if y <= middle else code + 1 for y in around.astype(np.float64)]
        assert codes_of(around).codes.tolist() == expected


def test_a_value_more_than_half_a_step_beyond_the_ends_is_clipped():
    lower, upper = (3 * NF4[0] - NF4[1]) / 2, (3 * NF4[-1] - NF4[-2]) / 2
    y = np.float32([lower * 1.001, lower * 0.999, -1, 1, upper * 0.999, upper * 1.001])
    trip = codes_of(y)
    assert trip.clipped.tolist() == [True, False, False, False, False, True]
    assert trip.x_hat.tolist() == [-1, -1, -1, 1, 1, 1]


@pytest.mark.parametrize("scale", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_it_is_its_definition(scale, size):
    ours, element = oracle.ELEMENTS["nf4"]
    for seed in range(3):
        x = oracle.awkward(np.random.default_rng(seed), (6, 50))
        form = Format(ours, Group(size, scale=scale))
        oracle.check(form, x, element, oracle.stored_as(scale))


def test_the_largest_float32_survives():
    x = np.float32([oracle.FLT_MAX, -oracle.FLT_MAX, 1])
    _, x_hat, _, _ = oracle.round_trip(Format(NormalFloat4(4), PerTensor()), x)
    assert x_hat.tolist() == [oracle.FLT_MAX, -oracle.FLT_MAX, 0]


@pytest.mark.parametrize("n_bits", [8, 3, None])
def test_another_width_is_refused(n_bits):
    message = rf"^n_bits must be 4, the width of nf4, got {n_bits}: leave it out$"
    with pytest.raises(ValueError, match=message):
        NormalFloat4(n_bits)
