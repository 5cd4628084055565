import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats import blocks, quantizer, ranges, scales
from quantlab.formats.blocks import Group, PerChannel, PerTensor
from quantlab.formats.element import per_value
from quantlab.formats.floats import FixedPoint, Float, Log, NormalFloat4
from quantlab.formats.format import Format, as_element
from quantlab.formats.ranges import AbsMax, Mse, Percentile
from quantlab.formats.scales import PowerOfTwo, TwoLevel
from quantlab.formats.uniform import Asymmetric, Symmetric, Uniform, code_range
from tests.formats import oracle

SHAPES = [(), (1,), (97,), (7, 40), (40, 1), (3, 5, 11)]
BLOCKS = [PerTensor(), PerChannel(), PerChannel(axis=-1), Group(32), Group(5)]
SCALE_NAMES = ["float32", "float16", "bfloat16"]
UNIFORM = [name for name in oracle.ELEMENTS if "sym" in name]


def with_scale(block, scale):
    return replace(block, scale=scale)


def formats():
    """Return one format of every kind, by name."""
    elements = {name: ours for name, (ours, _) in oracle.ELEMENTS.items()} | {"log5": Log(5)}
    found = {name: Format(ours, Group(16)) for name, ours in elements.items()}
    for name in ("sym4", "asym4", "nf4", "fp4", "fp8_e5m2"):
        found[f"{name} bfloat16 mse"] = Format(elements[name], Group(9, scale="bfloat16"), Mse())
        found[f"{name} channel p95"] = Format(elements[name], PerChannel(axis=-1), Percentile(p=95))
    found["mx/fp8_e4m3"] = Format(Float(8, 4, 3, 448.0, 256.0), Group(32), scale=PowerOfTwo())
    found["mx/int8"] = Format(FixedPoint(8, 8, 6), Group(32), scale=PowerOfTwo())
    found["nv/fp4"] = Format(Float(4, 2, 1, 6.0), Group(16), scale=TwoLevel())
    return found


FORMATS = formats()
KEEPING_ZERO = [
    name
    for name, form in FORMATS.items()
    if getattr(form.element, "zero_point", "widen") == "widen"
]
few = settings(max_examples=25)  # of each of the many formats
moderate = st.one_of(
    st.just(0.0), *(st.floats(*ends, width=32) for ends in ((2.0**-20, 2.0**20), (-4, -(2.0**-9))))
)
matrices = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=moderate)


def members_of(form, shape):
    return oracle.blocks_of(shape, form.block)


@pytest.mark.parametrize("scale", SCALE_NAMES)
@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_every_element_is_its_definition_in_every_block(name, scale):
    ours, element = oracle.ELEMENTS[name]
    store = oracle.stored_as(scale)
    for seed, shape in enumerate(SHAPES):
        x = np.asarray(oracle.awkward(np.random.default_rng(seed), shape, spread=2.0))
        for block in BLOCKS:
            oracle.check(Format(ours, with_scale(block, scale)), x, element, store)


@pytest.mark.parametrize("scale", SCALE_NAMES)
@pytest.mark.parametrize("name", oracle.ELEMENTS)
@pytest.mark.parametrize(
    "block",
    [
        [0.0] * 3,
        [-0.0, 0.0],
        [2.5],
        [-3e-42, 1e-45],
        [1e-38, -4e-39],
        [1e-7, 3e-8],
        [1e38, -3e37, 2],
    ],
)
def test_degenerate_blocks_are_their_definition(name, scale, block):
    ours, element = oracle.ELEMENTS[name]
    form = Format(ours, Group(len(block), scale=scale))
    oracle.check(form, np.float32([block, block]), element, oracle.stored_as(scale))


@pytest.mark.parametrize("value", [300.25, -5.25, 1.0])
@pytest.mark.parametrize("policy", ["clip", "wide_int"])
def test_a_constant_block_that_comes_back_has_not_vanished(policy, value):
    form = Format(Asymmetric(8, policy), Group(8))
    _, x_hat, _, found = oracle.round_trip(form, np.full(16, value, np.float32))
    assert x_hat.all()
    assert found.vanished == 0


