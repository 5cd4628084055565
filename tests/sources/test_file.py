"""Readers on files written by the real packages, and on files that lie."""

import contextlib
import json
import struct
import sys
import warnings
import zipfile

import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors import TensorSpec, serialize_file

from quantlab.experiment import Experiment
from quantlab.formats.uniform import Asymmetric
from quantlab.sources import file, npz, readers
from quantlab.sources.gguf import Gguf
from quantlab.sources.npy import Npy
from quantlab.sources.npz import Npz
from quantlab.sources.safetensors import Safetensors
from tests.conftest import measure, measure_tensor

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 30)).astype(np.float32)


def read(source):
    """Return what each chosen tensor holds, as float32 in its shape."""
    return {
        tensor.name: tensor.block(0, tensor.size).reshape(tensor.shape)
        for tensor in source.tensors()
    }


def write_safetensors(path, **arrays):
    safetensors.numpy.save_file(arrays, path)
    return str(path)


def write_raw(path, header, data=b""):
    """Write a safetensors file by hand, so that its header may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return str(path)


def write_gguf(path, **arrays):
    writer = gguf.GGUFWriter(path, "test")
    for name, (array, kind) in arrays.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_float_dtype_and_order(tmp_path, dtype, order):
    np.save(tmp_path / "w.npy", np.asarray(X, dtype=dtype, order=order))
    source = Npy(str(tmp_path / "w.npy"))
    assert np.array_equal(read(source)["w"], X.astype(dtype).astype(np.float32))
    assert source.n_bytes() == X.size * np.dtype(dtype).itemsize


def test_npy_is_mapped_not_read(tmp_path):
    np.save(tmp_path / "w.npy", X)
    (tensor,) = Npy(str(tmp_path / "w.npy")).tensors()
    assert isinstance(tensor.array.base, np.memmap)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_by_member(tmp_path, save):
    save(tmp_path / "m.npz", a=X, ids=np.arange(3), none=np.empty((0, 2)), deep=X.astype(">f8"))
    source = Npz(str(tmp_path / "m.npz"))
    found = read(source)
    assert list(found) == ["a", "deep"]
    assert np.array_equal(found["deep"], X)
    assert source.skipped() == {"ids": "int64 is no floating-point type", "none": "it is empty"}


def test_safetensors_of_every_dtype_without_torch(tmp_path):
    kinds = {
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float64": np.float64,
        "float32": np.float32,
    }
    stored = {name: X.astype(kind) for name, kind in kinds.items()} | {"ids": np.arange(4)}
    path = tmp_path / "m.safetensors"
    specs = {
        name: TensorSpec(
            dtype=name if name in kinds else "int64",
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in stored.items()
    }
    serialize_file(specs, path)
    source = Safetensors(str(path))
    found = read(source)
    assert found.keys() == kinds.keys()
    for name, values in found.items():
        assert np.array_equal(values, stored[name].astype(np.float32)), name
    assert {entry.name: entry.dtype for entry in source.entries} == {
        name: name for name in kinds
    } | {"ids": "I64"}
    assert source.skipped() == {"ids": "I64 is no floating-point type"}


def test_a_sharded_checkpoint_is_one_source(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", first=X, spare=X)
    write_safetensors(tmp_path / "b.safetensors", second=X + 1)
    index = tmp_path / "model.safetensors.index.json"
    weights = {"first": "a.safetensors", "second": "b.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    found = read(Safetensors(str(index)))
    assert list(found) == ["first", "second"]
    assert np.array_equal(found["second"], X + 1)


def test_gguf_floats_are_read_and_quantized_tensors_left_out(tmp_path):
    kind = gguf.GGMLQuantizationType
    brain = X.astype(ml_dtypes.bfloat16)
    path = write_gguf(
        tmp_path / "m.gguf",
        f32=(X, None),
        f16=(X.astype(np.float16), None),
        bf16=(brain.view(np.uint8), kind.BF16),
        q8=(gguf.quantize(RNG.standard_normal((4, 64)).astype(np.float32), kind.Q8_0), kind.Q8_0),
        ids=(np.arange(8, dtype=np.int32), None),
    )
    source = Gguf(path)
    found = read(source)
    assert np.array_equal(found["f32"], X)
    assert np.array_equal(found["f16"], X.astype(np.float16).astype(np.float32))
    assert np.array_equal(found["bf16"], brain.astype(np.float32))
    assert source.skipped() == {
        "q8": "Q8_0 is quantized already",
        "ids": "I32 is no floating-point type",
    }


def test_a_big_endian_gguf_is_refused_not_misread(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("w", X.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="is big-endian: convert it"):
        Gguf(str(tmp_path / "m.gguf"))


def test_a_damaged_member_costs_no_other(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=X, b=X + 1, c=X)
    content = path.read_bytes()
    path.write_bytes(content.replace((X + 1).tobytes()[:64], bytes(64)))
    outcome = Experiment(Npz(str(path)), Asymmetric(8), 10, 1e-8, 1).run()
    assert list(outcome.tensors) == ["a", "c"]
    assert outcome.failed["b"].startswith(f"tensor 'b' cannot be read: {path} is no npz file, or")


def test_a_member_over_the_limit_is_left_out_and_costs_no_other(tmp_path):
    np.savez(tmp_path / "m.npz", small=X[0], big=np.zeros(10**5, np.float32))
    source = Npz(str(tmp_path / "m.npz"), max_bytes=1000)
    assert list(read(source)) == ["small"]
    assert source.skipped()["big"].startswith("it unpacks to 400128 bytes, above the limit of 1000")


def test_a_name_with_brackets_matches_itself(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", **{"w[0]": X, "w0": X})
    assert list(read(Safetensors(path, include="w[0]"))) == ["w0", "w[0]"]


def test_patterns_choose(tmp_path):
    path = write_safetensors(
        tmp_path / "m.safetensors",
        **{"enc.0.weight": X, "enc.0.bias": X, "enc.1.weight": X, "dec.weight": X},
    )
    assert set(read(Safetensors(path, include="enc*weight"))) == {"enc.0.weight", "enc.1.weight"}
    assert set(read(Safetensors(path, include=["dec*", "*bias"]))) == {"dec.weight", "enc.0.bias"}
    left = Safetensors(path, include="enc*", exclude=["*bias", "*1*"])
    assert set(read(left)) == {"enc.0.weight"}
    assert left.skipped() == {
        "dec.weight": "not in dist.include",
        "enc.0.bias": "in dist.exclude",
        "enc.1.weight": "in dist.exclude",
    }


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        ({"include": "encodr.weight"}, "dist.include=encodr.weight matches none of the 2 tensors"),
        ({"include": "encodr.weight"}, ": near misses are encoder.weight"),
        ({"include": "QQQ"}, "none comes close"),
        ({"include": "weight"}, "patterns match whole names in their case, and encoder.weight hol"),
        ({"include": ["head", "*HEAD*"]}, r"dist.include=\*HEAD\* matches none"),
        ({"exclude": ["*encdr*"]}, r"dist.exclude=\*encdr\* matches none of the 2 tensors in "),
        ({"exclude": "*"}, "holds no tensor to measure: encoder.weight: in dist.exclude"),
    ],
)
def test_a_pattern_without_a_match_is_told_with_near_misses(tmp_path, patterns, told):
    path = write_safetensors(tmp_path / "m.safetensors", **{"encoder.weight": X, "head": X})
    with pytest.raises(ValueError, match=told):
        Safetensors(path, **patterns).require_tensors()


def test_a_file_of_integers_has_nothing_to_measure(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(3))
    told = "holds no tensor to measure: ids: int64 is no floating-point type"
    with pytest.raises(ValueError, match=told):
        Npy(str(tmp_path / "ids.npy")).require_tensors()


@pytest.mark.parametrize(
    "name", ["../../etc/w", "a/b", "two words", "Gewicht-ß", "x" * 300, "w\x1b[2J"]
)
def test_any_name_is_a_key_and_never_a_path(tmp_path, name):
    path = write_safetensors(tmp_path / "m.safetensors", **{name: X})
    assert list(read(Safetensors(path))) == [name]
    assert [each.name for each in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_tensor_is_hashed_once_per_state_of_its_file(tmp_path, monkeypatch):
    hashed = []
    whole = file.Tensor._hash
    monkeypatch.setattr(file.Tensor, "_hash", lambda self: hashed.append(self.name) or whole(self))
    path = tmp_path / "w.npy"
    np.save(path, X)
    first, again = (next(Npy(str(path)).tensors()).sha256() for _ in range(2))
    assert (first, hashed) == (again, ["w"])
    np.save(path, np.vstack([X, X]))
    assert next(Npy(str(path)).tensors()).sha256() != first
    assert hashed == ["w", "w"]


def test_a_file_measures_as_its_array(tmp_path):
    np.save(tmp_path / "w.npy", X)
    (tensor,) = Npy(str(tmp_path / "w.npy")).tensors()
    assert measure_tensor(tensor, Asymmetric(8)) == measure(X, Asymmetric(8))


def bad_files(folder):
    """Yield reader, path, and what is said of it."""
    np.save(folder / "w.npy", X)
    whole = (folder / "w.npy").read_bytes()
    cut, junk, pickled = folder / "cut.npy", folder / "junk.npy", folder / "pickled.npy"
    cut.write_bytes(whole[:-100])
    junk.write_bytes(b"nothing of the kind")
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    yield Npy, folder / "no.npy", "does not exist: name the npy file there is"
    yield Npy, folder, "is a directory: name the npy file in it"
    yield Npy, cut, r"is cut off: it has 4828 bytes, where shape \(40, 30\) takes 4928"
    yield Npy, junk, r"is no npy file, or is cut off or damaged \(the magic string is not correct"
    yield Npy, pickled, "it holds pickled Python objects, which are refused"

    for number, (header, said) in enumerate(
        [
            (b"{'descr':'<f4','fortran_order':False,'shape':(-4,)}", "has an impossible shape"),
            (b"{'descr':'<f4','fortran_order':False,'shape':(True,)}", "has an impossible shape"),
            (b" " * 2**20, r"has an npy header of version \(2, 0\) and 1048576 bytes"),
        ]
    ):
        liar = folder / f"liar{number}.npy"
        liar.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + bytes(64))
        yield Npy, liar, said
    future = folder / "future.npy"
    future.write_bytes(whole[:6] + b"\x07" + whole[7:])
    yield Npy, future, r"has an npy header of version \(7, 0\)"

    np.savez(folder / "w.npz", w=X)
    archive = folder / "cut.npz"
    archive.write_bytes((folder / "w.npz").read_bytes()[:-60])
    yield Npz, archive, r"is no npz file, or is cut off or damaged \(File is not a zip file\)"
    bomb = folder / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("w.npy", whole + bytes(2**24))
    yield (
        (lambda path: Npz(path, max_bytes=2**20)),
        bomb,
        (r"w: it unpacks to \d+ bytes, above the limit of 1048576: raise dist.max_bytes if you"),
    )
    short = folder / "short.npz"
    with zipfile.ZipFile(short, "w") as packed:
        packed.writestr("w.npy", whole[:-100])
    yield Npz, short, r"has a member w too short for its shape \(40, 30\)"

    twice = folder / "twice.npz"
    with zipfile.ZipFile(twice, "w") as packed, warnings.catch_warnings(action="ignore"):
        packed.writestr("w.npy", whole)
        packed.writestr("w.npy", whole)
    yield Npz, twice, "holds two tensors of the name 'w'"

    write_safetensors(folder / "w.safetensors", w=X)
    cut = folder / "cut.safetensors"
    cut.write_bytes((folder / "w.safetensors").read_bytes()[:-4])
    yield Safetensors, cut, "is no safetensors file, or is cut off or damaged"
    for number, (shape, offsets) in enumerate(
        [([2], [0, 4]), ([2], [0, 4000]), ([2], [4, 12]), ([-2], [0, 8]), ([2**62, 8], [0, 8])]
    ):
        lie = {"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
        path = write_raw(folder / f"lie{number}.safetensors", lie, bytes(8))
        yield Safetensors, path, "is no safetensors file, or is cut off or damaged"
    yield (
        Safetensors,
        write_raw(folder / "json.safetensors", b"{"),
        "is no safetensors file, or is cut off or damaged",
    )
    huge = folder / "huge.safetensors"
    huge.write_bytes(struct.pack("<Q", 2**60))
    yield Safetensors, huge, "is no safetensors file, or is cut off or damaged"

    index = folder / "number.index.json"
    index.write_text(json.dumps({"weight_map": {"w": 3}}))
    yield Safetensors, index, "puts w into 3, outside its own directory"
    index = folder / "away.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../w.safetensors"}}))
    yield Safetensors, index, r"puts w into \.\./w\.safetensors, outside its own directory"
    index = folder / "gone.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "gone.safetensors"}}))
    yield Safetensors, index, r"needs .*gone\.safetensors, which does not exist"
    index = folder / "lacks.index.json"
    index.write_text(json.dumps({"weight_map": {"v": "w.safetensors"}}))
    yield Safetensors, index, r"puts v into .*w\.safetensors, which does not hold it"
    index = folder / "empty.index.json"
    index.write_text("[]")
    yield Safetensors, index, "has no weight_map"

    write_gguf(folder / "w.gguf", w=(X, None))
    for size in (2, 20, 100, -2000):
        cut = folder / f"cut{size}.gguf"
        cut.write_bytes((folder / "w.gguf").read_bytes()[:size])
        yield Gguf, cut, "is no gguf file, or is cut off or damaged"


def test_a_bad_file_is_one_sentence_that_names_it(tmp_path):
    for source, path, told in bad_files(tmp_path):
        with pytest.raises(ValueError, match=told) as caught:
            source(str(path)).require_tensors()
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offset", range(0, 200, 7))
@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "gguf"])
def test_a_flipped_byte_is_read_or_refused(tmp_path, kind, offset):
    """Whatever a reader makes of it: a ValueError or a tensor, nothing else."""
    path = tmp_path / f"w.{kind}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        np.savez(path, w=X)
    elif kind == "safetensors":
        write_safetensors(path, w=X)
    else:
        write_gguf(path, w=(X, None))
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x91
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        read(readers.reader(path)(str(path)))


def test_a_suffix_that_nobody_reads_is_told(tmp_path):
    (tmp_path / "w.bin").touch()
    with pytest.raises(ValueError, match=r"has none of the suffixes \.npy, \.npz, "):
        readers.reader(tmp_path / "w.bin")
    with pytest.raises(ValueError, match="does not exist"):
        readers.reader(tmp_path / "x.bin")


def test_a_file_of_another_format_is_told(tmp_path):
    np.save(tmp_path / "w.npy", X)
    with pytest.raises(ValueError, match=r"is no gguf file, .* its suffix is that of npy"):
        Gguf(str(tmp_path / "w.npy"))


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = write_gguf(tmp_path / "w.gguf", w=(X, None))
    with pytest.raises(ValueError, match=r"takes the package gguf: pip install 'quantlab\[gguf\]'"):
        Gguf(path)


@pytest.mark.parametrize("given", [0, ["a", 1.5], [True], [float("nan")]])
@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_yaml_took_for_something_else_is_named(tmp_path, key, given):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(
        ValueError, match=rf"^dist\.{key} takes names or patterns, got .*: quote it"
    ):
        npz.Npz(str(tmp_path / "x.npz"), **{key: given})
