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

AWQ = ["awq-g32", "awq-g128"]
GPTQ = [
    "gptq-2-sym", "gptq-3-sym", "gptq-3-asym-v2", "gptq-4-sym", "gptq-4-asym-order", "gptq-4-v2",
    "gptq-8-sym",
]  # fmt: skip
MLX = [f"mlx-{bits}-{kind}" for bits in (2, 3, 4, 5, 6, 8) for kind in ("float16", "bfloat16")]
MLX_MODES = ["mlx-mxfp4", "mlx-mxfp8", "mlx-nvfp4"]
EITHER = {"mlx-6-float16", "mlx-6-bfloat16"}  # in shapes of 3 bits too
COMPRESSED = ["ct-pack-3-sym", "ct-pack-4-sym", "ct-pack-4-asym", "ct-pack-8-channel"]


def linear(words):
    """Return words with their codes in the order of outputs."""
    codes = np.stack([words.view(np.uint32) >> 4 * place & 15 for place in range(8)], axis=-1)
    shifts = 4 * np.array([0, 2, 4, 6, 1, 3, 5, 7], np.uint32)  # the output of each place
    return (codes << shifts).sum(axis=-1, dtype=np.uint32).view(np.int32)


def shape(*numbers):
    return {"weight_shape": lambda _: np.array(numbers, np.int64)}


BAD_AWQ = {
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

BAD_GPTQ = {
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

BAD_COMPRESSED = {
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

BAD_MLX = {
    "no biases": ({"biases": None}, "has no biases"),
    "biases of other groups": ({"biases": lambda b: b[:, :1]}, "which do not fit"),
    "other rows": ({"weight": lambda w: w[:15]}, "which do not fit"),
    "words of one dimension": ({"weight": np.ravel}, "which do not fit"),
    "words of none": ({"weight": lambda w: w[0, 0]}, "which do not fit"),
    "scales of none": (
        {"scales": lambda s: s[0, 0], "biases": lambda b: b[0, 0]},
        "which do not fit",
    ),
    "words of three": ({"weight": lambda w: w[None]}, "which do not fit"),
    "no groups": (
        {"scales": lambda s: s[:, :0], "biases": lambda b: b[:, :0]},
        "do not fit",
    ),
    "no words a row": ({"weight": lambda w: w[:, :0]}, "do not fit"),
    "a width there is not": ({"weight": lambda w: w[:, :14]}, "which no width and group size make"),
    "scales of integers": (
        {"scales": lambda s: s.view(np.int16), "biases": lambda b: b.view(np.int16)},
        "int16",
    ),
}

BAD_MLX_FLOATS = {
    "other rows": ({"weight": lambda w: w[:15]}, "has weight of [15, 16] and scales of [16, 4]"),
    "no groups": ({"scales": lambda s: s[:, :0]}, "do not fit"),
    "no words a row": ({"weight": lambda w: w[:, :0]}, "do not fit"),
    "words of none": ({"weight": lambda w: w[0, 0]}, "has weight of []"),
    "scales of none": ({"scales": lambda s: s[0, 0]}, "scales of []"),
    "groups of no mode": ({"scales": lambda s: s[:, :1]}, "and scales of [16, 1]"),
    "scales of one dimension": ({"scales": np.ravel}, "and scales of [64]"),
}

BAD = [
    pytest.param(folder, *case, id=f"{folder}, {name}")
    for folder, cases in (
        ("awq-g32", BAD_AWQ),
        ("gptq-4-sym", BAD_GPTQ),
        ("ct-pack-4-sym", BAD_COMPRESSED),
        ("mlx-4-float16", BAD_MLX),
        ("mlx-mxfp4", BAD_MLX_FLOATS),
    )
    for name, case in cases.items()
]


@pytest.mark.parametrize(("folder", "changes", "why"), BAD)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, folder, changes, why):
    assert why in fault(save(tmp_path, folder, changes))


@pytest.mark.parametrize("folder", [*AWQ, *GPTQ, *COMPRESSED, *MLX, *MLX_MODES])
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


@pytest.mark.parametrize("folder", [*AWQ, *COMPRESSED, *sorted({*MLX, *MLX_MODES} - EITHER)])
def test_shapes_alone_tell_the_settings(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])
    assert tensor.remark is None


@pytest.mark.parametrize(
    ("folder", "bits", "group_size", "own_size"),
    [("awq-g32", 8, 64, 32), ("gptq-4-sym", 8, 128, 32), ("mlx-4-float16", 3, 32, 64)],
)
def test_tensors_win_where_the_config_says_something_else(
    tmp_path, folder, bits, group_size, own_size
):
    config = quantization(bits=bits, group_size=group_size)
    tensor = opened(save(tmp_path, folder, config=config))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])
    assert tensor.remark == (
        f"config.json says bits {bits}, the tensors 4; "
        f"config.json says group_size {group_size}, the tensors {own_size}"
    )


def test_unsigned_words_and_scattered_rows_are_the_same(tmp_path):
    unsigned = {key: lambda words: words.view(np.uint32) for key in ("qweight", "qzeros")}
    tensor = opened(save(tmp_path, "awq-g32", unsigned))
    values = expected("awq-g32")[1]
    np.testing.assert_array_equal(decoded(tensor), values)
    rows = np.array([9, 0, 17, 9])
    np.testing.assert_array_equal(tensor.decode_rows(rows), values[rows])


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


@pytest.mark.parametrize("folder", GPTQ)
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
def test_tensors_win_where_groups_of_the_config_say_something_else(tmp_path, weights, remark):
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


def test_a_layer_may_have_settings_of_its_own(tmp_path):
    own = {"model.layers.0.mlp.down_proj": {"bits": 2, "group_size": 32}}
    config = quantization(bits=4, group_size=64, **own)
    tensor = opened(save(tmp_path, "mlx-2-float16", config=config))
    np.testing.assert_array_equal(decoded(tensor), expected("mlx-2-float16")[1])
    assert tensor.remark is None


@pytest.mark.parametrize("own", [True, None, [], "text", {"bits": [4]}, {"bits": {}}])
def test_settings_of_a_layer_may_be_anything(tmp_path, own):
    config = quantization(**{"model.layers.0.mlp.down_proj": own})
    tensor = opened(save(tmp_path, "mlx-4-float16", config=config))
    np.testing.assert_array_equal(decoded(tensor), expected("mlx-4-float16")[1])


@pytest.mark.parametrize("axes", [(16, 1), (4, 4), (2, 2, 4)])
def test_words_have_any_number_of_axes(tmp_path, axes):
    def stacked(part):
        return part.reshape(*axes, part.shape[-1])

    for folder, parts in (("mlx-4-float16", ("scales", "biases")), ("mlx-nvfp4", ("scales",))):
        tensor = opened(save(tmp_path, folder, dict.fromkeys(("weight", *parts), stacked)))
        assert tensor.shape == (*axes, 128)
        whole = decoded(tensor).reshape(16, 128)
        np.testing.assert_array_equal(whole, expected(folder)[1])


def test_a_scale_too_great_is_told(tmp_path):
    said = "read with another scale it fits the original far better"
    assert said in told(tmp_path, "mlx-mxfp4", {"scales": lambda s: s + 5})