@pytest.mark.parametrize("n_bits", [4, 8])
def test_a_wide_zero_point_does_not_take_the_largest_float32_to_infinity(n_bits):
    x = np.float32([oracle.FLT_MAX, oracle.FLT_MAX * (1 - 2.0**-5)])
    _, x_hat, _, _ = oracle.round_trip(Format(Asymmetric(n_bits, "wide_int"), PerTensor()), x)
    assert np.isfinite(x_hat).all()


# Laws.


@pytest.mark.parametrize("name", FORMATS)
@few
@given(matrices)
def test_codes_are_in_their_range_monotone_in_a_block_and_stand_for_one_value(name, x):
    form = FORMATS[name]
    codes, x_hat, _, _ = oracle.round_trip(form, x)
    qmin, qmax = code_range(form.n_bits)
    assert codes.dtype == (np.int8 if form.n_bits <= 8 else np.int16)
    assert x_hat.dtype == np.float32
    assert qmin <= codes.min() <= codes.max() <= qmax
    flat = x.ravel()
    for members in members_of(form, x.shape):
        order = np.argsort(flat[members], kind="stable")
        sorted_codes, sorted_x_hat = codes[members][order].astype(int), x_hat[members][order]
        assert (np.diff(sorted_codes) >= 0).all()
        assert (np.diff(sorted_x_hat) >= 0).all()
        assert not np.diff(sorted_x_hat)[np.diff(sorted_codes) == 0].any()


@pytest.mark.parametrize("name", KEEPING_ZERO)
@few
@given(matrices)
def test_zero_comes_back_as_zero(name, x):
    form = FORMATS[name]
    _, x_hat, _, _ = oracle.round_trip(form, x)
    assert not x_hat[x.ravel() == 0].any()


@pytest.mark.parametrize("name", FORMATS)
@few
@given(matrices, st.integers(-40, 40))
def test_a_power_of_two_scales_what_comes_back(name, x, power):
    # Not where the scale is float16, which ends at 2^16 and 2^-24.
    form = FORMATS[name]
    codes, x_hat, clipped, _ = oracle.round_trip(form, x)
    fit, number, _ = fitted(form, x)
    if isinstance(form.element, Uniform):  # a range of 0 has a step of 1, which does not scale
        assume(not x.ravel()[fit.params.scale_replaced[number]].any())
    again, scaled, clipped_again, _ = oracle.round_trip(form, np.ldexp(x, power))
    assert np.array_equal(codes, again)
    assert np.array_equal(np.ldexp(x_hat, power), scaled)
    assert np.array_equal(clipped, clipped_again)


