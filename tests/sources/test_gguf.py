import struct
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest

from quantlab.formats.element import ContradictionError
from quantlab.sources.gguf import Gguf, GgufFile
from tests.sources.samples import RNG, X, read, write_gguf


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


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = write_gguf(tmp_path / "w.gguf", w=(X, None))
    with pytest.raises(ValueError, match=r"takes the package gguf: pip install gguf ml-dtypes$"):
        Gguf(path)


KINDS = [kind for kind in gguf.quants._type_traits if kind.name != "BF16"]
WIDE = RNG.standard_normal((6, 256)).astype(np.float32)


def octets_of(kind, rows=6, columns=512):
    """Any bytes are codes of a type, and only the scales of some are not finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    octets = RNG.integers(0, 256, (rows, columns // block * size), np.uint8)
    blocks = octets.reshape(-1, size)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(octets, kind).reshape(len(blocks), -1)
    blocks[~np.isfinite(values).all(axis=1)] = 0
    return octets


def decoded(path, name="w"):
    stored = GgufFile(path).tensors[name]
    return stored.reader()(0, stored.size).reshape(stored.shape)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_decodes_as_gguf_has_it(tmp_path, kind):
    octets = octets_of(kind)
    path = write_gguf(tmp_path / "m.gguf", w=(octets, kind))
    np.testing.assert_array_equal(decoded(path), gguf.quants.dequantize(octets, kind), strict=True)
    stored = GgufFile(path).tensors["w"]
    assert (stored.shape, stored.dtype, stored.bits) == ((6, 512), kind.name, 8 * octets.nbytes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_stretch_and_any_rows_are_those_of_the_whole(tmp_path, kind):
    octets = octets_of(kind).reshape(2, 3, -1)
    path = write_gguf(tmp_path / "m.gguf", w=(octets, kind))
    stored, whole, rng = GgufFile(path).tensors["w"], decoded(path), np.random.default_rng(0)
    assert stored.shape == (2, 3, 512)
    for start, stop in np.sort(rng.integers(0, stored.size, (20, 2))):
        found = stored.reader()(start, stop + 1)
        np.testing.assert_array_equal(found, whole.reshape(-1)[start : stop + 1])
    order = rng.permutation(6)
    moved = stored.reader(order=order)(500, 2000)
    np.testing.assert_array_equal(moved, whole.reshape(6, -1)[order].reshape(-1)[500:2000])


def test_values_that_are_no_codes_are_as_they_are_and_integers_left_out(tmp_path):
    brain = WIDE.astype(ml_dtypes.bfloat16)
    path = write_gguf(
        tmp_path / "m.gguf",
        f32=(WIDE, None),
        f16=(WIDE.astype(np.float16), None),
        bf16=(brain.view(np.uint8), gguf.GGMLQuantizationType.BF16),
        vector=(WIDE[0], None),
        ids=(np.arange(8, dtype=np.int32), None),
    )
    dtypes = {name: each.dtype for name, each in GgufFile(path).tensors.items()}
    assert dtypes == {"f32": "F32", "f16": "F16", "bf16": "BF16", "vector": "F32"}
    np.testing.assert_array_equal(decoded(path, "f32"), WIDE)
    np.testing.assert_array_equal(decoded(path, "bf16"), brain.astype(np.float32))
    np.testing.assert_array_equal(decoded(path, "f16"), WIDE.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(decoded(path, "vector"), WIDE[0])


def test_a_width_contradicts_the_file(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", w=(WIDE.copy(), None))
    with pytest.raises(ContradictionError) as caught:
        GgufFile(path, n_bits=4)
    assert str(caught.value) == (
        "n_bits=4 does not go with mode=file/gguf, which has widths of its own: leave it out"
    )
    assert GgufFile(path).n_bits is None


# Files that lie.

NAME = "weight.of.no.other"


def q8_file(folder, *more):
    """Write a file of one tensor, or more of the same, 32 columns and 6 rows."""
    codes = gguf.quantize(WIDE[:, :32].copy(), gguf.GGMLQuantizationType.Q8_0)
    tensors = dict.fromkeys((NAME, *more), (codes, gguf.GGMLQuantizationType.Q8_0))
    return write_gguf(folder / "m.gguf", **tensors)


def patched(folder, place, value, kind="<Q"):
    """Overwrite a field of a tensor's description, `place` bytes after its name."""
    path = folder / "m.gguf"
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, data.index(NAME.encode()) + len(NAME) + place, value)
    path.write_bytes(data)
    return path


