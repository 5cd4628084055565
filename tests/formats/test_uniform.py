import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from quantlab.formats.uniform import (
    Asymmetric,
    Params,
    Symmetric,
    code_range,
    dequantize,
    quantize,
    unclipped_codes,
    value_range,
)
from quantlab.sources.source import Hidden, TenseLogits, VerbProbs

FLOAT32 = np.finfo(np.float32)
EXTREMES = [FLOAT32.max, FLOAT32.min, FLOAT32.tiny, FLOAT32.smallest_subnormal, 0.0, -0.0]

elements = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.sampled_from(EXTREMES)
one_decade = st.floats(-1, 1, width=32)
tensors = arrays(np.float32, array_shapes(min_dims=0, max_dims=3), elements=elements) | arrays(
    np.float32, st.integers(1, 80), elements=one_decade
)
widths = st.integers(2, 16)
quantizers = st.builds(Symmetric, widths) | st.builds(Asymmetric, widths)


def f32(*values):
    return np.array(values, dtype=np.float32)


def round_trip(x, quantizer):
    params = quantizer.choose(*value_range(x))
    q = quantize(x, params, quantizer.n_bits)
    return params, q, dequantize(q, params)


@given(tensors, quantizers)
@example(np.array(FLOAT32.max), Asymmetric(8))
@example(f32(FLOAT32.min, FLOAT32.max), Asymmetric(8))
def test_laws_of_the_round_trip(x, quantizer):
    before = x.copy()
    params, q, x_hat = round_trip(x, quantizer)
    qmin, qmax = code_range(quantizer.n_bits)

    assert q.dtype == (np.int8 if quantizer.n_bits <= 8 else np.int16)
    assert x_hat.dtype == np.float32
    assert q.shape == x_hat.shape == x.shape
    assert q.min() >= qmin
    assert q.max() <= qmax
    assert np.isfinite(x_hat).all()
    assert x.tobytes() == before.tobytes()

    # |x - x_hat| <= s/2 in exact arithmetic. In float32, u = 2^-24: the scale, the quotient and the
    # product are each off by a factor 1 +- u at most, so each moves a value by u |q - z| s, and
    # |q - z| <= 2^n. Three of them, with a factor to spare for the terms in u^2: 4 u 2^n s.
    error = np.abs(x.astype(np.float64) - x_hat)
    scale = float(params.scale)
    assert error.max() <= scale / 2 + 4 * 2.0**-24 * 2**quantizer.n_bits * scale

    again = quantize(x_hat, params, quantizer.n_bits)
    assert np.array_equal(again, q)

    flat = np.argsort(x, axis=None)
    assert (np.diff(q.ravel()[flat].astype(int)) >= 0).all()
    assert quantize(f32(0), params, quantizer.n_bits)[0] == params.zero_point
    assert dequantize(quantize(f32(0), params, quantizer.n_bits), params)[0] == 0


@given(tensors, widths)
def test_symmetric_treats_both_signs_alike(x, n_bits):
    params, q, x_hat = round_trip(x, Symmetric(n_bits))
    mirrored, q_mirrored, x_hat_mirrored = round_trip(-x, Symmetric(n_bits))
    assert params == mirrored
    assert np.array_equal(q_mirrored, -q)
    assert np.array_equal(x_hat_mirrored, -x_hat)


@given(
    arrays(np.float32, st.integers(1, 50), elements=one_decade), quantizers, st.integers(-60, 60)
)
def test_a_power_of_two_changes_no_code(x, quantizer, power):
    assume(np.abs(x).max() > 1e-6)
    assume(np.abs(x)[x != 0].min() > 1e-15)
    params, q, _ = round_trip(x, quantizer)
    scaled, q_scaled, _ = round_trip(x * np.float32(2.0**power), quantizer)
    assert float(scaled.scale) == float(params.scale) * 2.0**power
    assert scaled.zero_point == params.zero_point
    assert np.array_equal(q, q_scaled)