def fitted(form, x):
    """Return a coder whose parameters were all chosen beforehand, and the block of each value."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MAX_WHOLE_BLOCK", 0)
        made, layout = oracle.quantizer(form, x)
        assert made._chosen is not None
    number = np.empty(x.size, int)
    for n, members in enumerate(members_of(form, x.shape)):
        number[members] = n
    return made._chosen, number, layout


@pytest.mark.parametrize("name", FORMATS)
@few
@given(matrices)
def test_what_came_back_comes_back_again_with_the_same_parameters(name, x):
    # With parameters chosen anew, only the grids that reach their scale exactly do: see below.
    form = FORMATS[name]
    codes, x_hat, _, _ = oracle.round_trip(form, x)
    fit, number, _ = fitted(form, x)
    params = type(fit.params)(*(np.asarray(each)[number] for each in fit.params))
    again = form.element.round_trip(x_hat[:, None], per_value(params))
    assert np.array_equal(again.codes[:, 0], codes)
    assert np.array_equal(again.x_hat[:, 0], x_hat)
    assert again.clipped is None
    assert np.array_equal(
        form.element.reconstruct(x.reshape(-1, 1), per_value(params))[:, 0], x_hat
    )


@pytest.mark.parametrize("scale", SCALE_NAMES)
@few
@given(matrices)
def test_nf4_leaves_alone_what_it_made(scale, x):
    # Its largest level is 1, so the scale comes back exactly; mx does too (test_floats). A uniform
    # grid and fp* divide by qmax or the largest number, and may land one ulp off; log loses m.
    form = Format(NormalFloat4(4), Group(16, scale=scale))
    x = np.where(np.abs(x) < 60000, x, np.float32(1))  # no float16 scale saturates
    _, x_hat, _, _ = oracle.round_trip(form, x)
    _, again, _, _ = oracle.round_trip(form, x_hat.reshape(x.shape))
    assert np.array_equal(again, x_hat)


@pytest.mark.parametrize("scale", SCALE_NAMES)
@pytest.mark.parametrize("name", UNIFORM)
@few
@given(matrices)
def test_no_error_is_above_half_the_step_of_its_own_block_where_nothing_clips(name, scale, x):
    ours, _ = oracle.ELEMENTS[name]
    form = Format(ours, Group(11, scale=scale))
    _, x_hat, clipped, _ = oracle.round_trip(form, x)
    fit, number, _ = fitted(form, x)
    step = fit.params.scale.astype(float)[number]
    error = np.abs(x.ravel().astype(float) - x_hat)
    # Quotient, product and sum are each off by 2^-24 of a value at most.
    slack = 4 * 2.0**-24 * (np.abs(x.ravel()) + step)
    free = ~clipped & (step > 0)
    assert (error[free] <= (step / 2 + slack)[free]).all()
    if name.startswith("sym") and scale == "float32":  # rounded down, a scale may not reach
        assert not clipped.any()


# Streams.

FEW = 8  # ranges for `mse` to try: eighty take as long as they are many


def cut_everywhere(form, x, cuts, limits):
    """Return the round trip with limits so small that every way through the code is taken."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAX_WHOLE_BLOCK", "PART", "BATCH", "SPAN"):
            patch.setattr(blocks, name, limits[name])
        patch.setattr(ranges, "BATCH", limits["BATCH"])
        patch.setattr(quantizer, "PART", limits["PART"])
        patch.setattr(ranges, "CANDIDATES", FEW)
        return oracle.round_trip(form, x, cuts)


STREAMED = {
    "asym4": (Asymmetric(4), AbsMax()),
    "sym4 mse": (Symmetric(4), Mse()),
    "asym4 p90": (Asymmetric(4), Percentile(p=90)),
    "nf4 p90": (NormalFloat4(4), Percentile(p=90)),
    "fp4": (Float(4, 2, 1, 6.0), AbsMax()),
    "fp6 mse": (Float(6, 3, 2, 28.0), Mse()),
    "log4": (Log(4), AbsMax()),
}


@st.composite
def streams(draw):
    """Draw a tensor, its blocks, cuts and limits."""
    shape = draw(st.sampled_from([(), (60,), (3, 50), (50, 3), (2, 130), (4, 6, 5), (3, 1, 2, 7)]))
    seed = draw(st.integers(0, 2**16))
    x = np.asarray(oracle.awkward(np.random.default_rng(seed), shape))
    axis = draw(st.sampled_from([0, 1, -1])) if len(shape) > 1 else 0
    block = draw(
        st.sampled_from(
            [PerTensor(), PerChannel(axis=axis), Group(7), Group(32), Group(1), Group(64)]
        )
    )
    cuts = draw(st.sets(st.integers(0, x.size), max_size=8))
    small = draw(st.sampled_from([0, 6, 40, 4096]))
    limits = {
        "MAX_WHOLE_BLOCK": small,
        "PART": draw(st.sampled_from([5, 16, 64, 2**16])),
        "BATCH": max(small, draw(st.sampled_from([1, 20, 100, 2**21]))),  # as it is by itself
        "SPAN": draw(st.sampled_from([1, 30, 2**18])),
    }
    return x, block, sorted(cuts), limits


