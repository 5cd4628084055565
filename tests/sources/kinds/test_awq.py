import numpy as np
import pytest

from tests.sources.kinds.samples import (
    decoded,
    expected,
    fault,
    opened,
    quantization,
    save,
    told,
)


def linear(words):
    """Return words with their codes in the order of outputs."""
    codes = np.stack([words.view(np.uint32) >> 4 * place & 15 for place in range(8)], axis=-1)
    shifts = 4 * np.array([0, 2, 4, 6, 1, 3, 5, 7], np.uint32)  # the output of each place
    return (codes << shifts).sum(axis=-1, dtype=np.uint32).view(np.int32)


BAD = {
    "no scales": ({"scales": None}, "has no scales"),
    "no zero points": ({"qzeros": None}, "has no qzeros"),
    "words of another width": ({"qweight": lambda w: w[:, :3]}, "which do not fit"),
    "no words": ({"qweight": lambda w: w[:0]}, "which do not fit"),
    "no words a row": ({"qweight": lambda w: w[:, :0]}, "which do not fit"),
    "no groups": ({"scales": lambda s: s[:0], "qzeros": lambda z: z[:0]}, "do not fit"),
    "groups that do not divide": ({"qweight": lambda w: w[:251]}, "do not fit"),
    "more groups than inputs": ({"qweight": lambda w: w[:4]}, "do not fit"),
    "zero points of other groups": ({"qzeros": lambda z: z[:4]}, "which do not fit"),
    "words of one dimension": ({"qweight": np.ravel}, "no matrix"),
    "words of three": ({"qweight": lambda w: w[None]}, "no matrix"),
    "scales of none": ({"scales": lambda s: s[0, 0]}, "no matrix"),
    "scales of one dimension": ({"scales": lambda s: s[0]}, "no matrix"),
    "words of floats": ({"qweight": lambda w: w.astype(np.float32)}, "float32"),
    "words of bytes": ({"qweight": lambda w: w.astype(np.int8)}, "int8"),
    "words of 64 bits": ({"qweight": lambda w: w.astype(np.int64)}, "int64"),
    "zero points of floats": ({"qzeros": lambda z: np.ones(z.shape, np.float16)}, "float16"),
    "scales of integers": ({"scales": lambda s: s.view(np.int16)}, "int16"),
}


@pytest.mark.parametrize(("changes", "why"), BAD.values(), ids=BAD)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, changes, why):
    assert why in fault(save(tmp_path, "awq-g32", changes))


@pytest.mark.parametrize("folder", ["awq-g32", "awq-g128"])
def test_shapes_alone_tell_the_settings(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])
    assert tensor.remark is None


def test_unsigned_words_and_scattered_rows_are_the_same(tmp_path):
    unsigned = {key: lambda words: words.view(np.uint32) for key in ("qweight", "qzeros")}
    tensor = opened(save(tmp_path, "awq-g32", unsigned))
    values = expected("awq-g32")[1]
    np.testing.assert_array_equal(decoded(tensor), values)
    rows = np.array([9, 0, 17, 9])
    np.testing.assert_array_equal(tensor.decode_rows(rows), values[rows])


def test_tensors_win_where_the_config_says_something_else(tmp_path):
    tensor = opened(save(tmp_path, "awq-g32", config=quantization(bits=8, group_size=64)))
    np.testing.assert_array_equal(decoded(tensor), expected("awq-g32")[1])
    assert tensor.remark == (
        "config.json says bits 8, the tensors 4; config.json says group_size 64, the tensors 32"
    )


@pytest.mark.parametrize("folder", ["awq-g32", "awq-g128"])
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


READ = {
    "with codes in the order of outputs": {"qweight": linear, "qzeros": linear},
    "with another scale": {"scales": lambda s: s * np.float16(8)},
}


@pytest.mark.parametrize(("reading", "changes"), READ.items(), ids=READ)
def test_words_that_are_written_otherwise_are_told(tmp_path, reading, changes):
    assert f"read {reading} it fits the original far better" in told(tmp_path, "awq-g32", changes)


def test_zero_points_stored_less_1_are_told(tmp_path):
    reading = "with zero points stored less 1"
    tensor = opened(save(tmp_path, "awq-g32"))
    x = tensor.reader(tensor.readings[reading])(0, tensor.size).reshape(tensor.shape)
    assert np.array_equal(np.unique(x - decoded(tensor) < 0), [True])
    assert f"read {reading} it fits the original far better" in told(tmp_path, "awq-g32", x=x)