def require_sentence(path, said="is no gguf file, or is cut off or damaged"):
    with pytest.raises(ValueError, match=said) as caught:
        GgufFile(str(path))
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


def require_fault(path, said):
    """Require that a tensor says what is wrong with it, on either side, and the file is read."""
    (entry,) = Gguf(str(path)).entries
    assert said in entry.skip_reason
    (stored,) = GgufFile(str(path)).tensors.values()
    assert said in stored.fault
    assert not Gguf(str(path)).n_bytes()


BEYOND = "ends beyond the end of the file"
LIES = {  # n_dims (4), dimensions (8 each), type (4), offset (8)
    "too many columns": (BEYOND, 4, 2**20),
    "no multiple of a block": ("no multiple of the 32 of Q8_0", 4, 33),
    "columns that overflow": (BEYOND, 4, 2**63),
    "too many rows": (BEYOND, 12, 2**40),
    "a type that is none": ("type 200, which is not known", 20, 200, "<I"),
    "another type": (BEYOND, 20, int(gguf.GGMLQuantizationType.F32), "<I"),
    "an offset beyond the end": (BEYOND, 24, 2**40),
    "an offset that overflows": (BEYOND, 24, 2**64 - 32),
}


@pytest.mark.parametrize(("said", "lie"), [(said, lie) for said, *lie in LIES.values()], ids=LIES)
def test_a_description_that_lies_is_a_fault_of_its_tensor(tmp_path, said, lie):
    q8_file(tmp_path)
    require_fault(patched(tmp_path, *lie), said)


def test_too_many_dimensions_are_one_sentence(tmp_path):
    q8_file(tmp_path)
    require_sentence(patched(tmp_path, 0, 2**31, "<I"))


@pytest.mark.parametrize("keep", [-30, -100])
def test_a_tensor_that_is_cut_off_costs_none_before_it(tmp_path, keep):
    q8_file(tmp_path)
    path = tmp_path / "m.gguf"
    path.write_bytes(path.read_bytes()[:keep])
    require_fault(path, BEYOND)


@pytest.mark.parametrize("keep", [3, 20, 60])
def test_a_file_that_is_cut_off_is_one_sentence(tmp_path, keep):
    q8_file(tmp_path)
    path = tmp_path / "m.gguf"
    path.write_bytes(path.read_bytes()[:keep])
    require_sentence(path)
    path.write_bytes(b"")
    require_sentence(path, r"is empty \(0 bytes\)$")


def test_two_tensors_of_one_name_are_refused(tmp_path):
    other = NAME[:-1] + "?"
    q8_file(tmp_path, other)
    path = tmp_path / "m.gguf"
    path.write_bytes(path.read_bytes().replace(other.encode(), NAME.encode()))
    require_sentence(path, "duplicate|two tensors of the name")


def test_a_number_of_tensors_that_nothing_can_hold_is_one_sentence(tmp_path):
    path = tmp_path / "m.gguf"
    q8_file(tmp_path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 8, 2**60)
    path.write_bytes(data)
    require_sentence(path)


def test_a_tensor_of_no_values_costs_no_other(tmp_path):
    q8_file(tmp_path, "other")
    path = patched(tmp_path, 4, 0)
    assert decoded(path, "other").shape == (6, 32)
