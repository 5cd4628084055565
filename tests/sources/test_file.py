"""Readers on files written by the real packages, and on files that lie."""

import errno
import json
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.sources import file
from quantlab.sources.file import divide, readable, require_part
from quantlab.sources.gguf import Gguf
from quantlab.sources.numpy import Npy, Npz
from quantlab.sources.safetensors import Safetensors
from tests.sources.samples import X, read, write_gguf, write_raw, write_safetensors


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


def bad_files(folder):
    """Yield reader, path, and what is said of it."""
    np.save(folder / "w.npy", X)
    whole = (folder / "w.npy").read_bytes()
    cut, junk, pickled = folder / "cut.npy", folder / "junk.npy", folder / "pickled.npy"
    cut.write_bytes(whole[:-100])
    junk.write_bytes(b"nothing of the kind")
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    yield Npy, folder / "no.npy", "no.npy: no such file"
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
        yield Gguf, cut, "is no gguf file, or is cut off or damaged|which is cut off or damaged"


def test_a_file_that_another_needs_is_named():
    for name, why in (
        ("a", "a cannot be read: gone"),
        ("b", "a needs b, which cannot be read: go"),
    ):
        with pytest.raises(ValueError, match=f"^{why}"), readable("a", "gguf"):
            raise OSError(2, "gone", name)


def test_a_bad_file_is_one_sentence_that_names_it(tmp_path):
    for source, path, told in bad_files(tmp_path):
        with pytest.raises(ValueError, match=told) as caught:
            source(str(path)).require_tensors()
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_a_file_of_another_format_is_told(tmp_path):
    np.save(tmp_path / "w.npy", X)
    with pytest.raises(ValueError, match=r"is no gguf file, .* its suffix is that of npy"):
        Gguf(str(tmp_path / "w.npy"))


@given(st.lists(st.integers(1, 10**12), max_size=30), st.integers(1, 40))
def test_parts_differ_by_no_more_than_one_tensor(sizes, parts):
    found = divide(sizes, parts)
    assert len(found) == len(sizes)
    loads = [0] * parts
    for size, part in zip(sizes, found, strict=True):
        loads[part] += size
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert found == divide(sizes, parts)


def test_the_largest_goes_first_and_the_order_of_the_file_decides_between_equals():
    assert divide([1, 4, 2, 3], 2) == [0, 0, 1, 1]
    assert divide([5, 5, 5, 5, 5], 3) == [0, 1, 2, 0, 1]
    assert divide([2, 1], 10**12) == [0, 1]  # nothing is made for parts that stay empty


@pytest.mark.parametrize(
    ("part", "parts", "said"),
    [
        (4, 4, r"dist\.part must be a whole number from 0 to 3 with dist\.parts=4, got 4"),
        (-1, 4, "from 0 to 3 with .* got -1"),
        (1.0, 4, "from 0 to 3 with .* got 1.0"),
        (True, 4, "from 0 to 3 with .* got True"),
        ("1", 4, "from 0 to 3 with .* got '1'"),
        (0, 0, r"dist\.parts must be a whole number of 1 or more, got 0"),
        (0, 1.5, "1 or more, got 1.5"),
        (0, None, "1 or more, got None"),
        (
            None,
            4,
            r"dist\.parts=4 takes dist\.part=range\(4\) in a sweep, or the number of one part",
        ),
        (2, 1, r"dist\.part=2 takes dist\.parts=N, the number of parts: add it"),
    ],
)
def test_a_part_that_cannot_be_is_refused(part, parts, said):
    with pytest.raises(ValueError, match=said):
        require_part(part, parts)
    require_part(0, 1)
    require_part(None, 1)
    require_part(3, 4)


def test_the_parts_of_a_file_are_its_chosen_tensors_each_once_in_its_order(tmp_path):
    sizes = {"b": 30, "ids": 90, "a": 40, "c": 20, "left": 500, "d": 10}
    arrays = {
        name: np.ones(n, np.int64 if name == "ids" else np.float32) for name, n in sizes.items()
    }
    path = str(tmp_path / "w.npz")
    np.savez(path, **arrays)
    parts = [Npz(path, exclude="left", parts=2, part=n) for n in range(2)]
    assert [[each.name for each in part.tensors()] for part in parts] == [["a", "d"], ["b", "c"]]
    assert [[each.name for each in part.others()] for part in parts] == [["b", "c"], ["a", "d"]]
    assert [part.n_bytes() for part in parts] == [200, 200]
    for part in parts:
        assert part.skipped() == {
            "ids": "int64 is no floating-point type",
            "left": "in dist.exclude",
        }
        assert part.places() == {name: n for n, name in enumerate(sizes)}
    whole = Npz(path, exclude="left")
    assert [each.name for each in whole.tensors()] == ["b", "a", "c", "d"]
    assert (list(whole.others()), whole.places()) == ([], {})


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "w.npy", X)
    source = Npy("~/w.npy")
    assert source.path == str(tmp_path / "w.npy")
    assert np.array_equal(read(source)["w"], X)
    assert file.file_state("~/w.npy") == file.file_state(source.path)


def test_a_tilde_that_names_no_user_is_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("~a.npy", X)
    (tensor,) = Npy("~a.npy").tensors()
    assert tensor.n_bytes == X.nbytes
    with pytest.raises(ValueError, match=r"~b\.npy: no such file"):
        Npy("~b.npy")


def test_a_file_without_permission_does_exist(tmp_path, monkeypatch):
    path = write_safetensors(tmp_path / "w.safetensors", w=X)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a mode of 000 stops everybody but root
    with pytest.raises(ValueError, match=r"w\.safetensors cannot be read: Permission denied$"):
        Safetensors(path)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_list_has_one_name_for_one_dtype_and_records_keep_theirs(tmp_path, parts):
    arrays = {"w": X, "ids": np.arange(3, dtype=np.int32)}
    source = write_safetensors(tmp_path / "w.safetensors", **arrays)
    source = Safetensors(source, parts=parts, part=0)
    assert {entry.name: entry.dtype_name for entry in source.entries} == {
        "w": "float32",
        "ids": "int32",
    }
    assert source.stored_sizes()["ids"]["dtype"] == "I32"
