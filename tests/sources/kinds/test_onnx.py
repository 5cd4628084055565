import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantType, quantize_dynamic

from quantlab.sources.kinds.onnx import kind_bits
from quantlab.sources.onnx import OnnxFile
from tests.sources.kinds.samples import decoded
from tests.sources.onnx_samples import (
    RANGES,
    SCALES,
    check,
    constant,
    external,
    linear,
    model,
    only_tensor,
    run,
    save_model,
    saved,
    scale,
    values,
)
from tests.sources.samples import RNG, X


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.__name__)
@pytest.mark.parametrize("kind", RANGES)
def test_one_scale(tmp_path, kind, scale, zero, raw):
    parts = [
        constant("w_quantized", kind, values(kind, (5, 7)), raw=raw),
        numpy_helper.from_array(scale(0.037), "s"),
        constant("z", kind, values(kind, ()), raw=raw),
    ]
    check(tmp_path, linear(n=2 + zero), *parts[: 2 + zero], kind=scale)


SHAPES = [((5, 7), 0), ((5, 7), 1), ((5, 7), -1), ((3, 5, 7), 1), ((2, 3, 5, 7), -3), ((9,), 0)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.__name__)
@pytest.mark.parametrize("kind", ["INT8", "UINT16", "UINT4"])
def test_a_scale_each_index_of_an_axis(tmp_path, shape, axis, kind, scale, zero):
    parts = [
        constant("w_quantized", kind, values(kind, shape)),
        numpy_helper.from_array(RNG.random(shape[axis]).astype(scale), "s"),
        constant("z", kind, values(kind, shape[axis])),
    ]
    check(tmp_path, linear(n=2 + zero, axis=axis), *parts[: 2 + zero], kind=scale)


def test_the_axis_is_1_unless_it_is_said(tmp_path):
    parts = [
        constant("w_quantized", "INT8", values("INT8", (5, 7))),
        numpy_helper.from_array(RNG.random(7).astype(np.float32), "s"),
    ]
    check(tmp_path, linear(n=2), *parts)


@pytest.mark.parametrize(("shape", "axis"), [((8, 20), 0), ((8, 20), 1), ((3, 8, 5), -2)])
@pytest.mark.parametrize("block", [4, 6, 32])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.__name__)
@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT8", "UINT8"])
def test_a_scale_each_block_of_which_the_last_may_be_short(
    tmp_path, shape, axis, block, kind, scale, zero
):
    blocks = list(shape)
    blocks[axis] = -(-shape[axis] // block)
    parts = [
        constant("w_quantized", kind, values(kind, shape)),
        numpy_helper.from_array(RNG.random(blocks).astype(scale), "s"),
        constant("z", kind, values(kind, blocks)),
    ]
    check(tmp_path, linear(n=2 + zero, axis=axis, block_size=block), *parts[: 2 + zero], kind=scale)


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_codes_that_are_floats(tmp_path, kind):
    dtype = getattr(ml_dtypes, f"float8_{kind[6:].lower()}")
    codes = numpy_helper.from_array(X.astype(dtype), "w_quantized")
    check(tmp_path, linear(n=2), codes, numpy_helper.from_array(np.float32(0.37), "s"))


def test_codes_of_32_bits(tmp_path):
    codes = numpy_helper.from_array(RNG.integers(-(2**31), 2**31, (5, 7), np.int32), "w_quantized")
    check(tmp_path, linear(n=2), codes, numpy_helper.from_array(np.float32(0.37), "s"))


def test_codes_in_a_file_beside_the_model(tmp_path):
    codes = values("UINT8", (5, 7)).astype(np.uint8)
    (tmp_path / "w.data").write_bytes(bytes(3) + codes.tobytes())
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    made = model(
        linear(n=2), [external("w_quantized", [5, 7], "w.data", TensorProto.UINT8, offset=3), scale]
    )
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    inline = model(linear(n=2), [numpy_helper.from_array(codes, "w_quantized"), scale])
    np.testing.assert_array_equal(decoded(tensor), run(inline))


@pytest.mark.parametrize("shared", ["s", "z"])
def test_weights_may_share_a_scale_or_a_zero_point(tmp_path, shared):
    made = [
        constant(name, "INT8", values("INT8", (5, 7))) for name in ("a_quantized", "b_quantized")
    ]
    made += [numpy_helper.from_array(np.float32(n), f"s{n}") for n in (1, 2)]
    made += [constant(f"z{n}", "INT8", np.array(n)) for n in (1, 2)]
    nodes = []
    for n, name in enumerate("ab", 1):
        parts = {"s": f"s{n}", "z": f"z{n}"} | {shared: f"{shared}1"}
        inputs = [f"{name}_quantized", parts["s"], parts["z"]]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name]))
    graph = helper.make_graph(nodes, "g", [], [], made)
    found = OnnxFile(save_model(tmp_path / "m.onnx", helper.make_model(graph))).tensors
    assert set(found) >= {"a", "b"}
    assert not {"a_quantized", "b_quantized"} & set(found)


