import numpy as np
import pytest

from tests.sources.kinds.samples import (
    BESIDE,
    FILE,
    NORM,
    SafetensorsFile,
    decoded,
    expected,
    fault,
    opened,
    save,
    told,
)
from tests.sources.samples import write_safetensors

NAME = "model.layers.0.mlp.experts.gate_up_proj"
BLOCKS, SCALES = f"{NAME}_blocks", f"{NAME}_scales"

BAD = {
    "no scales": ({SCALES: None}, "has no scales"),
    "scales of other experts": ({SCALES: lambda s: s[:1]}, "which do not fit"),
    "scales of three blocks": ({SCALES: lambda s: s[..., :2]}, "which do not fit"),
    "scales of one dimension": ({SCALES: np.ravel}, "which do not fit"),
    "blocks of 15 bytes": ({BLOCKS: lambda b: b[..., :15]}, "which do not fit"),
    "blocks of three dimensions": ({BLOCKS: lambda b: b[0]}, "which do not fit"),
    "blocks of none": ({BLOCKS: lambda b: b[0, 0, 0, 0]}, "which do not fit"),
    "no experts": ({BLOCKS: lambda b: b[:0]}, "which do not fit"),
    "blocks of floats": ({BLOCKS: lambda b: b.astype(np.float32)}, "float32"),
    "blocks of words": ({BLOCKS: lambda b: b.astype(np.int32)}, "int32"),
    "scales of floats": ({SCALES: lambda s: s.astype(np.float32)}, "float32"),
    "scales that are no number": (
        {SCALES: lambda s: np.full(s.shape, np.nan, np.float32)},
        "float32",
    ),
}

BAD_NVFP4 = {
    "no scales": ({"weight_scale": None}, "has no weight_scale"),
    "no scale of the tensor": ({"weight_global_scale": None}, "has no weight_global_scale"),
    "two scales of the tensor": (
        {"weight_global_scale": lambda s: np.concatenate([s, s])},
        "weight_global_scale of [2], which do not fit",
    ),
    "a scale of 0": ({"weight_global_scale": lambda s: s * 0}, "weight_global_scale"),
    "bytes of one dimension": (
        {"weight_packed": np.ravel},
        "has weight of [2048] and weight_scale of [32, 8], which do not fit",
    ),
    "bytes of three": (
        {"weight_packed": lambda w: w[None]},
        "has weight of [1, 32, 64] and weight_scale of [32, 8], which do not fit",
    ),
    "other rows": (
        {"weight_packed": lambda w: w[:31]},
        "has weight of [31, 64] and weight_scale of [32, 8], which do not fit",
    ),
    "no columns": ({"weight_packed": lambda w: w[:, :0]}, "do not fit"),
    "no groups": ({"weight_scale": lambda s: s[:, :0]}, "do not fit"),
    "groups that do not divide": ({"weight_scale": lambda s: s[:, :7]}, "do not fit"),
}

CASES = [
    pytest.param(folder, *case, id=f"{folder}, {name}")
    for folder, cases in (("mxfp4", BAD), ("ct-nvfp4", BAD_NVFP4))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("folder", "changes", "why"), CASES)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, folder, changes, why):
    assert why in fault(save(tmp_path, folder, changes))


@pytest.mark.parametrize("folder", ["mxfp4", "ct-nvfp4"])
def test_no_config_is_needed(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])


@pytest.mark.parametrize("exponent", [0, 1, 254, 255])
def test_the_ends_of_the_exponents_are_no_warning(tmp_path, exponent):
    path = save(tmp_path, "mxfp4", {SCALES: lambda s: np.full_like(s, exponent)})
    values = decoded(opened(path))
    if exponent < 2:
        assert np.abs(values).max() == np.float32(6 * 2.0 ** (exponent - 127))
    elif exponent == 254:
        assert np.isinf(values).any()  # 6 times 2^127
    else:
        assert np.isnan(values).all()  # OCP MX 1.0: the scale 255 is NaN


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_name_that_ends_with_blocks_is_no_mxfp4(tmp_path, dtype):
    arrays = {"model.n_blocks": NORM.astype(dtype), BESIDE: NORM}
    file = SafetensorsFile(write_safetensors(tmp_path / FILE, **arrays))
    faults = {name: tensor.fault for name, tensor in file.tensors.items() if tensor.fault}
    assert faults == {}


@pytest.mark.parametrize("folder", ["mxfp4", "ct-nvfp4"])
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


def test_a_scale_left_out_is_told(tmp_path):
    without = {"weight_global_scale": np.ones_like}
    said = "read with another scale it fits the original far better"
    assert said in told(tmp_path, "ct-nvfp4", without)


@pytest.mark.parametrize(
    ("reading", "changes"),
    [
        ("with the halves of bytes swapped", {BLOCKS: lambda b: b << 4 | b >> 4}),
        ("with another scale", {SCALES: lambda s: s + 3}),
    ],
)
def test_words_that_are_written_otherwise_are_told(tmp_path, reading, changes):
    assert f"read {reading} it fits the original far better" in told(tmp_path, "mxfp4", changes)
