import math

import ml_dtypes
import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.conf import load_option
from quantlab.formats.blocks import Group, PerChannel, PerTensor
from quantlab.formats.element import Scaled
from quantlab.formats.floats import NF4, FixedPoint, Float, Log, NormalFloat4
from quantlab.formats.format import Format
from quantlab.formats.scales import PowerOfTwo, TwoLevel
from quantlab.formats.uniform import code_range
from quantlab.sources.source import VerbProbs
from tests.formats import oracle

DTYPES = {
    "fp4": ml_dtypes.float4_e2m1fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
EMAX = {"fp4": 2, "fp6_e2m3": 2, "fp6_e3m2": 4, "fp8_e4m3": 8, "fp8_e5m2": 15}  # OCP MX 1.0
LARGEST = {"fp4": 6, "fp6_e2m3": 7.5, "fp6_e3m2": 28, "fp8_e4m3": 448, "fp8_e5m2": 57344}
whole = arrays(
    np.float32,
    st.integers(1, 80),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


@pytest.mark.parametrize("largest", [12, 8, 7, 0.25, 0, -6, np.inf, np.nan, "6"])
def test_a_number_that_the_grid_has_not_is_no_largest(largest):
    with pytest.raises(ValueError, match=r"is no number of fp4_e2m1: give one from 0\.5 to 6"):
        Float(4, 2, 1, largest)


def test_a_grid_may_end_at_any_of_its_numbers():
    ends = np.array([[-500, 500]], np.float32)
    for code in range(1, 127):
        largest = float(np.uint8(code).view(ml_dtypes.float8_e4m3fn))
        element = Float(8, 4, 3, largest)
        codes = unscaled(element, ends).codes
        assert (element.largest_code, codes.tolist()) == (code, [[-code, code]])


def unscaled(element, y):
    return element.round_trip(y, Scaled(np.float32(1)))


def mx(name):
    """Return the preset mx/NAME as the specification says it, and its definition."""
    if name == "int8":
        ours, element = oracle.ELEMENTS["int8_fixed"]
    else:
        ours, element = oracle.float_element(name, 2.0 ** EMAX[name])
    return Format(ours, Group(32), scale=PowerOfTwo()), element


def nv_fp4():
    return Format(Float(4, 2, 1, 6.0), Group(16), scale=TwoLevel())


@pytest.mark.parametrize("name", DTYPES)
def test_it_rounds_as_a_saturated_cast_of_ml_dtypes(name):
    ours, _ = oracle.float_element(name)
    rng = np.random.default_rng(0)
    largest = np.float32(LARGEST[name])
    y = np.concatenate(
        [
            rng.standard_normal(50_000) * np.exp2(rng.uniform(-40, 20, 50_000)),
            np.linspace(-largest, largest, 2**14 + 1),
            np.arange(-(2**13), 2**13) * (float(largest) / 2**12),
            [0.0, -0.0, 1e-45, -1e-38, oracle.FLT_MAX, -oracle.FLT_MAX],
        ]
    ).astype(np.float32)
    trip = unscaled(ours, y)
    theirs = np.clip(y, -largest, largest).astype(DTYPES[name])
    assert np.array_equal(trip.x_hat, theirs.astype(np.float32))
    bits = theirs.view(np.uint8)
    sign = 1 << (ours.n_bits - 1)
    assert np.array_equal(np.abs(trip.codes), bits & (sign - 1))
    assert np.array_equal(ours.reconstruct(y, Scaled(np.float32(1))), trip.x_hat)


@pytest.mark.parametrize("name", DTYPES)
def test_every_finite_number_of_the_type_is_a_fixed_point(name):
    ours, element = oracle.float_element(name)
    bits = np.arange(2 ** (ours.n_bits - 1), dtype=np.uint8)
    numbers = bits.view(DTYPES[name]).astype(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    trip = unscaled(ours, np.concatenate([-numbers[::-1], numbers]))
    assert trip.codes.tolist() == [*range(1 - numbers.size, 1), *range(numbers.size)]
    assert np.array_equal(trip.x_hat, [*-numbers[::-1], *numbers])
    assert trip.clipped is None
    assert numbers.max() == LARGEST[name] == element.levels[-1]


@pytest.mark.parametrize("name", DTYPES)
def test_a_tie_goes_to_the_even_mantissa(name):
    ours, element = oracle.float_element(name)
    levels = np.array(element.levels)
    codes = unscaled(ours, ((levels[1:] + levels[:-1]) / 2).astype(np.float32)).codes
    assert not (codes % 2).any()


@pytest.mark.parametrize("name", DTYPES)
def test_what_rounds_beyond_the_largest_is_clipped(name):
    ours, element = oracle.float_element(name)
    largest, below = element.levels[-1], element.levels[-2]
    edge = largest + (largest - below) / 2  # where the next number would begin
    y = np.float32([largest, edge * 0.999, edge * 1.001, -edge * 1.001, oracle.FLT_MAX, 0])
    trip = unscaled(ours, y)
    assert trip.clipped.tolist() == [False, False, True, True, True, False]
    assert trip.x_hat.tolist() == [largest, largest, largest, -largest, largest, 0]


@pytest.mark.parametrize("scale", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", [*DTYPES, "int8_fixed"])
def test_it_is_its_definition(name, scale):
    ours, element = oracle.ELEMENTS[name]
    for seed, spread in enumerate((1.0, 1e-3, 300.0)):
        x = oracle.awkward(np.random.default_rng(seed), (5, 41), spread)
        form = Format(ours, Group(16, scale=scale))
        oracle.check(form, x, element, oracle.stored_as(scale))


@pytest.mark.parametrize("name", [*EMAX, "int8"])
@pytest.mark.parametrize("spread", [1.0, 1e-38, 1e37, 1e-43])
def test_mx_is_its_definition(name, spread):
    form, element = mx(name)
    x = oracle.awkward(np.random.default_rng(3), (4, 70), 1) * np.float32(spread)
    oracle.check(form, x, element, oracle.power_of_two)


@pytest.mark.parametrize("name", EMAX)
def test_torchao_makes_the_same_of_mx(name):
    theirs = oracle.vectors("torchao_mx")
    form, _ = mx(name)
    _, x_hat, _, scales = oracle.round_trip(form, theirs["x"])
    assert np.array_equal(x_hat, theirs[f"{name}_x_hat"].ravel())
    exponents = theirs[f"{name}_scale"].astype(float) - 127
    assert (scales.smallest, scales.largest) == (2 ** exponents.min(), 2 ** exponents.max())


@pytest.mark.parametrize("rule", ["rceil", "even"])
@pytest.mark.parametrize("name", EMAX)
def test_torchao_makes_the_same_by_its_other_rules(name, rule):
    theirs = oracle.vectors("mx_rules")
    form = build_format("mx", name, scale_rule=rule)
    _, x_hat, _, scales = oracle.round_trip(form, theirs["x"])
    oracle.assert_same_bits(x_hat, theirs[f"{name}-{rule}"].ravel())
    exponents = theirs[f"{name}-{rule}-scale"].astype(float) - 127
    assert (scales.smallest, scales.largest) == (2 ** exponents.min(), 2 ** exponents.max())


def build_format(family, name, **settings):
    """Instantiate a preset as its yaml has it, but for some settings."""
    config = load_option("mode", f"{family}/{name}")
    return instantiate({**config["mode"], "n_bits": config["n_bits"], **settings})


def test_nothing_saturates_by_rceil_nor_fp4_by_even():
    x = np.random.default_rng(8).standard_normal((64, 32)).astype(np.float32)
    shares = {}
    for rule in ("floor", "rceil", "even"):
        form = build_format("mx", "fp4", scale_rule=rule)
        _, _, clipped, _ = oracle.round_trip(form, x)
        shares[rule] = clipped.mean()
    assert shares["rceil"] == shares["even"] == 0 < shares["floor"]
    int8 = build_format("mx", "int8", scale_rule="rceil")
    assert not oracle.round_trip(int8, x)[2].any()


def test_a_rule_that_there_is_not_is_refused():
    with pytest.raises(InstantiationException, match="must be one of floor, rceil, even, got 'up'"):
        build_format("mx", "fp4", scale_rule="up")


@pytest.mark.parametrize("name", [*EMAX, "int8"])
@given(whole)
def test_mx_leaves_alone_what_it_made(name, x):
    form, _ = mx(name)
    _, x_hat, _, _ = oracle.round_trip(form, x)
    assert np.isfinite(x_hat).all()
    _, again, clipped, _ = oracle.round_trip(form, x_hat)
    assert np.array_equal(again, x_hat)
    assert not clipped.any()


def test_an_all_zero_block_of_mx_is_zeros_at_the_least_scale():
    form, _ = mx("fp4")
    codes, x_hat, _, scales = oracle.round_trip(form, np.zeros((2, 32), np.float32))
    assert not codes.any()
    assert not x_hat.any()
    assert (scales.smallest, scales.vanished, scales.saturated) == (2.0**-127, 0, 0)


def ggml_mxfp4(x):
    import gguf

    kind = gguf.GGMLQuantizationType.MXFP4
    return gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)


def test_ggml_makes_the_same_of_mx_fp4_away_from_halves():
    x = np.random.default_rng(7).standard_normal((20, 96)).astype(np.float32)
    x[3, :32] = 0
    _, x_hat, _, _ = oracle.round_trip(mx("fp4")[0], x)
    assert np.array_equal(x_hat, ggml_mxfp4(x).ravel())


def test_mx_fp4_takes_halves_to_even_and_ggml_to_the_smaller():
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = [4, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]  # 4 makes the scale 1
    _, x_hat, _, _ = oracle.round_trip(mx("fp4")[0], x)
    assert x_hat[:8].tolist() == [4, 0, 1, 1, 2, 2, 4, 4]
    assert ggml_mxfp4(x)[0, :8].tolist() == [4, 0, 0.5, 1, 1.5, 2, 3, 4]


def test_mx_int8_is_in_units_of_a_64th():
    form, _ = mx("int8")
    x = np.float32([1, 1.5 / 64, 2.5 / 64, 1.99, -1.999])
    codes, x_hat, clipped, _ = oracle.round_trip(form, x)
    assert codes.tolist() == [64, 2, 2, 127, -127]
    assert x_hat.tolist() == [1, 2 / 64, 2 / 64, 127 / 64, -127 / 64]
    assert clipped.tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("spread", [1.0, 1e-30, 1e30, 2e-42])
def test_nvfp4_is_its_definition(spread):
    _, element = oracle.ELEMENTS["fp4"]
    for seed in range(4):
        x = oracle.awkward(np.random.default_rng(seed), (4, 70), 1) * np.float32(spread)
        oracle.check(nv_fp4(), x, element, oracle.two_level(float(np.abs(x).max())))


def test_torchao_makes_the_same_of_nvfp4():
    # It takes no block scale below 2^-6, where we go on to the subnormal 2^-9; and it multiplies by
    # the reciprocals of both scales where we divide by their product, which tells only within an
    # ulp of a tie.
    theirs = oracle.vectors("torchao_nvfp4")
    x, kept = theirs["x"], theirs["scale"].ravel() > 2.0**-6
    _, x_hat, _, scales = oracle.round_trip(nv_fp4(), x)
    assert 0 < np.count_nonzero(~kept) < kept.size / 4
    blocks = x_hat.reshape(-1, 16)
    assert np.array_equal(blocks[kept], theirs["x_hat"].reshape(-1, 16)[kept])
    assert scales.largest == theirs["scale"].max() * theirs["unit"]
    zeros = ~x.reshape(-1, 16).any(1)
    assert not blocks[zeros].any()


def test_a_clamp_gives_the_small_blocks_of_torchao_too():
    theirs = oracle.vectors("torchao_nvfp4")
    form = Format(Float(4, 2, 1, 6.0), Group(16), scale=TwoLevel(clamp=2.0**-6))
    _, x_hat, _, scales = oracle.round_trip(form, theirs["x"])
    oracle.assert_same_bits(x_hat, theirs["x_hat"].ravel())
    assert (scales.vanished, scales.smallest) == (0, np.float32(2.0**-6) * theirs["unit"])


@pytest.mark.parametrize("clamp", [0, -1, 0.3, "small", True, 1000])
def test_a_clamp_that_no_scale_can_be_is_refused(clamp):
    with pytest.raises(ValueError, match=r"^mode\.scale\.clamp must be a number of float8_e4m3"):
        TwoLevel(clamp=clamp)


@pytest.mark.parametrize("name", [*DTYPES, "int8_fixed"])
def test_a_scale_that_vanishes_takes_its_block_to_zero(name):
    ours, _ = oracle.ELEMENTS[name]
    x = np.full(32, 1e-9, np.float32)
    codes, x_hat, clipped, scales = oracle.round_trip(Format(ours, Group(16, scale="float16")), x)
    assert not codes.any()
    assert not x_hat.any()
    assert not clipped.any()
    assert (scales.vanished, scales.saturated) == (2, 0)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("scale", ["float32", "float16", "bfloat16"])
def test_the_largest_float32_comes_back_finite(name, scale):
    ours, _ = oracle.float_element(name)
    x = np.float32([oracle.FLT_MAX, -oracle.FLT_MAX, 1])
    _, x_hat, _, _ = oracle.round_trip(Format(ours, PerTensor(scale=scale)), x)
    assert np.isfinite(x_hat).all()


@pytest.mark.parametrize("n_bits", [4, 7, None])
def test_another_width_is_refused(n_bits):
    message = rf"^n_bits must be 8, the width of fp8_e4m3, got {n_bits}: leave it out$"
    with pytest.raises(ValueError, match=message):
        Float(n_bits, 4, 3, 448.0)
    with pytest.raises(ValueError, match=rf"^n_bits must be 8, the width of int8, got {n_bits}: "):
        FixedPoint(n_bits, 8, 6)


def test_a_float_that_ml_dtypes_has_not_is_refused_in_a_sentence():
    message = (
        r"^mode.exponent_bits=3 with mode.mantissa_bits=1 is no float that ml_dtypes has: give "
    )
    with pytest.raises(ValueError, match=message):
        Float(5, 3, 1, 14.0)


def nf4_codes(y):
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
    assert (scales.smallest, scales.largest) == (theirs["absmax"].min(), theirs["absmax"].max())


def test_each_level_of_nf4_is_its_own_code():
    trip = nf4_codes(NF4)
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
        assert nf4_codes(around).codes.tolist() == expected


def test_a_value_more_than_half_a_step_beyond_the_ends_is_clipped():
    lower, upper = (3 * NF4[0] - NF4[1]) / 2, (3 * NF4[-1] - NF4[-2]) / 2
    y = np.float32([lower * 1.001, lower * 0.999, -1, 1, upper * 0.999, upper * 1.001])
    trip = nf4_codes(y)
    assert trip.clipped.tolist() == [True, False, False, False, False, True]
    assert trip.x_hat.tolist() == [-1, -1, -1, 1, 1, 1]


@pytest.mark.parametrize("scale", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_nf4_is_its_definition(scale, size):
    ours, element = oracle.ELEMENTS["nf4"]
    for seed in range(3):
        x = oracle.awkward(np.random.default_rng(seed), (6, 50))
        form = Format(ours, Group(size, scale=scale))
        oracle.check(form, x, element, oracle.stored_as(scale))


def test_the_largest_float32_survives_nf4():
    x = np.float32([oracle.FLT_MAX, -oracle.FLT_MAX, 1])
    _, x_hat, _, _ = oracle.round_trip(Format(NormalFloat4(4), PerTensor()), x)
    assert x_hat.tolist() == [oracle.FLT_MAX, -oracle.FLT_MAX, 0]


@pytest.mark.parametrize("n_bits", [8, 3, None])
def test_another_width_of_nf4_is_refused(n_bits):
    message = rf"^n_bits must be 4, the width of nf4, got {n_bits}: leave it out$"
    with pytest.raises(ValueError, match=message):
        NormalFloat4(n_bits)


# Sign and logarithm.
wide = st.floats(-oracle.FLT_MAX, oracle.FLT_MAX, width=32)
values = arrays(np.float32, st.integers(1, 40), elements=wide | st.floats(-1, 1, width=32))
widths = st.integers(3, 16)


def check_log_block(x, codes, x_hat, n_bits):
    """Require one block to be what its definition says."""
    magnitudes = [abs(v) for v in x if v]
    if not magnitudes:
        assert not any(x_hat)
        return
    a, m = max(magnitudes), min(magnitudes)
    one_sign = min(x) >= 0 or max(x) <= 0
    n_codes = 2**n_bits - 1 if one_sign else 2 ** (n_bits - 1) - 1
    d = oracle.f32(math.log2(a / m) / (n_codes - 1))
    for v, code, got in zip(x, codes, x_hat, strict=True):
        if not v:
            assert got == 0
            continue
        position = math.log2(a / abs(v)) / d if d else 0.0
        near = {round(position - 1e-7), round(position + 1e-7), round(position)}
        allowed = [min(max(k, 0), n_codes - 1) for k in near]  # two at a tie, the logarithm's ulp
        answers = [math.copysign(a * 2.0 ** (-k * d), v) for k in allowed]
        assert any(abs(got - answer) <= abs(answer) * 2.0**-23 + 2.0**-149 for answer in answers)
        assert code != zero_code(x, n_bits)


def zero_code(x, n_bits):
    qmin, qmax = code_range(n_bits)
    return qmin if min(x) >= 0 else qmax if max(x) <= 0 else 0


@given(values, widths)
def test_log_is_its_definition(x, n_bits):
    codes, x_hat, clipped, scales = oracle.round_trip(Format(Log(n_bits)), x)
    check_log_block(x.tolist(), codes.tolist(), x_hat.tolist(), n_bits)
    assert scales.largest == np.abs(x).max()
    assert not clipped.any()


@pytest.mark.parametrize("block", [PerTensor(), PerChannel(axis=-1), PerChannel(), Group(7)])
@pytest.mark.parametrize("shape", [(), (50,), (5, 23), (3, 4, 9)])
def test_blocks_of_log_have_parameters_of_their_own(block, shape):
    x = np.asarray(oracle.awkward(np.random.default_rng(1), shape))
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(5), block), x)
    flat = x.ravel()
    for members in oracle.blocks_of(shape, block):
        check_log_block(flat[members].tolist(), codes[members].tolist(), x_hat[members].tolist(), 5)


@given(values, widths)
def test_laws_of_the_logarithmic_grid(x, n_bits):
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(n_bits)), x)
    qmin, qmax = code_range(n_bits)
    assert codes.dtype == (np.int8 if n_bits <= 8 else np.int16)
    assert qmin <= codes.min() <= codes.max() <= qmax
    assert np.array_equal(np.sign(x), np.sign(x_hat)) or (np.abs(x[x != 0]).min() < 2.0**-140)
    assert np.array_equal(codes == zero_code(x.tolist(), n_bits), x == 0) or not x.any()
    order = np.argsort(x, kind="stable")
    assert (np.diff(codes[order].astype(int)) >= 0).all()
    assert (np.diff(x_hat[order].astype(float)) >= 0).all()
    greatest = np.abs(x) == np.abs(x).max()
    assert np.array_equal(x_hat[greatest], x[greatest])
    for code in np.unique(codes):
        assert np.unique(x_hat[codes == code]).size == 1


