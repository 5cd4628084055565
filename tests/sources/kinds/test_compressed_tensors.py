import numpy as np
import pytest

from tests.sources.kinds.samples import (
    decoded,
    expected,
    fault,
    opened,
    save,
    told,
)

KINDS = ["ct-pack-3-sym", "ct-pack-4-sym", "ct-pack-4-asym", "ct-pack-8-channel", "ct-nvfp4"]


def shape(*numbers):
    return {"weight_shape": lambda _: np.array(numbers, np.int64)}


BAD = {
    "no scales": ({"weight_scale": None}, "has no weight_scale"),
    "no shape": ({"weight_shape": None}, "has no weight_shape"),
    "a shape of other rows": (shape(64, 128), "for the shape [64, 128], which do not fit"),
    "a shape of few columns": (shape(32, 8), "which do not fit"),
    "a shape of many columns": (shape(32, 2**40), "which do not fit"),
    "a shape of nothing": (shape(32, 0), "which do not fit"),
    "a shape below nothing": (shape(-32, -128), "which do not fit"),
    "a shape of one number": (shape(4096), "a weight_shape of 1 numbers"),
    "a shape of three": (shape(2, 16, 128), "a weight_shape of 3 numbers"),
    "an empty shape": (shape(), "a weight_shape of 0 numbers"),
    "a shape of floats": (
        {"weight_shape": lambda s: s.astype(np.float32) + np.float32(0.5)},
        "float32",
    ),
    "a shape of NaN": (
        {"weight_shape": lambda s: np.full(s.shape, np.nan, np.float32)},
        "float32",
    ),
    "words of other rows": ({"weight_packed": lambda w: w[:31]}, "which do not fit"),
    "words of another width": ({"weight_packed": lambda w: w[:, :15]}, "do not"),
    "words of one dimension": (
        {"weight_packed": np.ravel},
        "has weight_packed of [512], which is no matrix",
    ),
    "words of three": (
        {"weight_packed": lambda w: w[None]},
        "has weight_packed of [1, 32, 16], which is no matrix",
    ),
    "scales of one dimension": (
        {"weight_scale": lambda s: s[:, 0]},
        "has weight_scale of [32], which is no",
    ),
    "scales of no groups": ({"weight_scale": lambda s: s[:, :0]}, "do not fit"),
    "scales of other rows": ({"weight_scale": lambda s: s[:31]}, "which do not fit"),
    "groups that do not divide": ({"weight_scale": lambda s: s[:, :3]}, "do not fit"),
    "zero points that do not fit": (
        {"weight_zero_point": lambda _: np.zeros((3, 4), np.int32)},
        "has weight_zero_point of [3, 4] and weight_scale of [32, 4], which do not fit",
    ),
    "zero points of floats": (
        {"weight_zero_point": lambda _: np.full((32, 4), np.nan, np.float32)},
        "float32",
    ),
    "a g_idx beyond the groups": (
        {"weight_g_idx": lambda _: np.full(128, 4, np.int32)},
        "names no group",
    ),
    "a g_idx below": ({"weight_g_idx": lambda _: np.full(128, -1, np.int32)}, "names no group"),
    "a short g_idx": ({"weight_g_idx": lambda _: np.zeros(127, np.int32)}, "names no group"),
    "a g_idx of floats": ({"weight_g_idx": lambda _: np.zeros(128, np.float32)}, "g_idx"),
    "words of floats": ({"weight_packed": lambda w: w.astype(np.float32)}, "float32"),
    "words of signed bytes": ({"weight_packed": lambda w: w.astype(np.int8)}, "int8"),
    "words of 64 bits": ({"weight_packed": lambda w: w.astype(np.int64)}, "int64"),
    "scales of integers": ({"weight_scale": lambda s: s.view(np.int16)}, "int16"),
}

BAD_FP4 = {
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


@pytest.mark.parametrize(("changes", "why"), BAD.values(), ids=BAD)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, changes, why):
    assert why in fault(save(tmp_path, "ct-pack-4-sym", changes))


@pytest.mark.parametrize(("changes", "why"), BAD_FP4.values(), ids=BAD_FP4)
def test_parts_that_make_no_nvfp4_are_a_fault(tmp_path, changes, why):
    assert why in fault(save(tmp_path, "ct-nvfp4", changes))


@pytest.mark.parametrize("folder", KINDS)
def test_shapes_alone_tell_the_settings(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])


def test_a_shape_may_stand_in_a_column(tmp_path):
    tensor = opened(save(tmp_path, "ct-pack-4-sym", {"weight_shape": lambda s: s[:, None]}))
    np.testing.assert_array_equal(decoded(tensor), expected("ct-pack-4-sym")[1])


def test_a_g_idx_names_the_group_of_each_column(tmp_path):
    of = np.random.default_rng(0).permutation(np.arange(128, dtype=np.int32) // 32)
    plain = decoded(opened(save(tmp_path, "ct-pack-4-sym", {"weight_scale": np.ones_like})))
    scales = {"weight_g_idx": lambda _: of}
    path = save(tmp_path, "ct-pack-4-sym", scales)
    tensor = opened(path)
    scale = next(part.array for part in tensor.parts if part.name.endswith("weight_scale"))
    np.testing.assert_array_equal(
        decoded(tensor), (plain.astype(np.float16) * scale[:, of]).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("weights", "remark"),
    [
        ({"num_bits": 8}, "config.json says num_bits 8, the tensors 4"),
        ({"group_size": 64}, "config.json says group_size 64, the tensors 32"),
    ],
)
def test_tensors_win_where_the_config_says_something_else(tmp_path, weights, remark):
    def changed(config):
        config["quantization_config"]["config_groups"]["group_0"]["weights"] |= weights
        return config

    tensor = opened(save(tmp_path, "ct-pack-4-sym", config=changed))
    np.testing.assert_array_equal(decoded(tensor), expected("ct-pack-4-sym")[1])
    assert tensor.remark == remark


@pytest.mark.parametrize("groups", [None, [], {}, {"group_0": 3}, {"group_0": {"weights": []}}])
def test_groups_of_a_config_may_be_anything(tmp_path, groups):
    def changed(config):
        return config | {
            "quantization_config": config["quantization_config"] | {"config_groups": groups}
        }

    tensor = opened(save(tmp_path, "ct-pack-4-sym", config=changed))
    np.testing.assert_array_equal(decoded(tensor), expected("ct-pack-4-sym")[1])


@pytest.mark.parametrize("folder", KINDS)
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


def test_a_scale_left_out_is_told(tmp_path):
    without = {"weight_global_scale": np.ones_like}
    said = "read with another scale it fits the original far better"
    assert said in told(tmp_path, "ct-nvfp4", without)
