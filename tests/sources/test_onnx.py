import os
import time

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlab.experiment import Experiment
from quantlab.sources.onnx import Onnx, OnnxFile, read_graph
from quantlab.stats.reference import NumpyEngine
from quantlab.stats.survey import survey
from tests.sources.kinds.samples import decoded
from tests.sources.samples import RNG, X, read

KINDS = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
}


def save(path, *initializers, nodes=()):
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return str(path)


def external(name, shape, location, data_type=TensorProto.FLOAT, **about):
    """Return an initializer whose data is elsewhere."""
    proto = TensorProto(name=name, data_type=data_type, dims=shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **about}.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: TensorProto.DataType.Name(kind))
def test_floats_of_every_kind(tmp_path, kind, raw):
    stored = X.astype(KINDS[kind])
    values = stored.tobytes() if raw else stored.astype(np.float32).ravel().tolist()
    made = helper.make_tensor("w", kind, X.shape, values, raw=raw)
    source = Onnx(save(tmp_path / "m.onnx", made))
    found = read(source)["w"]
    np.testing.assert_array_equal(found, stored.astype(np.float32), strict=True)
    assert source.n_bytes() == stored.nbytes
    assert source.entries[0].dtype_name == np.dtype(KINDS[kind]).name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: TensorProto.DataType.Name(kind))
def test_data_in_a_file_beside_the_model(tmp_path, kind):
    stored = X.astype(KINDS[kind])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/w.data").write_bytes(bytes(7) + stored.tobytes() + bytes(5))
    about = {"offset": 7, "length": stored.nbytes, "checksum": "0" * 40}
    made = external("w", X.shape, "deep/w.data", kind, **about)
    found = read(Onnx(save(tmp_path / "m.onnx", made)))["w"]
    np.testing.assert_array_equal(found, stored.astype(np.float32), strict=True)


def test_models_that_share_a_file_have_tensors_of_their_own(tmp_path):
    (tmp_path / "w.data").write_bytes(np.stack([X, 100 * X]).astype(np.float32).tobytes())
    models = [
        save(tmp_path / f"{n}.onnx", external("w", X.shape, "w.data", offset=n * 4 * X.size))
        for n in (0, 1)
    ]
    (first,), (second,) = (list(Onnx(path).tensors()) for path in models)
    assert first.sha256() != second.sha256()
    assert survey(second, 1, NumpyEngine()).hi == pytest.approx(
        100 * survey(first, 1, NumpyEngine()).hi
    )


def test_what_onnx_itself_writes_apart(tmp_path):
    arrays = {"a": X, "b": X.astype(np.float16), "ids": np.arange(2000)}
    made = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = helper.make_model(helper.make_graph([], "g", [], [], made))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    source = Onnx(str(tmp_path / "m.onnx"))
    assert list(read(source)) == ["a", "b"]
    np.testing.assert_array_equal(read(source)["a"], X)
    assert source.skipped() == {"ids": "int64 is no floating-point type"}


def test_what_is_no_float_is_left_out(tmp_path):
    made = [
        numpy_helper.from_array(X, "w"),
        numpy_helper.from_array(np.arange(3), "ids"),
        numpy_helper.from_array(np.array([True]), "mask"),
        numpy_helper.from_array(np.array(["a"], object), "text"),
        numpy_helper.from_array(np.array([1j], np.complex64), "waves"),
        helper.make_tensor("half", TensorProto.INT4, [3], [1, -2, 3]),
        helper.make_tensor("odd", TensorProto.FLOAT4E2M1, [3], [0.5, 1, 6]),
        numpy_helper.from_array(np.empty((0, 3), np.float32), "empty"),
    ]
    source = Onnx(save(tmp_path / "m.onnx", *made))
    assert list(read(source)) == ["w"]
    assert source.skipped() == {
        "ids": "int64 is no floating-point type",
        "mask": "bool is no floating-point type",
        "text": "string is no floating-point type",
        "waves": "complex64 is no floating-point type",
        "half": "int4 is no floating-point type",
        "odd": "float4_e2m1fn holds codes, which are no values without their scales",
        "empty": "it is empty",
    }


