import numpy as np
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from quantlab.sources.onnx import Onnx, OnnxFile
from quantlab.sources.onnx_graph import read_graph
from tests.sources.kinds.samples import decoded
from tests.sources.onnx_samples import external, linear, model, save, save_model, saved
from tests.sources.samples import X, read

NORM = numpy_helper.from_array(np.linspace(1, 2, 7, dtype=np.float32), "norm")


def constant_node(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def test_values_of_constant_nodes(tmp_path):
    nodes = [
        constant_node("tensor", X),
        constant_node("half", X.astype(np.float16)),
        helper.make_node("Constant", [], ["one"], value_float=0.5),
        helper.make_node("Constant", [], ["some"], value_floats=[1.0, 2.5]),
        helper.make_node("Constant", [], ["whole"], value_int=3),
        helper.make_node("Constant", [], ["axes"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["text"], value_string="a"),
        helper.make_node("Relu", ["tensor"], ["y"]),
    ]
    source = Onnx(save(tmp_path / "m.onnx", nodes=nodes))
    arrays = read(source)
    assert list(arrays) == ["tensor", "half", "one", "some"]
    np.testing.assert_array_equal(arrays["tensor"], X)
    np.testing.assert_array_equal(arrays["half"], X.astype(np.float16))
    assert (arrays["one"].tolist(), arrays["some"].tolist()) == (0.5, [1.0, 2.5])
    assert source.skipped() == {
        "whole": "int64 is no floating-point type",
        "axes": "int64 is no floating-point type",
        "text": "string is no floating-point type",
    }
    assert set(OnnxFile(source.path).tensors) == {"tensor", "half", "one", "some"}


def test_a_sparse_constant_is_left_out(tmp_path):
    node = helper.make_node("Constant", [], ["thin"])
    sparse = helper.make_sparse_tensor(NORM, numpy_helper.from_array(np.arange(7)), [9])
    node.attribute.append(AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR))
    node.attribute[0].sparse_tensor.CopyFrom(sparse)
    source = Onnx(save(tmp_path / "m.onnx", NORM, nodes=[node]))
    assert list(read(source)) == ["norm"]
    assert "thin" in source.skipped()


def body(*arrays, nodes=()):
    """Return a body of a node that holds arrays by their names, the first in a Constant node."""
    (name, array), *others = arrays
    initializers = [numpy_helper.from_array(array, other) for other, array in others]
    return helper.make_graph([constant_node(name, array), *nodes], "body", [], [], initializers)


def branches(then, other, name="if"):
    return helper.make_node("If", ["c"], ["y"], name=name, then_branch=then, else_branch=other)


def test_bodies_of_nodes(tmp_path):
    scan = helper.make_node("Scan", ["x"], ["z"], name="scan", body=body(("c", X[:3])))
    nodes = [
        branches(body(("a", X[:1]), ("b", X[:2])), body(("d", X[:4]), nodes=[scan])),
        helper.make_node("Loop", ["n", "c"], ["l"], name="loop", body=body(("e", X[:5]))),
    ]
    source = Onnx(save(tmp_path / "m.onnx", NORM, nodes=nodes))
    rows = {name: len(array) for name, array in read(source).items()}
    assert rows == {"norm": 7, "b": 2, "a": 1, "d": 4, "e": 5, "c": 3}
    assert set(OnnxFile(source.path).tensors) == rows.keys()


def test_names_are_qualified_where_two_bodies_have_the_same(tmp_path):
    weights = [(("w", X[:1]), ("k", X[:2])), (("w", X[:3]), ("h", X[:4]))]
    inner = branches(body(("w", X[:5])), body(("w", X[:6])), name="inner")
    nodes = [branches(body(*weights[0]), body(*weights[1], nodes=[inner]), name="")]
    rows = {
        name: len(array)
        for name, array in read(Onnx(save(tmp_path / "m.onnx", nodes=nodes))).items()
    }
    assert rows == {
        "k": 2,
        "y.then_branch.w": 1,
        "h": 4,
        "y.else_branch.w": 3,
        "y.else_branch.inner.then_branch.w": 5,
        "y.else_branch.inner.else_branch.w": 6,
    }


def test_a_name_of_the_model_stays_where_a_body_has_it_too(tmp_path):
    w = numpy_helper.from_array(X, "w")
    nodes = [branches(body(("w", X[:1])), body(("v", X[:2])))]
    source = Onnx(save(tmp_path / "m.onnx", w, nodes=nodes))
    assert {entry.name for entry in source.entries} == {"w", "if.then_branch.w", "v"}


def test_tensors_of_one_name_in_two_bodies_are_hashed_apart(tmp_path):
    nodes = [branches(body(("w", X)), body(("w", 2 * X)))]
    first, second = Onnx(save(tmp_path / "m.onnx", nodes=nodes)).tensors()
    assert first.sha256() != second.sha256()


def test_codes_in_a_body_with_a_scale_around_it(tmp_path):
    codes = np.arange(6, dtype=np.int8).reshape(2, 3)
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    then, other = (
        body(
            ("w_quantized", n * codes),
            nodes=[helper.make_node("DequantizeLinear", ["w_quantized", "s"], ["w"])],
        )
        for n in (1, 3)
    )
    tensors = OnnxFile(save(tmp_path / "m.onnx", scale, nodes=[branches(then, other)])).tensors
    assert set(tensors) == {"if.then_branch.w", "if.else_branch.w"}
    for name, n in (("if.then_branch.w", 1), ("if.else_branch.w", 3)):
        np.testing.assert_array_equal(decoded(tensors[name]), n * codes * np.float32(0.5))


def faulty(folder):
    """Yield a tensor of floats that cannot be read, and why, beside one that can."""
    (folder / "w.data").write_bytes(bytes(64))
    yield external("w", [4], "gone.data"), "gone.data for w, which does not exist"
    yield external("w", [4], "../w.data"), "outside its own directory"
    yield external("w", [40], "w.data"), "for w: it is cut"
    yield external("w", [4], "w.data", length=8), "gives w 8 bytes at 0"
    yield external("w", [4], "w.data", offset="x"), "holds w, which cannot be read"
    yield TensorProto(name="w", data_type=1, dims=[2], raw_data=bytes(12)), "holds 3 values in w"
    yield TensorProto(name="w", data_type=1, dims=[2], float_data=[1.0]), "holds w, which cannot"


def test_a_tensor_that_cannot_be_read_costs_none_of_the_others(tmp_path):
    for proto, reason in faulty(tmp_path):
        path = save(tmp_path / "m.onnx", proto, NORM)
        source = Onnx(path)
        source.require_tensors()
        (bad, good) = source.tensors()
        assert good.array.tolist() == numpy_helper.to_array(NORM).tolist()
        with pytest.raises(ValueError, match=reason) as caught:
            bad.require_finite()
        assert "damaged" not in str(caught.value)
        stored = OnnxFile(path).tensors
        assert reason in stored["w"].fault
        np.testing.assert_array_equal(decoded(stored["norm"]), numpy_helper.to_array(NORM))


@pytest.mark.parametrize("shape", [[-4], [3, -1]])
def test_a_shape_below_0_is_left_out(tmp_path, shape):
    proto = TensorProto(name="w", data_type=1, dims=shape, raw_data=bytes(16))
    path = save(tmp_path / "m.onnx", proto, NORM)
    source = Onnx(path)
    assert list(read(source)) == ["norm"]
    assert source.skipped() == {"w": f"gives w an impossible shape {shape}"}
    assert "impossible shape" in OnnxFile(path).tensors["w"].fault


@pytest.mark.parametrize("data_type", [0, 99, -1])
def test_a_type_that_onnx_does_not_have_is_left_out(tmp_path, data_type):
    proto = TensorProto(name="w", dims=[2], raw_data=bytes(8))
    proto.data_type = data_type
    path = save(tmp_path / "m.onnx", proto, NORM)
    assert Onnx(path).skipped() == {"w": f"onnx does not have type {data_type}"}
    fault = f"holds w of type {data_type}, which onnx does not have"
    assert OnnxFile(path).tensors["w"].fault == fault


@pytest.mark.parametrize("part", ["w_quantized", "s", "z"])
def test_codes_whose_parts_cannot_be_read_are_a_fault(tmp_path, part):
    parts = {
        "w_quantized": numpy_helper.from_array(np.ones((2, 3), np.int8), "w_quantized"),
        "s": numpy_helper.from_array(np.ones((), np.float32), "s"),
        "z": numpy_helper.from_array(np.ones((), np.int8), "z"),
    }
    whole = parts[part]
    parts[part] = external(part, whole.dims, "gone.data", whole.data_type)
    tensors = OnnxFile(saved(tmp_path / "m.onnx", linear(), NORM, *parts.values())).tensors
    assert set(tensors) == {"w", "norm"}
    assert f"gone.data for {part}, which does not exist" in tensors["w"].fault
    assert tensors["norm"].fault is None


def test_names_that_are_no_text(tmp_path):
    array = numpy_helper.from_array(np.ones((2, 3), np.int8), "vvvv_quantized")
    made = model(
        helper.make_node("DequantizeLinear", ["vvvv_quantized", "s"], ["uuuu"]),
        [array, numpy_helper.from_array(np.ones((), np.float32), "s")],
    )
    octets = (
        made.SerializeToString().replace(b"vvvv", b"v\xff\xfev").replace(b"uuuu", b"u\xff\xfeu")
    )
    (tmp_path / "m.onnx").write_bytes(octets)
    (tensor,) = OnnxFile(str(tmp_path / "m.onnx")).tensors.values()
    assert tensor.name == r"v\xff\xfev"
    assert tensor.fault is None


@pytest.mark.parametrize("kind", ["UINT4", "INT4", "UINT2", "INT2", "FLOAT4E2M1"])
@pytest.mark.parametrize("raw", [True, False])
def test_several_values_a_byte(tmp_path, kind, raw):
    values = [1, 0, 1, 1, 0, 1, 0] if kind.startswith("U") else [1, -1, 0, 0, -1, 1, 1]
    data_type = getattr(TensorProto, kind)
    if raw:
        dtype = helper.tensor_dtype_to_np_dtype(data_type)
        proto = numpy_helper.from_array(np.array(values).astype(dtype), "w")
    else:
        proto = helper.make_tensor("w", data_type, [7], values)
    (constant,) = read_graph(save_model(tmp_path / "m.onnx", model([], [proto]))).constants
    np.testing.assert_array_equal(constant.operand().read(), values)
    assert constant.n_bytes == constant.open().array.nbytes == (2 if kind[-1] == "2" else 4)