@pytest.mark.parametrize("name", STREAMED)
@few
@given(streams())
def test_nothing_depends_on_where_a_stream_is_cut_or_on_the_limits(name, stream):
    x, block, cuts, limits = stream
    element, range_ = STREAMED[name]
    form = Format(element, block, range_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "CANDIDATES", FEW)
        *whole, scales_whole = oracle.round_trip(form, x)
    *parts, scales_parts = cut_everywhere(form, x, cuts, limits)
    for ours, theirs in zip(whole, parts, strict=True):
        assert np.array_equal(ours, theirs)
    assert scales_parts == scales_whole
    assert scales_whole.n == block.layout(x.shape).n_blocks


@pytest.mark.parametrize("name", ["mx/fp8_e4m3", "mx/int8", "nv/fp4"])
@few
@given(streams())
def test_nor_do_presets(name, stream):
    x, _, cuts, limits = stream
    *whole, scales_whole = oracle.round_trip(FORMATS[name], x)
    *parts, scales_parts = cut_everywhere(FORMATS[name], x, cuts, limits)
    for ours, theirs in zip(whole, parts, strict=True):
        assert np.array_equal(ours, theirs)
    assert scales_parts == scales_whole


def test_rows_longer_than_any_limit_are_cut_without_a_trace():
    x = np.random.default_rng(0).standard_normal((3, 70_001)).astype(np.float32)
    for block in (PerTensor(), PerChannel(), PerChannel(axis=1), Group(4097), Group(100)):
        form = Format(Asymmetric(6), block)
        cuts = [1, 4096, 65_536, 70_000, 70_002, 140_003, 200_000]
        *whole, found = oracle.round_trip(form, x)
        *parts, found_again = oracle.round_trip(form, x, cuts)
        assert found == found_again
        for ours, theirs in zip(whole, parts, strict=True):
            assert np.array_equal(ours, theirs)


# The real thing.


def onnx_round_trip(x, scale, zero_point, kind, **attributes):
    """Return the codes and values of onnxruntime's QuantizeLinear and DequantizeLinear."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["x", "s", "z"]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", names, ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x_hat"], **attributes),
            helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.FLOAT),
        ],
        "round_trip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("codes", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("x_hat", TensorProto.FLOAT, x.shape),
        ],
        [
            helper.make_tensor("s", TensorProto.FLOAT, scale.shape, scale.ravel()),
            helper.make_tensor("z", kind, zero_point.shape, zero_point.ravel()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("element", [Symmetric(8), Asymmetric(8)])
def test_onnx_runtime_agrees_per_axis(element, axis):
    from onnx import TensorProto

    x = np.asarray(oracle.awkward(np.random.default_rng(axis + 9), (6, 5, 14), 3.0))
    form = Format(element, PerChannel(axis=axis))
    codes, x_hat, _, _ = oracle.round_trip(form, x)
    params = fitted(form, x)[0].params
    their_codes, their_x_hat = onnx_round_trip(
        x, params.scale, params.zero_point, TensorProto.INT8, axis=axis
    )
    assert np.array_equal(codes, their_codes.ravel())
    assert np.array_equal(x_hat, their_x_hat.ravel())


@pytest.mark.parametrize("kind", ["INT8", "INT4"])
@pytest.mark.parametrize("mode", [Symmetric, Asymmetric])
@pytest.mark.parametrize("size", [16, 32])
def test_onnx_runtime_agrees_in_blocks(mode, size, kind):
    from onnx import TensorProto

    x = np.asarray(oracle.awkward(np.random.default_rng(size), (6, 96), 3.0))
    form = Format(mode(int(kind[-1])), Group(size))
    codes, x_hat, _, _ = oracle.round_trip(form, x)
    params = fitted(form, x)[0].params
    scale, zero_point = (np.reshape(each, (6, -1)) for each in params[:2])
    their_codes, their_x_hat = onnx_round_trip(
        x, scale, zero_point, getattr(TensorProto, kind), axis=1, block_size=size
    )
    assert np.array_equal(codes, their_codes.ravel())
    assert np.array_equal(x_hat, their_x_hat.ravel())


@pytest.mark.parametrize(
    ("name", "kind"), [("fp8_e4m3", "FLOAT8E4M3FN"), ("fp8_e5m2", "FLOAT8E5M2")]
)
def test_onnx_runtime_agrees_on_float8_per_axis(name, kind):
    from onnx import TensorProto

    x = np.asarray(oracle.awkward(np.random.default_rng(2), (6, 60), 3.0))
    form = Format(oracle.ELEMENTS[name][0], PerChannel())
    _, x_hat, _, _ = oracle.round_trip(form, x)
    scale = fitted(form, x)[0].params.scale
    zeros = np.zeros(scale.shape)
    _, their_x_hat = onnx_round_trip(x, scale, zeros, getattr(TensorProto, kind), axis=0)
    assert np.array_equal(x_hat, their_x_hat.ravel())


def ggml_q8_0(x):
    """Return gguf's scales, codes and values of Q8_0."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(x, kind)
    stored = packed.reshape(-1, 34)
    scale = stored[:, :2].copy().view(np.float16).astype(np.float32).ravel()
    return scale, stored[:, 2:].view(np.int8).ravel(), gguf.quants.dequantize(packed, kind).ravel()