def test_a_weight_of_two_nodes_is_one(tmp_path):
    made = [
        constant("w_quantized", "INT8", values("INT8", (5, 7))),
        numpy_helper.from_array(np.float32(2), "s"),
        numpy_helper.from_array(X, "norm"),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["w_quantized", "s"], [out]) for out in "ab"]
    graph = helper.make_graph(nodes, "g", [], [], made)
    found = OnnxFile(save_model(tmp_path / "m.onnx", helper.make_model(graph))).tensors
    assert set(found) == {"w", "norm"}
    np.testing.assert_array_equal(decoded(found["norm"]), X)


SIZES = [(64, 5, 32), (72, 3, 32), (40, 4, 16), (16, 1, 16), (130, 3, 128)]


def n_bits(inputs, outputs, block, bits, zero, kind=np.float32, order=None):
    """Return the model of a MatMulNBits of random words."""
    blocks, octet = -(-inputs // block), np.uint8
    codes = RNG.integers(0, 256, (outputs, blocks, block * bits // 8), octet)
    parts = [
        numpy_helper.from_array(codes, "w_Q4"),
        numpy_helper.from_array(RNG.random(outputs * blocks).astype(kind), "s"),
    ]
    if zero == "codes":
        zeros = RNG.integers(0, 256, outputs * -(-blocks * bits // 8), octet)
        parts.append(numpy_helper.from_array(zeros, "z"))
    if zero == "floats":
        zeros = (RNG.random(outputs * blocks) * 2**bits).astype(kind)
        parts.append(numpy_helper.from_array(zeros, "z"))
    names = ["x", *(part.name for part in parts)]
    if order is not None:
        parts.append(numpy_helper.from_array(order, "g_idx"))
        names += [""] * (4 - len(names)) + ["g_idx"]
    node = helper.make_node(
        "MatMulNBits", names, ["y"], domain="com.microsoft", K=inputs, N=outputs, bits=bits,
        block_size=block,
    )  # fmt: skip
    x = helper.make_tensor_value_info("x", SCALES[kind], [None, inputs])
    return model(node, parts, [x], kind=SCALES[kind])


@pytest.mark.parametrize(
    ("bits", "zero"),
    [(2, "none"), (4, "none"), (8, "none"), (2, "codes"), (4, "codes"), (8, "codes"), (2, "floats"),
     (4, "floats")],
)  # fmt: skip
@pytest.mark.parametrize("kind", SCALES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("inputs", "outputs", "block"), SIZES)
def test_matmul_n_bits(tmp_path, inputs, outputs, block, bits, zero, kind):
    made = n_bits(inputs, outputs, block, bits, zero, kind)
    y = run(made, x=np.eye(inputs, dtype=kind)).astype(np.float32)
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    assert tensor.name == "w"
    np.testing.assert_array_equal(decoded(tensor), y, strict=True)
    which = RNG.permutation(inputs)[:7]
    np.testing.assert_array_equal(tensor.decode_rows(which), y[which])


@pytest.mark.parametrize("zero", ["none", "codes"])
def test_groups_of_matmul_n_bits_in_another_order(tmp_path, zero):
    order = RNG.permutation(np.arange(64, dtype=np.int32) // 32)
    made = n_bits(64, 5, 32, 4, zero, order=order)
    y = run(made, x=np.eye(64, dtype=np.float32))
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    if tensor.fault is None:
        np.testing.assert_array_equal(decoded(tensor), y, strict=True)
    assert tensor.fault is None or "g_idx" in tensor.fault


@pytest.mark.parametrize("kind", ["INT8", "UINT8"])
@pytest.mark.parametrize("scales", [(), (7,)])
def test_matmul_integer(tmp_path, kind, scales):
    codes = constant("w_quantized", kind, values(kind, (5, 7)))
    scale = numpy_helper.from_array(RNG.random(scales).astype(np.float32), "w_scale")
    zero = constant("w_zero_point", kind, values(kind, scales))
    names = ["x_quantized", "w_quantized", "x_zero_point", "w_zero_point"]
    node = helper.make_node("MatMulInteger", names, ["y"])
    tensor = only_tensor(saved(tmp_path / "m.onnx", node, codes, scale, zero))
    y = run(
        model(
            helper.make_node(
                "DequantizeLinear", ["w_quantized", "w_scale", "w_zero_point"], ["y"], axis=-1
            ),
            [codes, scale, zero],
        )
    )
    assert tensor.name == "w"
    np.testing.assert_array_equal(decoded(tensor), y, strict=True)


CODES = numpy_helper.from_array(values("UINT8", (5, 7)).astype(np.uint8), "w_quantized")
FLAT = {
    "no scale": (linear(n=1), [], "has no scale"),
    "a scale that is computed": (linear(n=2), [], "has no scale"),
    "scales of another axis": (linear(n=2, axis=0), [scale(7)], "has scales of [7] for axis 0"),
    "an axis beyond": (linear(n=2, axis=2), [scale(7)], "has an axis 2"),
    "an axis below": (linear(n=2, axis=-3), [scale(7)], "has an axis -3"),
    "an axis of text": (linear(n=2, axis="a"), [scale(7)], "axis"),
    "an axis in halves": (linear(n=2, axis=0.5), [scale(7)], "axis"),
    "an axis that is a list": (linear(n=2, axis=[1]), [scale(7)], "axis"),
    "scales of two dimensions": (linear(n=2), [scale(5, 7)], "has scales of [5, 7]"),
    "no scale in it": (linear(n=2), [scale(0)], "has scales of [0]"),
    "blocks that do not fit": (
        linear(n=2, block_size=3),
        [scale(5, 2)],
        "has scales of [5, 2], where [5, 3] fit",
    ),
    "blocks below 0": (linear(n=2, block_size=-7), [scale(5, 1)], "block"),
    "blocks in halves": (linear(n=2, block_size=3.5), [scale(5, 2)], "block"),
    "blocks of text": (linear(n=2, block_size="a"), [scale(5, 2)], "block"),
    "scales of integers": (linear(n=2), [scale(7, kind=np.int64)], "int64"),
    "scales of text": (
        linear(n=2),
        [numpy_helper.from_array(np.array("a", object), "s")],
        "string",
    ),
    "zero points of others": (
        linear(),
        [scale(7), numpy_helper.from_array(np.zeros(5, np.uint8), "z")],
        "[5]",
    ),
    "zero points of floats": (
        linear(),
        [scale(7), numpy_helper.from_array(np.full(7, np.nan, np.float32), "z")],
        "float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("node", "parts", "why"), FLAT.values(), ids=FLAT)
def test_parts_that_do_not_fit_are_a_fault(tmp_path, node, parts, why):
    norm = numpy_helper.from_array(X, "norm")
    found = dict(OnnxFile(saved(tmp_path / "m.onnx", node, CODES, norm, *parts)).tensors)
    np.testing.assert_array_equal(decoded(found["norm"]), X)
    assert why in found["w"].fault
    assert found["w"].fault.isprintable()


@pytest.mark.parametrize("kind", ["string", "bool", "complex64", "int64", "float32", "float64"])
def test_codes_of_a_type_that_holds_none_are_a_fault(tmp_path, kind):
    array = np.full((5, 7), "a", object) if kind == "string" else np.ones((5, 7), kind)
    codes = numpy_helper.from_array(array, "w_quantized")
    found = OnnxFile(saved(tmp_path / "m.onnx", linear(n=2), codes, scale())).tensors
    assert found["w"].fault == f"has codes of {kind}, which makes no sense"


def broken(**changes):
    """Return a MatMulNBits whose attributes lie."""
    said = {"K": 8, "N": 2, "bits": 4, "block_size": 16} | changes
    said = {key: value for key, value in said.items() if value is not None}
    return helper.make_node("MatMulNBits", ["x", "w_quantized", "s", "z"], ["y"], **said)


def octets(*shape, kind=np.uint8, name="w_quantized"):
    return numpy_helper.from_array(np.ones(shape, kind), name)


NIBBLES = {
    "no K": (broken(K=None), octets(2, 1, 8), [scale(2)]),
    "K of 0": (broken(K=0), octets(2, 1, 8), [scale(2)]),
    "N below 0": (broken(N=-2), octets(2, 1, 8), [scale(2)]),
    "K in halves": (broken(K=8.0), octets(2, 1, 8), [scale(2)]),
    "K of text": (broken(K="8"), octets(2, 1, 8), [scale(2)]),
    "a huge K": (broken(K=2**62), octets(2, 1, 8), [scale(2)]),
    "a huge block": (broken(block_size=2**62), octets(2, 1, 8), [scale(2)]),
    "3 bits": (broken(bits=3), octets(2, 1, 8), [scale(2)]),
    "another N": (broken(N=3), octets(2, 1, 8), [scale(2)]),
    "no scale": (broken(), octets(2, 1, 8), []),
    "scales of another size": (broken(), octets(2, 1, 8), [scale(3)]),
    "zero points of another size": (
        broken(),
        octets(2, 1, 8),
        [scale(2), octets(3, name="z")],
    ),
    "floats as zero points of another size": (
        broken(),
        octets(2, 1, 8),
        [scale(2), octets(3, kind=np.float32, name="z")],
    ),
    "codes of floats": (broken(), octets(2, 1, 8, kind=np.float32), [scale(2)]),
    "codes of words": (broken(), octets(2, 1, 8, kind=np.int32), [scale(2)]),
    "a block that ends within a byte": (
        broken(K=3, N=1, block_size=3),
        octets(1, 1, 1),
        [scale(1)],
    ),
    "blocks that end within a byte": (
        broken(K=3, N=2, block_size=3),
        octets(2, 1, 2),
        [scale(2)],
    ),
}


@pytest.mark.parametrize(("node", "codes", "parts"), NIBBLES.values(), ids=NIBBLES)
def test_a_matmul_n_bits_that_does_not_fit_is_a_fault(tmp_path, node, codes, parts):
    (tensor,) = OnnxFile(saved(tmp_path / "m.onnx", node, codes, *parts)).tensors.values()
    assert tensor.find_fault()
    assert tensor.find_fault().isprintable()


QUANTIZED = ["INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2"]
SPREADS = {
    "one scale": ((), {}),
    "per channel": ((7,), {"axis": 1}),
    "blocks": ((3, 7), {"axis": 0, "block_size": 2}),
}


@pytest.mark.parametrize("scale_kind", SCALES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("kind", QUANTIZED)
def test_floats_that_are_quantized_when_the_model_runs(tmp_path, kind, spread, scale_kind):
    scales, about = SPREADS[spread]
    floats = (RNG.standard_normal((5, 7)) * 40).astype(scale_kind)
    is_float = kind.startswith("FLOAT")
    if is_float and spread == "blocks":
        pytest.skip("the oracle, ONNX Runtime, has no kernel for blocks of float8")
    zeros = np.zeros(scales) if is_float or kind.startswith("INT") else values(kind, scales) // 2
    step = {4: 9, 8: 0.4, 16: 0.002}[8 if is_float else int(kind[-2:].strip("T"))]
    parts = [
        numpy_helper.from_array(floats, "kernel"),
        numpy_helper.from_array(np.asarray(step * (1 + RNG.random(scales)), scale_kind), "s"),
        constant("z", kind, zeros),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["kernel", "s", "z"], ["q"], **about),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **about),
    ]
    made = model(nodes, parts, kind=SCALES[scale_kind])
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    assert (tensor.name, tensor.shape, tensor.fault) == ("kernel", (5, 7), None)
    np.testing.assert_array_equal(decoded(tensor), run(made).astype(np.float32), strict=True)
    name = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind)).name
    sharing = "blocks of 2" if spread == "blocks" else spread
    assert tensor.dtype == f"{name}, {sharing}, stored as {np.dtype(scale_kind).name}"
    n_scales, width = max(int(np.prod(scales)), 1), kind_bits(name)
    zero_bytes = -(-n_scales * width // 8)
    assert tensor.bits == 35 * width + n_scales * 8 * np.dtype(scale_kind).itemsize + 8 * zero_bytes


def fp4_model(w, axis, block):
    """Write codes of FLOAT4E2M1 whose scales are FLOAT8E4M3FN times one float; return W as well."""
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    blocks = np.moveaxis(w, axis, -1)
    blocks = blocks.reshape(*blocks.shape[:-1], -1, block)
    whole = np.float32(np.abs(w).max() / (6 * 448))
    scale = (np.abs(blocks).max(-1) / 6 / whole).astype(ml_dtypes.float8_e4m3fn)
    step = (scale.astype(np.float32) * whole)[..., None]
    nearest = np.abs(np.abs(blocks / step)[..., None] - grid).argmin(-1)
    values = np.copysign(grid[nearest], blocks).astype(np.float32)
    shape = np.moveaxis(w, axis, -1).shape
    expected = np.moveaxis((values * step).reshape(shape), -1, axis)
    codes = np.moveaxis((nearest + 8 * np.signbit(blocks)).reshape(shape), -1, axis)
    codes = codes.astype(np.uint8).reshape(-1)
    packed = (codes[::2] | codes[1::2] << 4).tobytes()
    parts = [
        TensorProto(
            name="kernel_f4", data_type=TensorProto.FLOAT4E2M1, dims=w.shape, raw_data=packed
        ),
        numpy_helper.from_array(
            np.ascontiguousarray(np.moveaxis(scale, -1, axis)), "kernel_f8_scale"
        ),
        numpy_helper.from_array(whole, "kernel_f8_scale_f32_scale"),
    ]
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["kernel_f8_scale", "kernel_f8_scale_f32_scale"], ["steps"]
        ),
        helper.make_node(
            "DequantizeLinear", ["kernel_f4", "steps"], ["y"], axis=axis, block_size=block
        ),
    ]
    return model(nodes, parts), expected


@pytest.mark.parametrize(
    ("shape", "axis", "block"), [((48, 10), 0, 16), ((6, 64), -1, 32), ((2, 8, 6), 1, 4)]
)
def test_float4_whose_scales_are_dequantized_themselves(tmp_path, shape, axis, block):
    w = (RNG.standard_normal(shape) / 50).astype(np.float32)
    made, expected = fp4_model(w, axis, block)
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    assert (tensor.name, tensor.fault) == ("kernel", None)
    assert tensor.dtype == f"float4_e2m1fn, blocks of {block}"
    assert tensor.bits == 4 * w.size + 8 * w.size // block + 32
    np.testing.assert_array_equal(decoded(tensor), expected, strict=True)
    (y,) = ReferenceEvaluator(made).run(None, {})  # ONNX Runtime has no kernel for it
    np.testing.assert_array_equal(y, expected)
    rows = RNG.permutation(int(np.prod(shape[:-1])))[:5]
    np.testing.assert_array_equal(tensor.decode_rows(rows), expected.reshape(-1, shape[-1])[rows])


def test_scales_that_are_powers_of_two(tmp_path):
    codes, exponents = values("INT8", (6, 64)).astype(np.int8), RNG.integers(120, 134, (6, 2))
    parts = [
        numpy_helper.from_array(codes, "w_quantized"),
        constant("s", "FLOAT8E8M0", 2.0 ** (exponents - 127)),
    ]
    node = linear(n=2, axis=1, block_size=32, output_dtype=TensorProto.FLOAT)
    tensor = only_tensor(saved(tmp_path / "m.onnx", node, *parts))
    expected = codes * np.repeat(2.0 ** (exponents - 127), 32, axis=1)
    np.testing.assert_array_equal(decoded(tensor), expected.astype(np.float32), strict=True)
    assert tensor.bits == 8 * codes.size + 8 * exponents.size


def test_a_scale_that_is_computed_from_itself_is_a_fault(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["s", "t"], ["t"]),
        helper.make_node("DequantizeLinear", ["w_quantized", "t"], ["y"]),
    ]
    path = save_model(tmp_path / "m.onnx", model(nodes, [CODES, scale()]))
    assert only_tensor(path).fault == "has no scale that is constant"


@pytest.mark.parametrize("kind", ["INT8", "UINT8"])
@pytest.mark.parametrize("scales", [(), (4,)])
def test_qlinear_conv(tmp_path, kind, scales):
    codes = values(kind, (4, 3, 1, 1))
    step = (1 + RNG.random(scales)).astype(np.float32)
    zero = values(kind, ()) if kind == "UINT8" else np.zeros(scales)
    zero = np.broadcast_to(zero, scales)
    parts = [
        constant("x_scale", "FLOAT", np.float32(1)), constant("x_zero_point", "UINT8", np.array(0)),
        constant("k_quantized", kind, codes), constant("k_scale", "FLOAT", step),
        constant("k_zero_point", kind, zero),
        constant("y_scale", "FLOAT", np.float32(3)), constant("y_zero", "UINT8", np.array(128)),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [3, 3, 1, 1])
    node = helper.make_node("QLinearConv", ["x", *(part.name for part in parts)], ["y"])
    made = model(node, parts, [x], kind=TensorProto.UINT8)
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    expected = (codes - zero.reshape(-1, *[1] * 3)) * step.reshape(-1, *[1] * 3)
    assert (tensor.name, tensor.fault) == ("k", None)
    np.testing.assert_array_equal(decoded(tensor), expected.astype(np.float32), strict=True)
    y = run(made, x=np.eye(3, dtype=np.uint8).reshape(3, 3, 1, 1))  # a column of the kernel each
    computed = (y.astype(np.float32) - 128) * 3
    np.testing.assert_allclose(
        np.clip(expected[:, :, 0, 0].T, -384, 381), computed[:, :, 0, 0], atol=1.51
    )


@pytest.mark.parametrize("scales", [(), (7,)])
@pytest.mark.parametrize("kind", ["INT8", "UINT8"])
def test_qlinear_matmul(tmp_path, kind, scales):
    codes = values(kind, (5, 7))
    step = (1 + RNG.random(scales)).astype(np.float32)
    zero = values(kind, scales) if kind == "UINT8" else np.zeros(scales)
    parts = [
        constant("x_scale", "FLOAT", np.float32(1)), constant("x_zero_point", "UINT8", np.array(0)),
        constant("k_quantized", kind, codes), constant("k_scale", "FLOAT", step),
        constant("k_zero_point", kind, zero),
        constant("y_scale", "FLOAT", np.float32(4)), constant("y_zero", "UINT8", np.array(128)),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [5, 5])
    node = helper.make_node("QLinearMatMul", ["x", *(part.name for part in parts)], ["y"])
    made = model(node, parts, [x], kind=TensorProto.UINT8)
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    expected = (codes - zero) * step
    assert (tensor.name, tensor.fault) == ("k", None)
    np.testing.assert_array_equal(decoded(tensor), expected.astype(np.float32), strict=True)
    y = run(made, x=np.eye(5, dtype=np.uint8))
    computed = (y.astype(np.float32) - 128) * 4
    np.testing.assert_allclose(np.clip(expected, -512, 508), computed, atol=2.01)


def test_qlinear_matmul_of_several_matrices(tmp_path):
    codes = values("INT8", (3, 5, 7))
    step = (1 + RNG.random((3, 1, 7))).astype(np.float32)
    parts = [
        constant("k_quantized", "INT8", codes), constant("k_scale", "FLOAT", step),
        constant("k_zero_point", "INT8", np.zeros((3, 1, 7))),
    ]  # fmt: skip
    names = ["x", "xs", "xz", *(part.name for part in parts), "ys", "yz"]
    tensor = only_tensor(
        saved(tmp_path / "m.onnx", helper.make_node("QLinearMatMul", names, ["y"]), *parts)
    )
    np.testing.assert_array_equal(decoded(tensor), (codes * step).astype(np.float32))


@pytest.mark.parametrize("transposed", [0, 1])
def test_qgemm_has_a_scale_each_output(tmp_path, transposed):
    codes, step = values("INT8", (5, 7)), (1 + RNG.random((7, 5)[transposed])).astype(np.float32)
    parts = [constant("k_quantized", "INT8", codes), constant("k_scale", "FLOAT", step)]
    names = ["x", "xs", "xz", "k_quantized", "k_scale"]
    node = helper.make_node("QGemm", names, ["y"], domain="com.microsoft", transB=transposed)
    expected = codes * (step[:, None] if transposed else step)
    tensor = only_tensor(saved(tmp_path / "m.onnx", node, *parts))
    np.testing.assert_array_equal(decoded(tensor), expected.astype(np.float32))


def lstm(inputs, hidden, directions):
    """Return the node of an LSTM, its random weights by their names, and its input."""
    rng = np.random.default_rng(0)
    arrays = {
        "gates": rng.standard_normal((directions, 4 * hidden, inputs)),
        "memory": rng.standard_normal((directions, 4 * hidden, hidden)),
        "bias": rng.standard_normal((directions, 8 * hidden)),
    }
    parts = {name: np.asarray(array / 4, np.float32) for name, array in arrays.items()}
    about = {"hidden_size": hidden, "direction": ("forward", "bidirectional")[directions - 1]}
    node = helper.make_node("LSTM", ["x", *parts], ["y"], **about)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [9, 1, inputs])
    return node, parts, x


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_dynamic_quantize_lstm_of_onnx_runtime(tmp_path, directions, per_channel):
    node, parts, x = lstm(6, 5, directions)
    made = model(
        node, [numpy_helper.from_array(array, name) for name, array in parts.items()], [x], opset=17
    )
    save_model(tmp_path / "x.onnx", made)
    quantize_dynamic(
        tmp_path / "x.onnx",
        tmp_path / "m.onnx",
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
    )
    quantized = onnx.load(tmp_path / "m.onnx")
    assert [node.op_type for node in quantized.graph.node] == ["DynamicQuantizeLSTM"]
    stored = {proto.name: numpy_helper.to_array(proto) for proto in quantized.graph.initializer}
    found = OnnxFile(str(tmp_path / "m.onnx")).tensors
    assert set(found) == {"gates", "memory", "bias"}
    for name in ("gates", "memory"):
        codes, step = stored[f"{name}_quantized"], stored[f"{name}_scale"]
        step = step.reshape(directions, -1) if per_channel else step.reshape(-1, 1)
        expected = np.swapaxes(codes * step[:, None], 1, 2).astype(np.float32)
        np.testing.assert_array_equal(decoded(found[name]), expected, strict=True)
        assert np.abs(expected - parts[name]).max() <= step.max() * 0.51
        assert found[name].bits == 8 * codes.size + 40 * step.size
    values = np.random.default_rng(1).standard_normal((9, 1, 6)).astype(np.float32)
    parts |= {name: decoded(found[name]) for name in ("gates", "memory")}
    again = model(
        node, [numpy_helper.from_array(array, name) for name, array in parts.items()], [x], opset=17
    )
    # ONNX Runtime rounds the activations to 8 bits as well.
    answers = run(again, x=values).ravel(), run(quantized, x=values).ravel()
    assert np.corrcoef(*answers)[0, 1] > 0.9


@pytest.mark.parametrize("kind", ["INT8", "UINT8"])
def test_dynamic_quantize_lstm_of_any_scales(tmp_path, kind):
    codes, step = values(kind, (2, 3, 20)), RNG.random((2, 20)).astype(np.float32)
    zero = values(kind, (2, 20))
    parts = [constant("a", kind, codes), constant("s", "FLOAT", step), constant("z", kind, zero)]
    names = ["x", "a", *[""] * 6, "s", "z"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", names, ["y"], domain="com.microsoft", hidden_size=5
    )
    tensor = only_tensor(saved(tmp_path / "m.onnx", node, *parts))
    expected = np.swapaxes((codes - zero[:, None]) * step[:, None], 1, 2).astype(np.float32)
    assert tensor.shape == (2, 20, 3)
    np.testing.assert_array_equal(decoded(tensor), expected)
    rows = RNG.permutation(40)[:7]
    np.testing.assert_array_equal(tensor.decode_rows(rows), expected.reshape(40, 3)[rows])


def test_codes_of_an_lstm_of_two_axes_are_a_fault(tmp_path):
    parts = [constant("a", "INT8", np.ones((3, 20))), constant("s", "FLOAT", np.ones(()))]
    node = helper.make_node("DynamicQuantizeLSTM", ["x", "a", *[""] * 6, "s"], ["y"])
    assert "[3, 20]" in only_tensor(saved(tmp_path / "m.onnx", node, *parts)).fault
