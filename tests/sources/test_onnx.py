import os
import time

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from quantlab.experiment import Experiment
from quantlab.formats.blocks import Group
from quantlab.formats.format import Format
from quantlab.formats.uniform import Asymmetric
from quantlab.sources.onnx import Onnx, OnnxFile, original_name
from quantlab.sources.onnx_graph import read_graph
from quantlab.stats.reference import NumpyEngine
from quantlab.stats.survey import survey
from tests.sources.kinds.samples import decoded
from tests.sources.onnx_samples import (
    external,
    linear,
    model,
    only_tensor,
    save,
    save_model,
    saved,
    scale,
)
from tests.sources.samples import RNG, X, read

KINDS = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
}


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
        r"gives w 4800 bytes at \d+ of .*, where its shape \[40, 31\] takes 4960": [
            TensorProto(name="w", data_type=1, dims=[40, 31], raw_data=X.tobytes())
        ],
        "takes 4835703278458516698824704": [
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


QUANTIZED_NAMES = [  # of codes, of what is dequantized, of the original: as tools write them
    ("fc.weight_quantized", "fc.weight_DequantizeLinear_Output", "fc.weight"),  # ONNX Runtime
    ("fc.weight_DQ_Q4", "fc.weight_DQ_Q4_output", "fc.weight"),
    ("fc.weight_Q8", "", "fc.weight"),
    ("fc.weight_i4", "fc.weight_DequantizeLinear_Output", "fc.weight"),  # Model Optimizer
    ("fc.weight_f4", "/fc/weight_quantizer/TRT_FP4QDQ_output_0", "fc.weight"),
    ("fc.weight", "fc.weight_DequantizeLinear_Output", "fc.weight"),
    ("fc.weight", "/fc/DequantizeLinear_output_0", "fc.weight"),
    ("fc.weight", "fc.weight_dq", "fc.weight"),
    ("A_fp4", "A", "A"),
    ("packed", "fc.weight", "fc.weight"),
    ("onnx::DequantizeLinear_3", "fc.weight_dequantized", "fc.weight"),
    ("_quantized", "", "_quantized"),
    ("fc.weight", "", "fc.weight"),
]


@pytest.mark.parametrize(("codes", "output", "original"), QUANTIZED_NAMES)
def test_the_name_of_the_original(codes, output, original):
    assert original_name(codes, output) == original


WEIGHT = numpy_helper.from_array(X, "w")
LAYERS = {  # nodes that take w, of the shape [40, 30], and the axis of its inputs
    "matmul": ([helper.make_node("MatMul", ["x", "w"], ["y"])], 0),
    "matmul from the left": ([helper.make_node("MatMul", ["w", "x"], ["y"])], 1),
    "gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"])], 0),
    "gemm transposed": ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], 1),
    "gemm from the left": ([helper.make_node("Gemm", ["w", "x"], ["y"])], 1),
    "gemm from the left transposed": ([helper.make_node("Gemm", ["w", "x"], ["y"], transA=1)], 0),
    "a bias of gemm": ([helper.make_node("Gemm", ["x", "v", "w"], ["y"])], None),
    "gather": ([helper.make_node("Gather", ["w", "x"], ["y"])], None),
    "no node": ([], None),
    "lstm": ([helper.make_node("LSTM", ["x", "w", "r"], ["y"])], 1),
    "transposed": (
        [
            helper.make_node("Transpose", ["w"], ["t"]),
            helper.make_node("Cast", ["t"], ["c"], to=10),
            helper.make_node("MatMul", ["x", "c"], ["y"]),
        ],
        1,
    ),
    "an embedding that is an output layer too": (
        [
            helper.make_node("Gather", ["w", "i"], ["x"]),
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        1,
    ),
    "both axes": (
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("MatMul", ["w", "x"], ["z"]),
        ],
        None,
    ),
    "quantized as it runs": (
        [
            helper.make_node("QuantizeLinear", ["w", "s"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
            helper.make_node("MatMul", ["x", "d"], ["y"]),
        ],
        0,
    ),
}


@pytest.mark.parametrize(("nodes", "axis"), LAYERS.values(), ids=LAYERS)
def test_the_axis_of_the_inputs(tmp_path, nodes, axis):
    (entry,) = Onnx(save(tmp_path / "m.onnx", WEIGHT, nodes=nodes)).entries
    assert entry.input_axis == axis


@pytest.mark.parametrize(
    ("operator", "shape", "axis"),
    [
        ("Conv", (4, 3, 2, 2), None), ("ConvTranspose", (4, 3, 2, 2), 0), ("MatMul", (2, 4, 3), 1),
        ("MatMul", (4,), None), ("Conv", (), None),
    ],
)  # fmt: skip
def test_the_axis_of_the_inputs_of_a_shape(tmp_path, operator, shape, axis):
    w = numpy_helper.from_array(np.ones(shape, np.float32), "w")
    nodes = [helper.make_node(operator, ["x", "w"], ["y"])]
    (entry,) = Onnx(save(tmp_path / "m.onnx", w, nodes=nodes)).entries
    assert entry.input_axis == axis


def test_groups_along_the_inputs_are_those_of_matmul_n_bits(tmp_path):
    w, (inputs, outputs) = RNG.standard_t(3, (256, 96)).astype(np.float32), (256, 96)
    codes, scales, zero_points = (
        np.zeros((outputs, 8, 16), np.uint8),
        np.zeros(outputs * 8, np.float32),
        np.zeros(outputs * 4, np.uint8),
    )
    quantize_matmul_4bits(codes, w, scales, zero_points, 32, outputs, inputs, False)
    names = {"w_Q4": codes, "s": scales, "z": zero_points}
    initializers = [numpy_helper.from_array(values, name) for name, values in names.items()]
    settings = {"K": inputs, "N": outputs, "bits": 4, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", **settings)
    stored = OnnxFile(save(tmp_path / "q.onnx", *initializers, nodes=[node]))
    float_node = helper.make_node("MatMul", ["x", "w"], ["y"])
    original = numpy_helper.from_array(w, "w")
    source = Onnx(save(tmp_path / "m.onnx", original, nodes=[float_node]))

    def outcome(form):
        return Experiment(source, form, 10, 1e-8, 1).run().tensors["w"]

    along, rows = (outcome(Format(Asymmetric(4), Group(32, axis))) for axis in ("input", None))
    theirs = outcome(stored)
    assert along["measured"]["sqnr_db"] == pytest.approx(theirs["measured"]["sqnr_db"], rel=1e-7)
    assert along["measured"]["sqnr_db"] != pytest.approx(rows["measured"]["sqnr_db"], rel=1e-4)
    assert along["storage"]["bits_per_value"] == theirs["storage"]["bits_per_value"]
    assert along["input_axis"] == 0


def test_the_axis_of_a_weight_that_a_body_takes(tmp_path):
    inner = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "body", [], [])
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    (entry,) = Onnx(save(tmp_path / "m.onnx", WEIGHT, nodes=[node])).entries
    assert entry.input_axis == 0


def test_scales_of_activations_are_no_tensors(tmp_path):
    made = [
        WEIGHT,
        *(
            numpy_helper.from_array(np.float32(n), f"{name}_scale")
            for n, name in enumerate("xyab", 1)
        ),
        numpy_helper.from_array(np.float32(3), "epsilon"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero_point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero_point"], ["d"]),
        helper.make_node("QLinearAdd", ["a", "a_scale", "", "b", "b_scale", "", "y_scale"], ["y"]),
        helper.make_node("MatMul", ["d", "w"], ["z"]),
    ]
    assert set(OnnxFile(save(tmp_path / "m.onnx", *made, nodes=nodes)).tensors) == {"w", "epsilon"}


def test_an_embedding_of_which_rows_are_looked_up_before_they_are_dequantized(tmp_path):
    codes = np.arange(-20, 10, dtype=np.int8).reshape(10, 3)
    made = [
        numpy_helper.from_array(codes, "table_quantized"),
        numpy_helper.from_array(np.float32(0.25), "table_scale"),
        numpy_helper.from_array(np.int8(3), "table_zero_point"),
    ]
    nodes = [
        helper.make_node("Gather", ["table_quantized", "ids"], ["rows"]),
        helper.make_node("DequantizeLinear", ["rows", "table_scale", "table_zero_point"], ["y"]),
    ]
    tensor = only_tensor(save(tmp_path / "m.onnx", *made, nodes=nodes))
    assert tensor.name == "table"
    np.testing.assert_array_equal(decoded(tensor), (codes - np.float32(3)) * np.float32(0.25))


def test_floats_of_which_rows_are_looked_up_before_they_are_quantized_stay_floats(tmp_path):
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["rows"]),
        helper.make_node("QuantizeLinear", ["rows", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    made = [WEIGHT, numpy_helper.from_array(np.float32(0.25), "s")]
    tensor = only_tensor(save(tmp_path / "m.onnx", *made, nodes=nodes))
    assert (tensor.name, tensor.dtype, tensor.is_dense) == ("w", "float32", True)


def test_floats_beside_codes_of_their_own(tmp_path):
    made = [
        WEIGHT,
        numpy_helper.from_array(np.ones((40, 30), np.int8), "w_quantized"),
        numpy_helper.from_array(np.float32(0.25), "s"),
    ]
    tensors = OnnxFile(save(tmp_path / "m.onnx", *made, nodes=[linear(n=2)])).tensors
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "w": "int8, one scale",
        "w (float32)": "float32",
    }


def test_two_weights_of_one_original_keep_names_of_their_own(tmp_path):
    made = [
        numpy_helper.from_array(np.ones((2, 3), np.int8), name) for name in ("w_quantized", "w_i4")
    ]
    nodes = [
        helper.make_node("DequantizeLinear", [proto.name, "s"], [proto.name[-2:]]) for proto in made
    ]
    made.append(numpy_helper.from_array(np.float32(0.25), "s"))
    assert set(OnnxFile(save(tmp_path / "m.onnx", *made, nodes=nodes)).tensors) == {"w", "w_i4"}


class Batches(CalibrationDataReader):
    """Inputs that ONNX Runtime's quantizer runs a model with."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.batches = iter([{"x": rng.standard_normal((4, 40)).astype(np.float32)}] * 2)

    def get_next(self):
        return next(self.batches, None)


def layers(folder):
    """Write a model of two layers, its second in a Constant node; return its path and weights."""
    rng = np.random.default_rng(1)
    weights = {
        "dense.weight": rng.standard_normal((40, 32)).astype(np.float32),
        "head.weight": rng.standard_normal((32, 64)).astype(np.float32),
    }
    first, second = (numpy_helper.from_array(array, name) for name, array in weights.items())
    nodes = [
        helper.make_node("MatMul", ["x", "dense.weight"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Constant", [], ["head.weight"], value=second),
        helper.make_node("MatMul", ["r", "head.weight"], ["y"], name="b"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 40])
    return save_model(folder / "x.onnx", model(nodes, [first], [x], opset=21)), weights


STATIC = {
    "qdq": {"quant_format": QuantFormat.QDQ},
    "qdq of floats": {
        "quant_format": QuantFormat.QDQ,
        "extra_options": {"AddQDQPairToWeight": True},
    },
    "qdq per channel": {"quant_format": QuantFormat.QDQ, "per_channel": True},
    "operators": {"quant_format": QuantFormat.QOperator},
    "operators per channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
}


@pytest.mark.parametrize("settings", STATIC.values(), ids=STATIC)
def test_what_onnx_runtime_quantizes(tmp_path, settings):
    path, weights = layers(tmp_path)
    quantize_static(path, tmp_path / "m.onnx", Batches(), weight_type=QuantType.QInt8, **settings)
    require_close(path, tmp_path / "m.onnx", dict.fromkeys(weights, 8))


def test_what_onnx_runtime_quantizes_for_activations_of_any_range(tmp_path):
    path, _ = layers(tmp_path)
    quantize_dynamic(path, tmp_path / "m.onnx", weight_type=QuantType.QUInt8)
    # It leaves the values of Constant nodes as they are.
    require_close(path, tmp_path / "m.onnx", {"dense.weight": 8, "head.weight": 32})


def require_close(path, quantized, bits):
    """Require that weights pair, with little error, and with the bits of their codes."""
    outcome = Experiment(Onnx(path), OnnxFile(str(quantized)), 10, 1e-12, 1).run()
    assert (outcome.failed, outcome.skipped) == ({}, {})
    assert outcome.tensors.keys() == bits.keys()
    for name, figures in outcome.tensors.items():
        assert bits[name] <= figures["storage"]["bits_per_value"] < bits[name] + 1.1
        assert bits[name] == 32 or figures["measured"]["sqnr_db"] > 38
