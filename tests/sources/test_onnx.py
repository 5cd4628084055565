import os
import time

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlab.sources.onnx import Onnx, graph
from quantlab.stats.survey import survey
from tests.sources.samples import X, read

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
    assert survey(second, 1).hi == pytest.approx(100 * survey(first, 1).hi)


def test_what_onnx_itself_writes_apart(tmp_path):
    arrays = {"a": X, "b": X.astype(np.float16), "ids": np.arange(2000)}
    made = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = helper.make_model(helper.make_graph([], "g", [], [], made))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    source = Onnx(str(tmp_path / "m.onnx"))
    assert list(read(source)) == ["a", "b"]
    np.testing.assert_array_equal(read(source)["a"], X)
    assert source.skipped() == {"ids": "INT64 is no floating-point type"}


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
        "ids": "INT64 is no floating-point type",
        "mask": "BOOL is no floating-point type",
        "text": "STRING is no floating-point type",
        "waves": "COMPLEX64 is no floating-point type",
        "half": "INT4 is no floating-point type",
        "odd": "FLOAT4E2M1 is no floating-point type",
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
        with pytest.raises(ValueError, match=r"UNDEFINED|no name defined") as caught:
            Onnx(save(tmp_path / "m.onnx", proto)).require_tensors()
        assert str(caught.value).startswith(f"{tmp_path}/m.onnx ")


def test_many_initializers_are_listed_in_no_time(tmp_path):
    made = [TensorProto(name=str(n), data_type=1, dims=[1], float_data=[n]) for n in range(30_000)]
    path = save(tmp_path / "m.onnx", *made)
    start = time.process_time()
    assert len(graph(path).initializers) == 30_000
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
    yield external("w", [4], "a\0b"), "is no onnx file, or is cut off or damaged"
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
        yield external("w", [4], "w.data", **lie), "is no onnx file, or is cut off or damaged"
    yield external("w", [-4], "w.data"), r"gives w an impossible shape \[-4\]"
    yield external("w", [-2, -2], "w.data"), "an impossible shape"
    yield external("w", [4], "w.data", data_type=0), "UNDEFINED is no floating-point type"


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
    yield b"", "holds no tensor to measure: it is empty"
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
        "is no onnx file, or is cut off": [
            TensorProto(name="w", data_type=1, dims=[2], raw_data=bytes(7))
        ],
    }
    for said, protos in made.items():
        yield (folder / save(folder / "made", *protos)).read_bytes(), said
    for values in ([], [1.0]):
        proto = TensorProto(name="w", data_type=1, dims=[2**40, 2**40], float_data=values)
        yield (folder / save(folder / "made", proto)).read_bytes(), "m.onnx (holds|is no onnx)"


def test_a_model_that_lies_is_one_sentence_that_names_it(tmp_path):
    path = tmp_path / "m.onnx"
    for content, said in lies(tmp_path):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said) as caught:
            Onnx(str(path)).require_tensors()
        assert str(caught.value).startswith(str(path))
        assert str(caught.value).isprintable()