Q8_0 = Format(Symmetric(8), Group(32, scale="float16"))


def test_ggml_q8_0_is_eight_bits_in_groups_of_32_with_float16_scales():
    # Where the scale is exact in float16 and nothing lies half-way, the rules coincide.
    rng = np.random.default_rng(4)
    scale = rng.uniform(0.001, 8, (12, 3, 1)).astype(np.float16).astype(np.float32)
    x = (rng.uniform(-127.4, 127.4, (12, 3, 32)).round(1) + 0.03) * scale
    x[..., 0] = 127 * scale[..., 0]
    x[..., 1:] = np.clip(x[..., 1:], -126 * scale, 126 * scale)
    x = x.reshape(12, 96).astype(np.float32)
    their_scale, their_codes, their_x_hat = ggml_q8_0(x)
    codes, x_hat, _, _ = oracle.round_trip(Q8_0, x)
    assert np.array_equal(their_scale, fitted(Q8_0, x)[0].params.scale)
    assert np.array_equal(codes, their_codes)
    assert np.array_equal(x_hat, their_x_hat)


def test_ggml_q8_0_is_within_a_code_of_ours_elsewhere():
    # It takes the codes with the scale before it is rounded to float16, and halves away from zero;
    # we take them with the one that is stored. The scales themselves agree: float32(absmax / 127)
    # and then float16 rounds twice where we round once, which differs in no block here.
    x = np.random.default_rng(5).standard_normal((40, 96)).astype(np.float32)
    x[3, :32] = 0
    their_scale, their_codes, their_x_hat = ggml_q8_0(x)
    codes, x_hat, _, _ = oracle.round_trip(Q8_0, x)
    scale = fitted(Q8_0, x)[0].params.scale.copy()
    scale[9] = 0  # all zeros: ours stores 1, ggml 0
    assert np.array_equal(their_scale, scale)
    apart = np.abs(codes.astype(int) - their_codes)
    assert apart.max() == 1
    assert np.mean(apart) < 0.05
    error = np.abs(x_hat.astype(float) - their_x_hat)
    assert (error <= np.repeat(scale, 32) * 1.0001).all()
    ours, theirs = (np.square(each - x.ravel()).sum() for each in (x_hat, their_x_hat))
    assert ours <= theirs  # a code that knows its own scale cannot be worse, but for saturation


# What is stored.


