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
    read_metadata,
    vector,
    write,
)

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