@given(quantizers)
def test_every_code_is_a_fixed_point(quantizer):
    qmin, qmax = code_range(quantizer.n_bits)
    q = np.arange(qmin, qmax + 1).astype(np.int16 if quantizer.n_bits > 8 else np.int8)
    params = Params(np.float32(0.1), 3 if isinstance(quantizer, Asymmetric) else 0)
    if qmin <= params.zero_point <= qmax:
        assert np.array_equal(quantize(dequantize(q, params), params, quantizer.n_bits), q)


def onnx_scale(x, symmetric):
    from onnx import TensorProto
    from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType

    qmin, qmax = get_qmin_qmax_for_qType(TensorProto.INT8, symmetric=symmetric)
    zero_point, scale = compute_scale_zp(x.min(), x.max(), qmin, qmax, symmetric)
    return np.float32(scale), np.int8(zero_point)


@pytest.fixture(scope="module")
def onnx_session():
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["x", "s", "z"]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", names, ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x_hat"]),
        ],
        "round_trip",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("z", TensorProto.INT8, []),
        ],
        [
            helper.make_tensor_value_info("q", TensorProto.INT8, ["n"]),
            helper.make_tensor_value_info("x_hat", TensorProto.FLOAT, ["n"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def agree_with_onnx(onnx_session, x, quantizer):
    params, q, x_hat = round_trip(x, quantizer)
    scale, zero_point = onnx_scale(x, isinstance(quantizer, Symmetric))
    assert params.scale == scale
    assert params.zero_point == zero_point
    codes_agree_with_onnx(onnx_session, x, params, q, x_hat)


def codes_agree_with_onnx(onnx_session, x, params, q, x_hat):
    feed = {"x": x, "s": np.array(params.scale), "z": np.array(params.zero_point, np.int8)}
    theirs, theirs_hat = onnx_session.run(None, feed)
    assert np.array_equal(theirs, q)
    assert np.array_equal(theirs_hat, x_hat)


@pytest.mark.parametrize("quantizer", [Symmetric(8), Asymmetric(8)])
def test_onnx_runtime_agrees_on_the_labs_tensors(onnx_session, quantizer):
    sources = TenseLogits(42, None), VerbProbs(42, 600, 1.5), Hidden(42, 1024, 600)
    for source in sources:
        x = next(source.tensors()).array
        agree_with_onnx(onnx_session, x, quantizer)


@pytest.mark.parametrize("quantizer", [Symmetric(8), Asymmetric(8)])
def test_onnx_runtime_agrees_on_random_tensors_over_seven_decades(onnx_session, quantizer):
    rng = np.random.default_rng(0)
    for trial in range(400):
        spread, shift = 10.0 ** rng.uniform(-4, 3), rng.normal() * (trial % 3)
        x = (spread * (rng.standard_normal(rng.integers(1, 300)) + shift)).astype(np.float32)
        agree_with_onnx(onnx_session, x, quantizer)


@pytest.mark.parametrize("x", [f32(0, 0), f32(FLOAT32.tiny), f32(-1e-45, 1e-44), f32(3)])
@pytest.mark.parametrize("quantizer", [Symmetric(8), Asymmetric(8)])
def test_onnx_runtime_agrees_on_degenerate_tensors(onnx_session, quantizer, x):
    agree_with_onnx(onnx_session, x, quantizer)


@pytest.mark.parametrize("scale", [0.25, 0.7, 0.013])
@pytest.mark.parametrize("zero_point", [-128, -7, -6, 0, 1, 6, 127])
def test_onnx_runtime_agrees_on_ties(onnx_session, zero_point, scale):
    params = Params(np.float32(scale), zero_point)
    x = (np.arange(-300, 300).astype(np.float32) + np.float32(0.5)) * params.scale
    if scale == 0.25:  # each quotient is exact, and each rounds to even before z is added
        assert (unclipped_codes(x, params) % 2 == zero_point % 2).all()
    else:  # a multiplication by 1/s would miss some of these ties
        assert (np.rint(x * (1 / params.scale)) != np.rint(x / params.scale)).any()
    q = quantize(x, params, 8)
    codes_agree_with_onnx(onnx_session, x, params, q, dequantize(q, params))


def test_the_zero_point_policies_on_tense_logits():
    x = next(TenseLogits(42, None).tensors()).array
    cases = {"widen": (-128, 0.0063), "clip": (-128, 0.5), "wide_int": (-158, 0.0059)}
    for policy, (zero_point, max_err) in cases.items():
        params, _, x_hat = round_trip(x, Asymmetric(8, policy))
        assert params.zero_point == zero_point
        assert params.zero_point_clipped == (policy == "clip")
        assert np.abs(x - x_hat).max() == pytest.approx(max_err, rel=0.02)


def test_data_far_from_zero_wants_the_zero_point_whole():
    x = np.linspace(1024, 1030, 50, dtype=np.float32)
    assert round_trip(x, Asymmetric(8))[0].scale == pytest.approx(4.04, rel=1e-3)
    assert round_trip(x, Asymmetric(8, "wide_int"))[0].scale == pytest.approx(0.0235, rel=2e-3)


@pytest.mark.parametrize("policy", ["widen", "clip", "wide_int"])
@pytest.mark.parametrize("constant", [0.0, 1.0, -5.25, 300.25, 1e-42, FLOAT32.max])
def test_a_constant_has_a_defined_result(policy, constant):
    params, _, x_hat = round_trip(f32(constant, constant), Asymmetric(8, policy))
    assert np.isfinite(x_hat).all()
    assert params.scale > 0


@pytest.mark.parametrize("quantizer", [Symmetric(8), Asymmetric(8)])
def test_all_zeros_are_exact_and_flagged(quantizer):
    params, q, x_hat = round_trip(np.zeros((3, 4), np.float32), quantizer)
    assert params == (1, 0, True, False)
    assert not q.any()
    assert not x_hat.any()


@pytest.mark.parametrize("n_bits", [1, 17, 99, "abc", 8.0, True, None])
def test_a_bad_width_is_named(n_bits):
    with pytest.raises(ValueError, match=r"n_bits must be a whole number from 2 to 16, got"):
        code_range(n_bits)


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match=r"mode.zero_point must be widen, clip or wide_int, got"):
        Asymmetric(8, "floor")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_located(bad):
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = x[2, 0] = bad
    with pytest.raises(
        ValueError,
        match=r"'w' holds 2 NaN or Inf among its 12 values, .* at index \[1, 2\]: mend or drop",
    ):
        value_range(x, "w")


def test_an_empty_tensor_is_refused():
    with pytest.raises(ValueError, match=r"tensor 'w' is empty \(shape \(0, 3\)\)"):
        value_range(np.zeros((0, 3), np.float32), "w")


@pytest.mark.parametrize("policy", [None, "widen", "clip", "wide_int"])
@given(
    arrays(np.float32, st.integers(1, 30), elements=elements | one_decade),
    widths,
)
@example(f32(FLOAT32.min, FLOAT32.max), 8)  # x_hat would overflow
@example(f32(1e9, 1e9 + 64), 8)  # wide_int: a zero point of nine digits
@example(f32(-154.5, 100.5), 8)  # a tie at both ends: one code too many
def test_the_element_equals_the_plain_functions(policy, x, n_bits):
    quantizer = Asymmetric(n_bits, policy) if policy else Symmetric(n_bits)
    params = quantizer.choose(*value_range(x))
    codes, x_hat, clipped = quantizer.round_trip(x, params)
    plain = quantize(x, params, n_bits)
    assert codes.dtype == plain.dtype
    assert codes.tolist() == plain.tolist()
    assert x_hat.tolist() == dequantize(plain, params).tolist()
    assert quantizer.reconstruct(x, params).tolist() == x_hat.tolist()
    beyond = unclipped_codes(x, params) != plain
    assert beyond.tolist() == clipped.tolist() if beyond.any() else clipped is None
