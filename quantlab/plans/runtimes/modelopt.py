"""Model Optimizer of NVIDIA: a config for ``modelopt.torch.quantization.quantize``, as YAML.

Entries of its ``quant_cfg`` override those before them: the first disables every quantizer, and
each module of the plan enables that of its weight. Integers are symmetric, with the steps of
``mode=sym``, whose figures are those of the result.
"""

from collections.abc import Iterable
from typing import Any

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import Assignment, Original
from quantlab.plans.runtimes.runtime import (
    Runtime,
    integer_bits,
    integer_spec,
    is_embedding,
    standard_spec,
    to_yaml,
)

WIDTHS = range(2, 9)
BLOCKS = ("tensor", "channel", "group")
ELEMENTS = {  # of preset and format, the bits of exponent and mantissa
    "fp8_e4m3": [4, 3], "mx/fp8_e4m3": [4, 3], "mx/fp6_e3m2": [3, 2], "mx/fp6_e2m3": [2, 3],
    "mx/fp4": [2, 1], "nv/fp4": [2, 1],
}  # fmt: skip
SCALES = {"mx": (32, [8, 0]), "nv": (16, [4, 3])}  # size of a block, and the type of its scale


class ModelOpt(Runtime):
    """Model Optimizer's weights in integers, fp8, MX and NVFP4."""

    name = "modelopt"
    file = "plan.modelopt.yaml"
    hint = "mode=sym,fp8_e4m3 block=group,channel n_bits=4,8"
    scope = "a checkpoint of torch, whose linear layers have matrices named *.weight"

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why a tensor is not quantized, None if it is."""
        return super().refuse_tensor(tensor) or ("rule" if is_embedding(tensor) else None)

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the attributes of a quantizer, None if there are none with the same codes."""
        spec = standard_spec(assignment)
        if spec is None:
            return None
        if spec.mode in ELEMENTS and spec.block in BLOCKS:
            return _floats(spec)
        if spec.mode != "sym" or not integer_spec(assignment, WIDTHS, BLOCKS):
            return None
        return {"num_bits": spec.n_bits, **_blocks(spec)}

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with scales in the type of the model."""
        return integer_bits(assignment, has_zero_points=False)

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the config."""
        disabled: dict[str, Any] = {"quantizer_name": "*", "enable": False}
        enabled = [
            {"quantizer_name": f"{module}.weight_quantizer", "cfg": config}
            for module, config in self.module_configs(assignments).items()
            if config
        ]
        return to_yaml({"quant_cfg": [disabled, *enabled], "algorithm": "max"})

    def usage(self, path: str) -> str:
        """Return the call."""
        return f"mtq.quantize(model, yaml.safe_load(open({path!r})))"


def _floats(spec: FormatSpec) -> dict[str, Any] | None:
    family = spec.mode.partition("/")[0]
    if family in SCALES:
        size, scale = SCALES[family]
        block = {-1: size, "type": "dynamic", "scale_bits": scale}
        return {"num_bits": ELEMENTS[spec.mode], "block_sizes": block}
    if spec.block == "group":
        return None
    return {"num_bits": ELEMENTS[spec.mode], **_blocks(spec)}


def _blocks(spec: FormatSpec) -> dict[str, Any]:
    if spec.block == "group":
        return {"block_sizes": {-1: spec.block_size, "type": "static"}}
    return {"axis": 0 if spec.block == "channel" else None}
