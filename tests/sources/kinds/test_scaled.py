import json

import numpy as np
import pytest

from quantlab.sources.safetensors import SafetensorsFile
from tests.sources.kinds.samples import (
    BESIDE,
    FILE,
    LAYER,
    NORM,
    decoded,
    expected,
    fault,
    opened,
    quantization,
    read_metadata,
    save,
    told,
    vector,
    write,
)

KINDS = [
    "fp8-tensor", "fp8-rows", "fp8-blocks", "fp8-blocks-partial", "fp8-blocks-ue8m0",
    "ct-fp8-channel", "ct-fp8-tensor", "ct-int8", "ct-naive-asym", "bnb-int8",
]  # fmt: skip
KEYS = ("weight_scale", "weight_scale_inv", "SCB")


def scale_of(folder):
    return next(key for key in vector(folder)[0] if key in KEYS)


BAD = {
    "scales of other rows": ("fp8-rows", {"weight_scale": lambda s: s[:23]}, "do not fit"),
    "no scale in it": ("fp8-rows", {"weight_scale": lambda s: s[:0]}, "do not fit"),
    "no columns of scales": ("fp8-rows", {"weight_scale": lambda s: s[:, :0]}, "do not fit"),
    "scales of three dimensions": ("fp8-rows", {"weight_scale": lambda s: s[None]}, "do not fit"),
    "codes of one dimension": ("fp8-rows", {"weight": np.ravel}, "no matrix"),
    "codes of three": ("fp8-rows", {"weight": lambda w: w[None]}, "do not fit"),
    "codes of none": ("fp8-tensor", {"weight": lambda w: w[0, 0]}, "no matrix"),
    "blocks that do not fit": (
        "fp8-blocks",
        {"weight_scale_inv": lambda _: np.ones((60, 3), np.float32)},
        "weight of [64, 192] and scale of [60, 3], which do not fit",
    ),
    "too many blocks": ("fp8-tensor", {"weight_scale": lambda _: np.ones((97, 5), "f4")}, "do not"),
    "zero points of other rows": (
        "ct-naive-asym",
        {"weight_zero_point": lambda z: z[:31]},
        "has zero_point of [31, 1] and scale of [32, 1]",
    ),
    "zero points of floats": (
        "ct-naive-asym",
        {"weight_zero_point": lambda z: np.full(z.shape, np.nan, np.float32)},
        "float32",
    ),
    "scales of integers": ("fp8-rows", {"weight_scale": lambda s: s.astype(np.int32)}, "int32"),
    "scales of truths": ("fp8-rows", {"weight_scale": lambda s: s > 0}, "bool"),
}


@pytest.mark.parametrize(("folder", "changes", "why"), BAD.values(), ids=BAD)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, folder, changes, why):
    assert why in fault(save(tmp_path, folder, changes))


@pytest.mark.parametrize("part", ["weight", "weight_scale"])
def test_an_empty_matrix_decodes_to_nothing_or_is_a_fault(tmp_path, part):
    for cut in (lambda a: a[:0], lambda a: a[:, :0]):
        fault(save(tmp_path, "fp8-rows", {part: cut}))


@pytest.mark.parametrize("folder", [each for each in KINDS if each != "fp8-blocks"])
def test_shapes_alone_tell_the_blocks(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])
    assert tensor.remark is None


BLOCKS = {
    "others": [64, 64],
    "of nothing": [0, 0],
    "below nothing": [-32, -64],
    "of one number": [128],
    "of three": [1, 1, 1],
    "of text": "128x128",
    "of texts": ["a", "b"],
    "in halves": [32.5, 64.5],
    "a number": 128,
    "a mapping": {"rows": 128},
}


@pytest.mark.parametrize("said", BLOCKS.values(), ids=BLOCKS)
def test_blocks_that_the_config_has_wrong_are_told(tmp_path, said):
    config = quantization(weight_block_size=said)
    tensor = opened(save(tmp_path, "fp8-blocks-partial", config=config))
    np.testing.assert_array_equal(decoded(tensor), expected("fp8-blocks-partial")[1])
    assert tensor.remark == (f"config.json says weight_block_size {said}, the tensors [128, 128]")


def test_codes_without_a_scale_are_as_they_are(tmp_path):
    tensor = opened(save(tmp_path, "fp8-rows", {"weight_scale": None}))
    codes = vector("fp8-rows")[0]["weight"].astype(np.float32)
    assert tensor.name == f"{LAYER}.weight"
    np.testing.assert_array_equal(decoded(tensor), codes)


@pytest.mark.parametrize("folder", KINDS)
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