@pytest.mark.parametrize("kind", [TensorProto.FLOAT4E2M1, TensorProto.INT4, TensorProto.STRING])
def test_no_float_in_a_file_apart_costs_none_of_the_others(tmp_path, kind):
    (tmp_path / "w.data").write_bytes(bytes(64))
    odd = external("odd", [4], "w.data", kind, offset=0, length=2)
    source = Onnx(save(tmp_path / "m.onnx", numpy_helper.from_array(X, "w"), odd))
    assert list(read(source)) == ["w"]


def test_a_scalar_and_an_empty_tensor_in_a_file_apart(tmp_path):
    (tmp_path / "w.data").write_bytes(np.float32(3).tobytes())
    (tmp_path / "none.data").write_bytes(b"")
    made = [
        external("one", [], "w.data"),
        external("end", [0, 3], "w.data", offset=4, length=0),
        external("none", [0], "none.data"),
    ]
    source = Onnx(save(tmp_path / "m.onnx", *made))
    assert {name: values.tolist() for name, values in read(source).items()} == {"one": 3.0}
    assert source.skipped() == {"end": "it is empty", "none": "it is empty"}


def test_a_type_that_onnx_does_not_have_is_one_sentence(tmp_path):
    for kind in (0, 99, -1):
        proto = TensorProto(name="w", dims=[2], raw_data=bytes(8))
        proto.data_type = kind
        with pytest.raises(ValueError, match=f"onnx does not have type {kind}") as caught:
            Onnx(save(tmp_path / "m.onnx", proto)).require_tensors()
        assert str(caught.value).startswith(f"{tmp_path}/m.onnx ")


def test_many_initializers_are_listed_in_no_time(tmp_path):
    made = [TensorProto(name=str(n), data_type=1, dims=[1], float_data=[n]) for n in range(30_000)]
    path = save(tmp_path / "m.onnx", *made)
    start = time.process_time()
    assert len(read_graph(path).constants) == 30_000
    assert time.process_time() - start < 2


def outside(folder):
    """Yield initializers whose data is not where it may be, and what is said."""
    here = folder / "model"
    (folder / "secret").write_bytes(bytes(64))
    (here / "w.data").write_bytes(bytes(64))
    (here / "folder").mkdir()
    (here / "link").symlink_to(folder / "secret")
    (here / "away").symlink_to(folder)
    os.mkfifo(here / "pipe")
    for location in ("../secret", f"{folder}/secret", "link", "away/secret", "folder/../../secret"):
        yield external("w", [4], location), "outside its own directory"
    for location in ("", ".", "folder", "pipe", "gone", "w.data/w"):
        yield external("w", [4], location), "which does not exist"
    yield external("w", [4], "a\0b"), "holds w, which cannot be read"
    yield external("w", [4], "\x1b[2J"), "which does not exist"
    yield external("\x1b[2J", [4], "gone"), "which does not exist"
    yield external("w", [4], "w.data", offset=-1), r"at -1 of .*w\.data"
    yield external("w", [4], "w.data", length=8), r"gives w 8 bytes at 0 of .* takes 16"
    yield external("w", [4], "w.data", length=0), r"gives w 0 bytes at 0 of .* takes 16"
    yield external("w", [4], "w.data", offset=52), "needs 68 bytes of .*: it is cut"
    yield external("w", [4], "w.data", offset=2**70), "it is cut"
    yield external("w", [40], "w.data"), "needs 160 bytes of .*: it is cut"
    yield external("w", [2**40, 2**40], "w.data"), "it is cut"
    for lie in ({"offset": "x"}, {"offset": "1.5"}, {"length": ""}, {"offset": "9" * 5000}):
        yield external("w", [4], "w.data", **lie), "holds w, which cannot be read"
    yield external("w", [-4], "w.data"), r"gives w an impossible shape \[-4\]"
    yield external("w", [-2, -2], "w.data"), "an impossible shape"
    yield external("w", [4], "w.data", data_type=0), "onnx does not have type 0"


def test_data_that_is_not_where_it_may_be_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    path = tmp_path / "model/m.onnx"
    for made, said in outside(tmp_path):
        with pytest.raises(ValueError, match=said) as caught:
            Onnx(save(path, made)).require_tensors()
        assert str(caught.value).startswith(str(path))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


