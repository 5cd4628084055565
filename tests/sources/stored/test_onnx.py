"""ONNX weights in codes, against ONNX Runtime itself, bit for bit; and models that lie."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlab.experiment import Experiment
from quantlab.sources.onnx import Onnx
from quantlab.sources.stored.onnx import OnnxFile
from tests.sources.samples import RNG, X
from tests.sources.stored.samples import decoded
from tests.sources.test_onnx import external

SCALES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}
RANGES = {
    "INT8": (-128, 128), "UINT8": (0, 256), "INT16": (-(2**15), 2**15), "UINT16": (0, 2**16),
    "INT4": (-8, 8), "UINT4": (0, 16),
}  # fmt: skip


def values(kind, shape):
    return RNG.integers(*RANGES[kind], shape)


def constant(name, kind, array, *, raw=True):
    """Return an initializer of a kind by its name."""
    data_type = getattr(TensorProto, kind)
    if not raw:
        return helper.make_tensor(name, data_type, array.shape, array.ravel().tolist())
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    proto = numpy_helper.from_array(np.asarray(array).astype(dtype), name)
    assert proto.raw_data
    return proto


def model(node, initializers, inputs=(), kind=TensorProto.FLOAT, opset=23):
    y = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph([node], "g", list(inputs), [y], list(initializers))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save(path, made):
    path.write_bytes(made.SerializeToString())
    return str(path)


def saved(path, node, *initializers):
    return save(path, model(node, initializers))


def run(made, **inputs):
    """Return what ONNX Runtime computes on one thread, as the model says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return session.run(None, inputs)[0]


def one(path):
    (tensor,) = OnnxFile(path).tensors.values()
    return tensor


def linear(n=3, **about):
    """Return a DequantizeLinear of the first `n` of codes, scale and zero point."""
    inputs = ["w_quantized", "s", "z"][:n]
    return helper.make_node("DequantizeLinear", inputs, ["y"], **about)


def check(tmp_path, node, *initializers, kind=np.float32):
    """Require what the codes decode to, whole and in stretches, to be ONNX Runtime's."""
    made = model(node, initializers, kind=SCALES[kind])
    tensor = one(save(tmp_path / "m.onnx", made))
    assert tensor.fault is None
    assert tensor.name == "w"
    y = run(made).astype(np.float32)
    np.testing.assert_array_equal(decoded(tensor), y, strict=True)
    read = tensor.reader(tensor.rows)
    for start, stop in np.sort(RNG.integers(0, tensor.size + 1, (5, 2))):
        if start < stop:
            np.testing.assert_array_equal(read(start, stop), y.reshape(-1)[start:stop])


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
    tensor = one(save(tmp_path / "m.onnx", made))
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
    found = OnnxFile(save(tmp_path / "m.onnx", helper.make_model(graph))).tensors
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
    found = OnnxFile(save(tmp_path / "m.onnx", helper.make_model(graph))).tensors
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
    tensor = one(save(tmp_path / "m.onnx", made))
    assert tensor.name == "w"
    np.testing.assert_array_equal(decoded(tensor), y, strict=True)
    which = RNG.permutation(inputs)[:7]
    np.testing.assert_array_equal(tensor.rows(which), y[which])


@pytest.mark.parametrize("zero", ["none", "codes"])
def test_groups_of_matmul_n_bits_in_another_order(tmp_path, zero):
    order = RNG.permutation(np.arange(64, dtype=np.int32) // 32)
    made = n_bits(64, 5, 32, 4, zero, order=order)
    y = run(made, x=np.eye(64, dtype=np.float32))
    tensor = one(save(tmp_path / "m.onnx", made))
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
    tensor = one(saved(tmp_path / "m.onnx", node, codes, scale, zero))
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


def scale(*shape, kind=np.float32):
    return numpy_helper.from_array(np.ones(shape, kind), "s")


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
    "scales of integers": (linear(n=2), [scale(7, kind=np.int64)], "INT64"),
    "scales of text": (
        linear(n=2),
        [numpy_helper.from_array(np.array("a", object), "s")],
        "STRING",
    ),
    "zero points of others": (
        linear(),
        [scale(7), numpy_helper.from_array(np.zeros(5, np.uint8), "z")],
        "[5]",
    ),
    "zero points of floats": (
        linear(),
        [scale(7), numpy_helper.from_array(np.full(7, np.nan, np.float32), "z")],
        "FLOAT",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("node", "parts", "why"), FLAT.values(), ids=FLAT)
def test_parts_that_do_not_fit_are_a_fault(tmp_path, node, parts, why):
    norm = numpy_helper.from_array(X, "norm")
    found = dict(OnnxFile(saved(tmp_path / "m.onnx", node, CODES, norm, *parts)).tensors)
    np.testing.assert_array_equal(decoded(found["norm"]), X)
    assert why in found["w"].fault
    assert found["w"].fault.isprintable()


@pytest.mark.parametrize("kind", ["STRING", "BOOL", "COMPLEX64", "INT64", "FLOAT", "DOUBLE"])
def test_codes_of_a_type_that_holds_none_are_a_fault(tmp_path, kind):
    one = "a" if kind == "STRING" else 1
    array = np.full((5, 7), one, helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind)))
    codes = numpy_helper.from_array(array, "w_quantized")
    found = OnnxFile(saved(tmp_path / "m.onnx", linear(n=2), codes, scale())).tensors
    assert kind in found["w"].fault


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
    assert tensor.fault
    assert tensor.fault.isprintable()


def test_a_model_beside_its_original(tmp_path):
    def remark(stored):
        save(tmp_path / "x.onnx", model(linear(n=0), [numpy_helper.from_array(X, "w")]))
        path = saved(tmp_path / "m.onnx", linear(n=2, axis=0), *stored)
        source = Onnx(str(tmp_path / "x.onnx"))
        outcome = Experiment(source, OnnxFile(path), 10, 1e-12, 1).run()
        return outcome.failed.get("w") or outcome.tensors["w"]["remark"]

    step = np.abs(X).max(axis=1) / 127
    codes = numpy_helper.from_array(np.rint(X / step[:, None]).astype(np.int8), "w_quantized")
    assert remark([codes, numpy_helper.from_array(step, "s")]) is None
    far = "it fits the original far better"
    assert f"read with another scale {far}" in remark([codes, scale(40)])


def test_a_square_weight_that_is_transposed_is_told(tmp_path):
    x = RNG.standard_normal((32, 32)).astype(np.float32)
    save(tmp_path / "x.onnx", model(linear(n=0), [numpy_helper.from_array(x, "w")]))
    codes = numpy_helper.from_array(np.rint(x.T * 30).astype(np.int8), "w_quantized")
    step = numpy_helper.from_array(np.float32(1 / 30), "s")
    path = saved(tmp_path / "m.onnx", linear(n=2), codes, step)
    outcome = Experiment(Onnx(str(tmp_path / "x.onnx")), OnnxFile(path), 10, 1e-12, 1).run()
    assert "read transposed it fits the original far better" in outcome.failed["w"]
