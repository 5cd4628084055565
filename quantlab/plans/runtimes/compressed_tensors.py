"""llm-compressor: a recipe whose ``config_groups`` are schemes of compressed-tensors, as YAML.

Symmetric integers take half the width of their range, 7.5 steps in 4 bits where ``mode=sym`` takes
7; asymmetric ones are those of ``mode=asym``. `QuantizationModifier` rounds to the nearest. Scales
are of the type of the model, and zero points packed as codes are.
"""

from collections.abc import Iterable
from typing import Any

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import Assignment
from quantlab.plans.runtimes.runtime import (
    Runtime,
    integer_bits,
    integer_spec,
    standard_spec,
    to_yaml,
)

WIDTHS = range(2, 9)
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
PRESETS: dict[str, dict[str, Any]] = {
    "mx/fp4": {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group",
               "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"},
    "nv/fp4": {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group",
               "group_size": 16, "scale_dtype": "torch.float8_e4m3fn",
               "zp_dtype": "torch.float8_e4m3fn"},
}  # fmt: skip


class CompressedTensors(Runtime):
    """llm-compressor's weight-only schemes of integers, fp8, MXFP4 and NVFP4."""

    name = "llm-compressor"
    file = "plan.llmcompressor.yaml"
    hint = "mode=sym,asym,fp8_e4m3 block=group,channel n_bits=4,8"
    scope = "a checkpoint of torch, whose linear layers have matrices named *.weight"

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the ``weights`` of a scheme, None if there is none with the same codes."""
        spec = standard_spec(assignment)
        if spec is None:
            return None
        if spec.mode in PRESETS and spec.block == "group":
            return PRESETS[spec.mode]
        if spec.mode == "fp8_e4m3" and spec.block in ("tensor", "channel"):
            return {**FP8, "strategy": spec.block}
        return _integers(spec) if integer_spec(assignment, WIDTHS) else None

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with scales in the type of the model, and packed zero points."""
        spec = assignment.spec
        return integer_bits(assignment, has_zero_points=spec is not None and spec.mode == "asym")

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the recipe, of one group for each format; modules in no group stay."""
        groups: dict[str, dict[str, Any]] = {}
        for module, weights in self.module_configs(assignments).items():
            if weights:
                group = groups.setdefault(str(weights), {"weights": weights, "targets": []})
                group["targets"].append(module)
        named = {f"group_{number}": group for number, group in enumerate(groups.values())}
        modifier = {"QuantizationModifier": {"config_groups": named}}
        return to_yaml({"plan_stage": {"plan_modifiers": modifier}})

    def usage(self, path: str) -> str:
        """Return the call."""
        return f"oneshot(model=MODEL, recipe={path!r})"


def _integers(spec: FormatSpec) -> dict[str, Any]:
    size = {"group_size": spec.block_size} if spec.block == "group" else {}
    return {
        "num_bits": spec.n_bits, "type": "int", "symmetric": spec.mode == "sym",
        "strategy": spec.block, **size,
    }  # fmt: skip
