"""Importance matrices of llama.cpp, and files that lie."""

import re
import struct
import sys

import gguf
import numpy as np
import pytest

from quantlab.experiment import Experiment
from quantlab.measurement import form_of
from quantlab.sources.imatrix import Imatrix
from quantlab.sources.safetensors import Safetensors
from tests import tiny_llama
from tests.sources.samples import X, write_gguf, write_safetensors

DOWN = "blk.1.ffn_down.weight"
TOKENS = tiny_llama.CHUNKS * tiny_llama.CHUNK_SIZE


def written(folder, **arrays):
    """Write tensors of an importance matrix; a name's dots are written as double underscores."""
    named = {name.replace("__", "."): (np.float32(x), None) for name, x in arrays.items()}
    return write_gguf(folder / "imatrix.gguf", **named)


def test_importance_is_the_mean_square_of_what_llama_imatrix_sums(tmp_path):
    imatrix = Imatrix(str(tiny_llama.write_imatrix(tmp_path / "imatrix.gguf")))
    assert imatrix.name == "imatrix.gguf"
    for name, sums in tiny_llama.importance().items():
        found = imatrix.of(name, (4, sums.size))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, sums[None] / np.float32(TOKENS))


def test_a_name_of_hugging_face_is_the_same_tensor(tmp_path):
    imatrix = Imatrix(str(tiny_llama.write_imatrix(tmp_path / "imatrix.gguf")))
    known = tiny_llama.importance()
    for name, shape in tiny_llama.shapes().items():
        found, theirs = imatrix.of(name, shape), tiny_llama.gguf_name(name)
        assert (found is None) == (theirs not in known)
        if found is not None:
            np.testing.assert_array_equal(found, imatrix.of(theirs, shape))
    assert imatrix.of("nothing.of.the.kind", (4, 256)) is None


def test_counts_are_rounded_as_llama_quantize_does(tmp_path):
    path = written(tmp_path, w__in_sum2=[[6.0, 3.0]], w__counts=[[2.6]])
    np.testing.assert_array_equal(Imatrix(path).of("w", (9, 2)), [[2.0, 1.0]])


def test_each_expert_has_a_row_and_all_are_1_where_it_saw_no_token(tmp_path):
    path = written(
        tmp_path, w__in_sum2=[[6.0, 0.0], [8.0, 2.0], [0.0, 0.0]], w__counts=[[3], [2], [0]]
    )
    found = Imatrix(path).of("w", (3, 5, 2))
    np.testing.assert_array_equal(found, [[2.0, 0.0], [4.0, 1.0], [1.0, 1.0]])


def test_matrices_that_see_one_input_may_share_a_row(tmp_path):
    path = written(tmp_path, w__in_sum2=[[6.0, 3.0, 9.0, 12.0]], w__counts=[[3]])
    np.testing.assert_array_equal(Imatrix(path).of("w", (2, 7, 2)), [[2.0, 1.0], [3.0, 4.0]])


def test_a_vector_has_no_columns(tmp_path):
    path = written(tmp_path, w__in_sum2=[[6.0, 3.0]], w__counts=[[3]])
    assert Imatrix(path).of("w", (2,)) is None


@pytest.mark.parametrize("shape", [(4, 3), (5, 2), (4, 2), (3, 4, 2)])
def test_importance_of_another_model_is_refused(tmp_path, shape):
    path = written(tmp_path, w__in_sum2=np.ones((2, 2)), w__counts=np.ones((2, 1)))
    with pytest.raises(ValueError, match="it is of another model") as caught:
        Imatrix(path).of("w", shape)
    assert str(caught.value) == (
        f"{path} has importance of [2, 2] for tensor 'w', whose shape is {list(shape)}: "
        "it is of another model"
    )


def test_a_changed_file_is_read_again(tmp_path):
    imatrix = Imatrix(written(tmp_path, w__in_sum2=[[6.0]], w__counts=[[3]]))
    assert imatrix.of("w", (2, 1)) == 2
    written(tmp_path, w__in_sum2=[[6.0]], w__counts=[[1]], more__in_sum2=[[1]], more__counts=[[1]])
    assert imatrix.of("w", (2, 1)) == 6


def legacy(entries, *, end=b""):
    """Return an imatrix.dat of entries: a name, how many calls, mean squares."""
    octets = struct.pack("<i", len(entries))
    for name, n_calls, mean in entries:
        values = (np.float32(mean) * np.float32(n_calls or 1)).tobytes()
        octets += struct.pack("<i", len(name)) + name.encode()
        octets += struct.pack("<ii", n_calls, len(values) // 4) + values
    return octets + end


@pytest.mark.parametrize("end", [b"", struct.pack("<ii", 7, 4) + b"text"], ids=["", "chunks"])
def test_an_imatrix_dat_is_that_of_the_gguf(tmp_path, end):
    importance = {name: sums / TOKENS for name, sums in tiny_llama.importance().items()}
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy([(name, 8, mean) for name, mean in importance.items()], end=end))
    older, newer = Imatrix(str(path)), Imatrix(str(tiny_llama.write_imatrix(tmp_path / "i.gguf")))
    for name, shape in tiny_llama.shapes().items():
        found = older.of(name, shape)
        if newer.of(name, shape) is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found, newer.of(name, shape), strict=True)