@given(arrays(np.float32, st.integers(2, 40), elements=st.floats(2.0**-20, 1, width=32)), widths)
def test_the_relative_error_of_log_is_half_a_step_at_most(x, n_bits):
    _, x_hat, _, _ = oracle.round_trip(Format(Log(n_bits)), x)
    octaves = math.log2(x.max() / x.min()) / (2**n_bits - 2)
    ratio = np.abs(np.log2(x_hat.astype(float) / x))
    assert ratio.max() <= octaves / 2 + 20 * 2.0**-24 + 2.0**-22


@given(values, widths, st.integers(-30, 30))
def test_a_power_of_two_scales_what_comes_back(x, n_bits, power):
    assume(np.abs(x).max() < 2.0**90)
    assume(not x.any() or np.abs(x[x != 0]).min() > 2.0**-90)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(n_bits)), x)
    again, scaled, _, _ = oracle.round_trip(Format(Log(n_bits)), np.ldexp(x, power))
    assert np.array_equal(codes, again)
    assert np.array_equal(scaled, np.ldexp(x_hat, power))


def test_eight_bits_of_the_labs_verb_probs():
    x = next(VerbProbs(42, 600, 1.5).tensors()).array
    _, x_hat, _, _ = oracle.round_trip(Format(Log(8)), x)
    error = x_hat.astype(float) - x
    shown = np.abs(x) > 1e-8
    assert np.mean(np.abs(error[shown]) / x[shown]) == pytest.approx(0.0085, abs=5e-5)
    assert x_hat.all()
    ratio = np.square(x.astype(float)).sum() / np.square(error).sum()
    assert 10 * np.log10(ratio) == pytest.approx(40.1, abs=0.05)


def test_one_sign_of_log_has_all_the_codes():
    x = np.exp2(-np.arange(7)).astype(np.float32)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(3)), x)
    assert codes.tolist() == [3, 2, 1, 0, -1, -2, -3]
    assert np.array_equal(x_hat, x)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(3)), -x)
    assert codes.tolist() == [-4, -3, -2, -1, 0, 1, 2]
    assert np.array_equal(x_hat, -x)
    codes, x_hat, _, _ = oracle.round_trip(Format(Log(3)), np.float32([4, -2, 1, 0]))
    assert codes.tolist() == [3, -2, 1, 0]
    assert x_hat.tolist() == [4, -2, 1, 0]


@pytest.mark.parametrize("n_bits", [1, 2])
def test_two_bits_of_log_are_too_few(n_bits):
    with pytest.raises(ValueError, match=rf"^n_bits must be .*, got {n_bits}$"):
        Log(n_bits)
    with pytest.raises(ValueError, match=r"^n_bits must be from 3 to 16 with mode=log, got 2$"):
        Log(2)