def test_a_directory_that_is_itself_a_link_may_be(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real/w.data").write_bytes(X.tobytes())
    save(tmp_path / "real/m.onnx", external("w", X.shape, "w.data"))
    np.testing.assert_array_equal(read(Onnx(str(tmp_path / "link/m.onnx")))["w"], X)


def lies(folder):
    """Yield models that lie, and what is said."""
    good = numpy_helper.from_array(X, "w")
    save(folder / "whole", good)
    whole = (folder / "whole").read_bytes()
    yield whole[:-10], "is no onnx file, or is cut off or damaged"
    yield whole[: len(whole) // 2], "is no onnx file, or is cut off or damaged"
    yield b"", r"is empty \(0 bytes\)"
    yield b"nothing of the kind", "is no onnx file, or is cut off or damaged"
    yield bytes(64), "is no onnx file, or is cut off or damaged"
    made = {
        "holds two initializers of the name 'w'": [good, good],
        r"gives w an impossible shape \[-40, -30\]": [
            TensorProto(name="w", data_type=1, dims=[-40, -30], raw_data=X.tobytes())
        ],
        r"holds 1200 values in w, where the shape \[40, 31\] takes 1240": [
            TensorProto(name="w", data_type=1, dims=[40, 31], raw_data=X.tobytes())
        ],
        "takes 1208925819614629174706176": [
            TensorProto(name="w", data_type=1, dims=[2**40, 2**40], raw_data=X.tobytes())
        ],
        r"holds 1\.75 values in w, where the shape \[2\] takes 2": [
            TensorProto(name="w", data_type=1, dims=[2], raw_data=bytes(7))
        ],
    }
    for said, protos in made.items():
        yield (folder / save(folder / "made", *protos)).read_bytes(), said
    for values in ([], [1.0]):
        proto = TensorProto(name="w", data_type=1, dims=[2**40, 2**40], float_data=values)
        yield (folder / save(folder / "made", proto)).read_bytes(), "m.onnx holds"


def test_a_model_that_lies_is_one_sentence_that_names_it(tmp_path):
    path = tmp_path / "m.onnx"
    for content, said in lies(tmp_path):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said) as caught:
            Onnx(str(path)).require_tensors()
        assert str(caught.value).startswith(str(path))
        assert str(caught.value).isprintable()


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


def save_model(path, made):
    path.write_bytes(made.SerializeToString())
    return str(path)


def saved(path, node, *initializers):
    return save_model(path, model(node, initializers))


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
    tensor = one(save_model(tmp_path / "m.onnx", made))
    assert tensor.fault is None
    assert tensor.name == "w"
    y = run(made).astype(np.float32)
    np.testing.assert_array_equal(decoded(tensor), y, strict=True)
    read = tensor.reader()
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
    tensor = one(save_model(tmp_path / "m.onnx", made))
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
    tensor = one(save_model(tmp_path / "m.onnx", made))
    assert tensor.name == "w"
    np.testing.assert_array_equal(decoded(tensor), y, strict=True)
    which = RNG.permutation(inputs)[:7]
    np.testing.assert_array_equal(tensor.decode_rows(which), y[which])


@pytest.mark.parametrize("zero", ["none", "codes"])
def test_groups_of_matmul_n_bits_in_another_order(tmp_path, zero):
    order = RNG.permutation(np.arange(64, dtype=np.int32) // 32)
    made = n_bits(64, 5, 32, 4, zero, order=order)
    y = run(made, x=np.eye(64, dtype=np.float32))
    tensor = one(save_model(tmp_path / "m.onnx", made))
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
    assert tensor.fault
    assert tensor.fault.isprintable()


def test_a_model_beside_its_original(tmp_path):
    def remark(stored):
        save_model(tmp_path / "x.onnx", model(linear(n=0), [numpy_helper.from_array(X, "w")]))
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
    save_model(tmp_path / "x.onnx", model(linear(n=0), [numpy_helper.from_array(x, "w")]))
    codes = numpy_helper.from_array(np.rint(x.T * 30).astype(np.int8), "w_quantized")
    step = numpy_helper.from_array(np.float32(1 / 30), "s")
    path = saved(tmp_path / "m.onnx", linear(n=2), codes, step)
    outcome = Experiment(Onnx(str(tmp_path / "x.onnx")), OnnxFile(path), 10, 1e-12, 1).run()
    assert "read transposed it fits the original far better" in outcome.failed["w"]
