"""Scales beside weights: what is wrong with them is a remark of the weight."""

import numpy as np
import pytest

from quantlab.experiment import Experiment
from quantlab.sources.safetensors import Safetensors, SafetensorsFile
from tests.sources.published import draw, fp8, nvfp4, write_safetensors

LAYER = "model.layers.0.self_attn"


def remarks(folder, original, stored):
    """Return the remark of each tensor that has one."""
    source = write_safetensors(folder / "a/a.safetensors", original)
    path = write_safetensors(folder / "b/b.safetensors", stored)
    outcome = Experiment(Safetensors(str(source)), SafetensorsFile(str(path)), 10, 1e-12, 1).run()
    assert not outcome.failed
    return {name: row["remark"] for name, row in outcome.tensors.items() if row["remark"]}


def in_fp8(*names, **scales):
    """Return an original, and it in fp8 with scales beside each weight."""
    original, stored = {}, {}
    for name in names:
        original[f"{name}.weight"] = draw(32, 64)
        codes, scale, _ = fp8(original[f"{name}.weight"])
        stored |= {f"{name}.weight": codes, f"{name}.weight_scale": np.array(scale)}
        stored |= {f"{name}.{key}": np.float32(value) for key, value in scales.items()}
    return original, stored


@pytest.mark.parametrize("key", ["input_scale", "scale_input", "activation_scale", "qscale_act"])
@pytest.mark.parametrize(("value", "text"), [(0, "0"), (np.inf, "inf"), (np.nan, "nan"), (1, "")])
def test_a_scale_of_activations_that_is_none_is_remarked(tmp_path, key, value, text):
    found = remarks(tmp_path, *in_fp8("mlp.up_proj", **{key: [value]}))
    sentence = f"its {key} is {text}, with which no activation is computed"
    assert found == ({"mlp.up_proj.weight": sentence} if text else {})


@pytest.mark.parametrize("place", [f"{LAYER}.", f"{LAYER}.k_proj."])
@pytest.mark.parametrize(("value", "is_told"), [(1, True), (0.5, False)])
def test_scales_of_a_cache_that_was_not_calibrated_are_remarked(tmp_path, place, value, is_told):
    original, stored = in_fp8(f"{LAYER}.k_proj", f"{LAYER}.o_proj")
    stored |= {f"{place}k_scale": np.float32(1), f"{place}v_scale": np.float32(value)}
    sentence = "every k_scale and v_scale of the file is 1, as where no KV cache was calibrated"
    found = remarks(tmp_path, original, stored)
    assert found == ({f"{LAYER}.k_proj.weight": sentence} if is_told else {})


def test_scales_of_layers_that_are_joined_must_be_the_same(tmp_path):
    original, stored = {}, {}
    names = [f"{LAYER}.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    names += [f"model.layers.{n}.mlp.{name}" for n in (0, 1) for name in ("gate_proj", "up_proj")]
    for n, name in enumerate(names):
        x = original[f"{name}.weight"] = draw(32, 64) * (2 if n in (1, 7) else 1)
        packed, scales, whole, _ = nvfp4(x)
        stored |= {f"{name}.weight": packed, f"{name}.weight_scale": scales}
        stored[f"{name}.weight_scale_2"] = np.array(whole)
    end = "vLLM joins the layers and takes the largest for all"
    one, two = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert remarks(tmp_path, original, stored) == {
        f"{names[0]}.weight": f"its weight_scale_2 is not that of k_proj: {end}",
        f"{names[1]}.weight": f"its weight_scale_2 is not that of q_proj and v_proj: {end}",
        f"{names[2]}.weight": f"its weight_scale_2 is not that of k_proj: {end}",
        one: f"its weight_scale_2 is not that of up_proj: {end}",
        two: f"its weight_scale_2 is not that of gate_proj: {end}",
    }


def test_experts_that_are_left_as_they_are_are_remarked(tmp_path):
    original, stored = in_fp8(f"{LAYER}.o_proj")
    expert = "model.layers.0.mlp.experts.0.up_proj.weight"
    original[expert] = stored[expert] = draw(32, 64).astype(np.float16)
    sentence = "the experts are stored as they are, while other weights are quantized"
    assert remarks(tmp_path, original, stored) == {expert: sentence}
    others = {name: x.astype(np.float32) for name, x in original.items()}
    assert remarks(tmp_path, original, others) == {}
    quantized = in_fp8("model.layers.0.mlp.experts.1.up_proj")
    assert remarks(tmp_path, original | quantized[0], stored | quantized[1]) == {}