@pytest.mark.parametrize(
    ("form", "shape", "bits"),
    [
        (Format(Symmetric(8)), (10,), 80 + 32),
        (Format(Symmetric(8)), (), 8 + 32),
        (Format(Asymmetric(8)), (10,), 80 + 32 + 8),
        (Format(Asymmetric(8, "clip")), (10,), 80 + 32 + 8),
        (Format(Asymmetric(8, "wide_int")), (10,), 80 + 32 + 32),
        (Format(Asymmetric(4), Group(32, scale="float16")), (2, 64), 4 * 128 + 4 * (16 + 4)),
        (Format(Symmetric(4), Group(32, scale="float16")), (2, 64), 4 * 128 + 4 * 16),
        (Format(Symmetric(4), Group(32, scale="bfloat16")), (2, 65), 4 * 130 + 6 * 16),
        (Format(Symmetric(6), PerChannel()), (3, 5, 7), 6 * 105 + 3 * 32),
        (Format(Symmetric(6), PerChannel(axis=1)), (3, 5, 7), 6 * 105 + 5 * 32),
        (Format(Symmetric(6), PerChannel(axis=-1)), (3, 5, 7), 6 * 105 + 7 * 32),
        (Format(NormalFloat4(4), Group(64)), (2, 64), 4 * 128 + 2 * 32),
        (Format(Float(8, 4, 3, 448.0)), (9,), 72 + 32),
        (Format(Log(5), Group(8)), (2, 12), 5 * 24 + 4 * 64),
        (FORMATS["mx/fp8_e4m3"], (2, 40), 8 * 80 + 4 * 8),
        (FORMATS["mx/int8"], (2, 32), 8 * 64 + 2 * 8),
        (FORMATS["nv/fp4"], (2, 40), 4 * 80 + 6 * 8 + 32),
    ],
)
def test_bits_per_value_are_all_that_a_packer_would_write(form, shape, bits):
    layout = form.block.layout(shape)
    assert form.bits_per_value(layout) * math.prod(shape) == pytest.approx(bits, rel=1e-12)


def test_bits_per_value_of_q8_0_are_those_of_ggml():
    import gguf

    size, stored = gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0]
    assert Q8_0.bits_per_value(Q8_0.block.layout((4, 64))) == 8 * stored / size


def test_the_format_describes_itself():
    assert Format(Symmetric(4), Group(7, scale="float16"), Mse()).columns() == {
        "block": "group",
        "block_size": 7,
        "scale_dtype": "float16",
        "range": "mse",
    }
    assert FORMATS["nv/fp4"].columns()["scale_dtype"] == "float8_e4m3"
    assert Format(Log(4)).columns()["range"] is None


# Errors.


def test_an_unknown_scale_type_is_refused_when_the_format_is_made():
    message = r"^block\.scale must be one of float32, float16, bfloat16, got 'int8'$"
    with pytest.raises(ValueError, match=message):
        Format(Symmetric(8), Group(scale="int8"))


@pytest.mark.parametrize("range_", [Mse(), Percentile()])
def test_log_takes_no_range(range_):
    message = rf"^range={range_.name} does not go with mode=log: leave it out$"
    with pytest.raises(ValueError, match=message):
        Format(Log(8), PerTensor(), range_)


@pytest.mark.parametrize("scale", ["float16", "bfloat16"])
def test_log_takes_no_other_storage(scale):
    message = rf"^block\.scale={scale} does not go with mode=log, .*: leave it out$"
    with pytest.raises(ValueError, match=message):
        Format(Log(8), PerTensor(scale=scale))


# A quantizer of somebody's own.


class Own:
    n_bits = 6

    def choose(self, lo, hi):
        return Asymmetric(6).choose(lo, hi)


@pytest.mark.parametrize("scale", ["float32", "bfloat16"])
def test_a_quantizer_that_only_chooses_is_an_element(scale):
    x = np.asarray(oracle.awkward(np.random.default_rng(0), (5, 40)))
    element = as_element(Own())
    assert isinstance(element, Uniform)
    block = Group(16, scale=scale)
    own = oracle.round_trip(Format(element, block), x)
    assert Format(element, block).n_bits == 6
    if scale == "float32":
        for ours, theirs in zip(
            own, oracle.round_trip(Format(Asymmetric(6), block), x), strict=True
        ):
            assert np.array_equal(ours, theirs)
    stored = scales.FLOAT_TYPES[scale].store(own[3].largest).scale
    assert stored == own[3].largest
