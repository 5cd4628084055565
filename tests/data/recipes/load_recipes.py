"""Load the recipes beside this file with the packages that they are for, on a CPU.

    pip install torch==2.15.0 compressed-tensors==0.20.0 auto-round==0.16.1
    pip install gptqmodel==7.7.0 nvidia-modelopt==0.47.0 onnxruntime==1.32.0 onnx-ir==1.1.0
    python load_recipes.py

Each is applied to a small model; what is not as the plan has it is an AssertionError. The schemes
of compressed-tensors are those that llm-compressor 0.14.0 takes from its recipe.
"""

import json
import warnings
from pathlib import Path

import torch
import yaml

HERE = Path(__file__).parent
QUERY, KEY, VALUE, OUT = (f"model.layers.0.{letter}" for letter in "qkvo")


class Layer(torch.nn.Module):
    """Four matrices of 64 x 64."""

    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            setattr(self, name, torch.nn.Linear(64, 64, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by each."""
        return self.o(self.v(self.k(self.q(x))))


class Model(torch.nn.Module):
    """An embedding, a layer and a head, by the names that the recipes have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(64, 64)
        self.model.layers = torch.nn.ModuleList([Layer()])
        self.lm_head = torch.nn.Linear(64, 64, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.lm_head(self.model.layers[0](self.model.embed_tokens(tokens)))


def load_compressed_tensors() -> None:
    """Apply the schemes, and look which modules have them."""
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    stage = yaml.safe_load((HERE / "plan.llmcompressor.yaml").read_text())["plan_stage"]
    groups = stage["plan_modifiers"]["QuantizationModifier"]["config_groups"]
    model = Model()
    apply_quantization_config(model, QuantizationConfig(config_groups=groups))
    schemes = {
        name: module.quantization_scheme.weights
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None)
    }
    stored = {
        name: (args.num_bits, args.strategy, args.symmetric, args.type)
        for name, args in schemes.items()
    }
    assert stored == {
        QUERY: (4, "group", True, "int"),
        KEY: (4, "group", False, "int"),
        OUT: (8, "channel", True, "float"),
        "lm_head": (4, "group", True, "float"),
    }, stored


def load_gptqmodel() -> None:
    """Read the config, and ask it for each module."""
    from gptqmodel import QuantizeConfig

    config = QuantizeConfig(**json.loads((HERE / "plan.gptqmodel.json").read_text()))
    overrides = {name: config.dynamic_get(name) for name in (QUERY, KEY, VALUE, OUT)}
    assert overrides == {
        QUERY: {"bits": 4, "group_size": 32, "sym": True},
        KEY: {"bits": 4, "group_size": 64, "sym": False},
        VALUE: False,
        OUT: False,
    }, overrides


def load_auto_round() -> None:
    """Read the settings as those of schemes."""
    from auto_round.schemes import QuantizationScheme
    from auto_round.utils import check_to_quantized

    layers = json.loads((HERE / "plan.auto_round.json").read_text())
    assert set(layers) == {QUERY, KEY, VALUE, OUT, "lm_head"}
    known = set(QuantizationScheme.get_attributes())
    assert all(set(config) <= known for config in layers.values())
    assert [name for name in layers if check_to_quantized(layers[name])] == [QUERY, KEY, "lm_head"]


def load_modelopt() -> None:
    """Quantize a model, whose sym 4 bits are those of quantlab."""
    import modelopt.torch.quantization as mtq

    config = yaml.safe_load((HERE / "plan.modelopt.yaml").read_text())
    model = mtq.quantize(Model(), config)
    enabled = {
        name.removesuffix(".weight_quantizer"): module
        for name, module in model.named_modules()
        if name.endswith("weight_quantizer") and module.is_enabled
    }
    assert set(enabled) == {QUERY, OUT, "lm_head"}
    weight = model.get_submodule(QUERY).weight.detach()
    groups = weight.reshape(-1, 32)
    scale = groups.abs().amax(1, keepdim=True) / 7
    x_hat = ((groups / scale).round() * scale).reshape(weight.shape)
    torch.testing.assert_close(enabled[QUERY](weight), x_hat)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for load in (load_compressed_tensors, load_gptqmodel, load_auto_round, load_modelopt):
        load()
