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

WIDTHS = [f"mlx-{bits}-{kind}" for bits in (2, 3, 4, 5, 6, 8) for kind in ("float16", "bfloat16")]
MODES = ["mlx-mxfp4", "mlx-mxfp8", "mlx-nvfp4"]
EITHER = {"mlx-6-float16", "mlx-6-bfloat16"}  # in shapes of 3 bits too

BAD = {
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

BAD_FLOATS = {
    "other rows": ({"weight": lambda w: w[:15]}, "has weight of [15, 16] and scales of [16, 4]"),
    "no groups": ({"scales": lambda s: s[:, :0]}, "do not fit"),
    "no words a row": ({"weight": lambda w: w[:, :0]}, "do not fit"),
    "words of none": ({"weight": lambda w: w[0, 0]}, "has weight of []"),
    "scales of none": ({"scales": lambda s: s[0, 0]}, "scales of []"),
    "groups of no mode": ({"scales": lambda s: s[:, :1]}, "and scales of [16, 1]"),
    "scales of one dimension": ({"scales": np.ravel}, "and scales of [64]"),
}


@pytest.mark.parametrize(("changes", "why"), BAD.values(), ids=BAD)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, changes, why):
    assert why in fault(save(tmp_path, "mlx-4-float16", changes))


@pytest.mark.parametrize(("changes", "why"), BAD_FLOATS.values(), ids=BAD_FLOATS)
def test_parts_that_make_no_floats_are_a_fault(tmp_path, changes, why):
    assert why in fault(save(tmp_path, "mlx-mxfp4", changes))


@pytest.mark.parametrize("folder", [each for each in WIDTHS + MODES if each not in EITHER])
def test_shapes_alone_tell_the_settings(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])


def test_tensors_win_where_the_config_says_something_else(tmp_path):
    tensor = opened(save(tmp_path, "mlx-4-float16", config=quantization(bits=3, group_size=32)))
    np.testing.assert_array_equal(decoded(tensor), expected("mlx-4-float16")[1])
    assert tensor.remark == (
        "config.json says bits 3, the tensors 4; config.json says group_size 32, the tensors 64"
    )


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


@pytest.mark.parametrize("folder", WIDTHS + MODES)
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


def test_a_scale_too_great_is_told(tmp_path):
    said = "read with another scale it fits the original far better"
    assert said in told(tmp_path, "mlx-mxfp4", {"scales": lambda s: s + 5})