@pytest.mark.parametrize("folder", KINDS)
def test_a_scale_left_out_is_told(tmp_path, folder):
    x = expected(folder)[1]
    step = np.median(vector(folder)[0][scale_of(folder)].astype(np.float32))
    one = {scale_of(folder): lambda s: (s.astype(np.float32) / step).astype(s.dtype)}
    said = "read with another scale it fits the original far better"
    assert said in told(tmp_path, folder, one, x=x)


def test_a_square_weight_that_is_transposed_is_told(tmp_path):
    square = {"weight": lambda w: w[:, :24]}
    x = np.ascontiguousarray(decoded(opened(save(tmp_path, "fp8-rows", square))).T)
    said = "read transposed it fits the original far better"
    assert said in told(tmp_path, "fp8-rows", square, x=x)


# torchao.
NAME = f"{LAYER}.weight"


def changed(tmp_path, folder, parts=None, **fields):
    """Save a vector whose parts and fields of the metadata are changed; return its fault."""
    stored, _ = vector(folder)
    stored |= {f"_weight_{key}": array for key, array in (parts or {}).items()}
    metadata = read_metadata(folder)
    about = json.loads(metadata[NAME])
    about |= {key: value for key, value in fields.items() if key.startswith("_")}
    if isinstance(about["_data"], dict):
        about["_data"] |= {key: value for key, value in fields.items() if key[0] != "_"}
    metadata[NAME] = fields.get("text", json.dumps(about))
    path = write(tmp_path / FILE, stored | {BESIDE: NORM}, metadata)
    return SafetensorsFile(path).tensors[NAME].find_fault()


FAULTS = {
    "a type that is not decoded": ({"_type": "Int4TilePackedTo4dTensor"}, "is a Int4TilePackedTo"),
    "no type": ({"_type": None}, "has no class in the metadata of its file"),
    "no text": ({"text": "{"}, "has no class in the metadata of its file"),
    "a list": ({"text": "[1]"}, "has no class in the metadata of its file"),
    "data that are none": ({"_data": 3}, "cannot be decoded (AttributeError"),
    "no blocks": ({"block_size": None}, "which do not fit"),
    "blocks of 0": ({"block_size": [0, 64]}, "which do not fit"),
    "blocks that divide nothing": ({"block_size": [1, 7]}, "which do not fit"),
    "blocks of one axis": ({"block_size": [64]}, "which do not fit"),
    "other blocks": ({"block_size": [1, 32]}, "which do not fit"),
    "scales of others": ({"parts": {"scale": np.ones((3, 3), np.float32)}}, "which do not fit"),
    "scales of integers": ({"parts": {"scale": np.ones((32, 4), np.int8)}}, "has scale of int8"),
    "zero points of others": ({"parts": {"zero_point": np.ones(3, np.int8)}}, "which do not fit"),
    "codes of words": ({"parts": {"qdata": np.ones((32, 64), np.int32)}}, "has qdata of int32"),
    "int4 of these": ({"_type": "Int4Tensor"}, "has zero_point of int8"),
    "factors of other inputs": (
        {"parts": {"act_pre_scale": np.ones(3, np.float32)}},
        "has qdata of [32, 256] and act_pre_scale of [3], which do not fit",
    ),
}


@pytest.mark.parametrize(("changes", "why"), FAULTS.values(), ids=FAULTS)
def test_parts_and_metadata_that_make_no_tensor_are_a_fault(tmp_path, changes, why):
    fault = changed(tmp_path, "tao-int4", **changes)
    assert fault is not None
    assert why in fault
    assert fault.isprintable()


def test_a_vector_that_is_not_changed_has_no_fault(tmp_path):
    assert changed(tmp_path, "tao-int4") is None


def test_int4_of_experts_and_inputs_that_are_multiplied_first(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (2, 6, 64)).astype(np.int8)
    octets = codes.view(np.uint8)
    scale, zero = rng.standard_normal((2, 2, 2, 6)).astype(np.float32)
    factors = rng.random(64, np.float32)
    stem = "model.layers.0.mlp.experts._gate_up_proj_"
    parts = {
        f"{stem}qdata": octets[..., ::2] & 15 | octets[..., 1::2] << 4,
        f"{stem}scale": scale,
        f"{stem}zero_point": zero,
        f"{stem}act_pre_scale": factors,
    }
    name = "model.layers.0.mlp.experts.gate_up_proj"
    about = {"_type": "Int4Tensor", "_data": {"block_size": [1, 1, 32], "shape": [2, 6, 64]}}
    path = write(tmp_path / FILE, parts, {name: json.dumps(about)})
    (tensor,) = SafetensorsFile(path).tensors.values()
    assert (tensor.name, tensor.shape) == (name, codes.shape)
    spread = [np.repeat(values.swapaxes(1, 2), 32, axis=2) for values in (scale, zero)]
    expected = (codes.astype(np.float32) * spread[0] + spread[1]) * factors
    np.testing.assert_array_equal(decoded(tensor), expected)