def test_an_imatrix_dat_has_all_experts_in_one_row_and_may_have_no_calls(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy([("w", 3, [2.0, 1.0, 3.0, 4.0]), ("v", 0, [5.0, 6.0])]))
    np.testing.assert_array_equal(Imatrix(str(path)).of("w", (2, 7, 2)), [[2.0, 1.0], [3.0, 4.0]])
    np.testing.assert_array_equal(Imatrix(str(path)).of("v", (7, 2)), [[5.0, 6.0]])


def test_a_tensor_of_which_no_input_matters_is_remarked(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy([("zeros", 3, np.zeros(32)), ("ones", 3, np.ones(32))]))
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    source = Safetensors(write_safetensors(tmp_path / "x.safetensors", zeros=x, ones=x))
    outcome = Experiment(
        source, form_of("sym", 8), 10, 1e-12, 1, importance=Imatrix(str(path))
    ).run()
    assert outcome.tensors["zeros"]["remark"] == (
        "imatrix.dat has an importance of 0 for every input of it"
    )
    assert "remark" not in outcome.tensors["ones"]


def bad_legacy(folder):
    """Yield a path of an imatrix.dat, and what is said of it."""
    good = legacy([("a", 2, [1.0, 2.0]), ("b", 2, [1.0, 2.0])])
    damaged = "is no imatrix file, or is cut off or damaged"
    cases = {f"cut{n}": (good[:n], damaged) for n in range(1, len(good))}
    cases |= {
        "none": (struct.pack("<i", 0), "has 0 entries: it is no importance matrix"),
        "negative": (legacy([("a", 2, [-1.0])]), "has sums of a that are negative"),
        "nan": (legacy([("a", 2, [np.nan])]), "has sums of a that are negative"),
        "name": (struct.pack("<ii", 1, 2**31 - 1), damaged),
        "values": (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1), damaged),
        "no values": (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 0), damaged),
        "no text": (struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 1), damaged),
    }
    for name, (octets, sentence) in cases.items():
        path = folder / f"{name}.dat"
        path.write_bytes(octets)
        yield path, sentence


def test_a_bad_imatrix_dat_is_one_sentence_that_names_it(tmp_path):
    for path, sentence in bad_legacy(tmp_path):
        require_sentence(path, sentence)


def bad(folder):
    """Yield a path, and what is said of it."""
    good = tiny_llama.write_imatrix(folder / "good.gguf").read_bytes()
    for size in (3, 40, len(good) // 2, len(good) - 100):
        path = folder / f"cut{size}.gguf"
        path.write_bytes(good[:size])
        yield path, "is no imatrix file, or is cut off or damaged"
    (folder / "empty.gguf").touch()
    yield folder / "empty.gguf", "is empty (0 bytes)"
    (folder / "junk.dat").write_bytes(b"nothing of the kind" * 99)
    yield folder / "junk.dat", "is no imatrix file, or is cut off or damaged"
    yield folder, "is a directory: name the imatrix file in it"
    yield folder / "none.gguf", "none.gguf: no such file"
    yield write_gguf(folder / "model.gguf", w=(X, None)), "has no tensor NAME.in_sum2: it is no imp"


BAD_ARRAYS = [
    ({"w__in_sum2": [[1.0]]}, "has no w.counts that goes with w.in_sum2"),
    ({"w__in_sum2": [[1.0]], "w__counts": [[1], [2]]}, "has no w.counts that goes with w.in_sum2"),
    ({"w__in_sum2": np.ones((2, 2, 2)), "w__counts": np.ones(4)}, "has no w.counts that goes"),
    (
        {"w__in_sum2": [[1.0, -1.0]], "w__counts": [[1]]},
        "has sums of squares of w that are negative",
    ),
    (
        {"w__in_sum2": [[1.0, np.nan]], "w__counts": [[1]]},
        "has sums of squares of w that are negative",
    ),
    (
        {"w__in_sum2": [[1e30, 1.0]], "w__counts": [[1]]},
        "has sums of squares of w that are negative",
    ),
    (
        {"w__in_sum2": [[np.inf, 1.0]], "w__counts": [[1]]},
        "has sums of squares of w that are negative",
    ),
    (
        {"w__in_sum2": [[1.0]], "w__counts": [[np.nan]]},
        "has sums of squares of w that are negative",
    ),
]


def require_sentence(path, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Imatrix(str(path))
    assert str(caught.value).startswith((f"{path} ", f"{path}: "))
    assert "\n" not in str(caught.value)


def test_a_bad_file_is_one_sentence_that_names_it(tmp_path):
    for path, said in bad(tmp_path):
        require_sentence(path, said)


@pytest.mark.parametrize(("arrays", "said"), BAD_ARRAYS)
def test_sums_and_counts_that_make_no_sense_are_one_sentence(tmp_path, arrays, said):
    require_sentence(written(tmp_path, **arrays), said)


def test_sums_in_codes_are_no_sums(tmp_path):
    q8 = gguf.GGMLQuantizationType.Q8_0
    codes = gguf.quantize(np.ones((1, 32), np.float32), q8)
    arrays = {"w.in_sum2": (codes, q8), "w.counts": (np.ones((1, 1), np.float32), None)}
    require_sentence(write_gguf(tmp_path / "codes.gguf", **arrays), "in_sum2")


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    path = written(tmp_path, w__in_sum2=[[6.0]], w__counts=[[3]])
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"takes the package gguf: pip install gguf$"):
        Imatrix(path)
