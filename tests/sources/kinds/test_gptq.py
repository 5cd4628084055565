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

KINDS = [
    "gptq-2-sym", "gptq-3-sym", "gptq-3-asym-v2", "gptq-4-sym", "gptq-4-asym-order", "gptq-4-v2",
    "gptq-8-sym",
]  # fmt: skip

BAD = {
    "no scales": ({"scales": None}, "has no scales"),
    "no zero points": ({"qzeros": None}, "has no qzeros"),
    "words of other outputs": ({"qweight": lambda w: w[:, :31]}, "which do not fit"),
    "no words": ({"qweight": lambda w: w[:0]}, "do not fit"),
    "no words a row": ({"qweight": lambda w: w[:, :0]}, "which do not fit"),
    "no scales at all": ({"scales": lambda s: s[:0]}, "do"),
    "no groups": ({"scales": lambda s: s[:0], "qzeros": lambda z: z[:0]}, "do"),
    "groups that do not divide": (
        {"scales": lambda s: s[:3], "qzeros": lambda z: z[:3], "g_idx": None},
        "scales of [3, 32], which do not fit",
    ),
    "zero points of other groups": ({"qzeros": lambda z: z[:3]}, "which do not fit"),
    "zero points of another width": ({"qzeros": lambda z: z[:, :3]}, "do not"),
    "zero points of 1 bit": ({"qzeros": lambda z: z[:, :1]}, "which do not fit"),
    "words of one dimension": ({"qweight": np.ravel}, "no matrix"),
    "words of three": ({"qweight": lambda w: w[None]}, "no matrix"),
    "words of none": ({"qweight": lambda w: w[0, 0]}, "no matrix"),
    "scales of none": ({"scales": lambda s: s[0, 0]}, "no matrix"),
    "a g_idx beyond the groups": ({"g_idx": lambda g: g + 1}, "names no group of 4"),
    "a g_idx far below": ({"g_idx": lambda g: g - 5}, "names no group of 4"),
    "a short g_idx": ({"g_idx": lambda g: g[:-1]}, "names no group of 4"),
    "an empty g_idx": ({"g_idx": lambda g: g[:0]}, "names no group of 4"),
    "a g_idx of floats": ({"g_idx": lambda g: g.astype(np.float32)}, "g_idx"),
    "a g_idx of NaN": ({"g_idx": lambda g: np.full(g.shape, np.nan, np.float32)}, "g_idx"),
    "a g_idx of truths": ({"g_idx": lambda g: g > 1}, "g_idx"),
    "words of floats": ({"qweight": lambda w: w.astype(np.float32)}, "float32"),
    "words of bytes": ({"qweight": lambda w: w.astype(np.int8)}, "do not fit"),
    "words of 64 bits": ({"qweight": lambda w: w.astype(np.int64)}, "int64"),
    "zero points of bytes": ({"qzeros": lambda z: z.astype(np.uint8)}, "do not fit"),
    "zero points of floats": ({"qzeros": lambda z: np.ones(z.shape, np.float16)}, "float16"),
    "scales of integers": ({"scales": lambda s: s.view(np.int16)}, "int16"),
}


@pytest.mark.parametrize(("changes", "why"), BAD.values(), ids=BAD)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, changes, why):
    assert why in fault(save(tmp_path, "gptq-4-sym", changes))


@pytest.mark.parametrize("folder", KINDS)
def test_without_a_config_the_words_decode_as_version_1(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    read = (
        tensor.decode_rows
        if "v2" not in folder
        else tensor.readings["with zero points as they are (gptq_v2)"]
    )
    whole = tensor.reader(read)(0, tensor.size).reshape(tensor.shape)
    np.testing.assert_array_equal(whole, expected(folder)[1])


def test_without_a_g_idx_groups_follow_each_other(tmp_path):
    tensor = opened(save(tmp_path, "gptq-4-sym", {"g_idx": None}))
    np.testing.assert_array_equal(decoded(tensor), expected("gptq-4-sym")[1])


def test_tensors_win_where_the_config_says_something_else(tmp_path):
    tensor = opened(save(tmp_path, "gptq-4-sym", config=quantization(bits=8, group_size=128)))
    np.testing.assert_array_equal(decoded(tensor), expected("gptq-4-sym")[1])
    assert tensor.remark == (
        "config.json says bits 8, the tensors 4; config.json says group_size 128, the tensors 32"
    )


@pytest.mark.parametrize("folder", KINDS)
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


V1 = "read with zero points stored less 1 (gptq_v1) it fits the original far better"
V2 = "read with zero points as they are (gptq_v2) it fits the original far better"


@pytest.mark.parametrize(
    ("folder", "version", "reading"),
    [
        ("gptq-4-v2", "gptq", V2),
        ("gptq-3-asym-v2", "gptq", V2),
        ("gptq-4-sym", "gptq_v2", V1),
        ("gptq-4-asym-order", "gptq_v2", V1),
        ("gptq-8-sym", "gptq_v2", V1),
    ],
)
def test_zero_points_of_the_other_version_are_told(tmp_path, folder, version, reading):
    assert reading in told(tmp_path, folder, config=quantization(checkpoint_format=version))
