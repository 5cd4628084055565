"""AutoRound: the ``layer_config`` of an ``AutoRound``, as JSON.

AutoRound learns how to round, so that its error is smaller: a plan says what widths and groups cost
when they are rounded to the nearest. Its symmetric integers use the whole range, 8 steps in 4 bits
where ``mode=sym`` takes 7. Scales are float16, and zero points of `n_bits`, of symmetric ones too.
"""

from collections.abc import Iterable
from typing import Any

from quantlab.plans.options import Assignment, Original
from quantlab.plans.runtimes.runtime import (
    Runtime,
    group_size,
    integer_bits,
    integer_spec,
    is_embedding,
    standard_spec,
)
from quantlab.records import disk

WIDTHS = range(2, 9)
SIDE = 32  # a matrix whose sides are no multiples of it stays as it is
PRESETS: dict[str, dict[str, Any]] = {
    "mx/fp4": {"bits": 4, "group_size": 32, "sym": True, "data_type": "mx_fp"},
    "mx/fp8_e4m3": {"bits": 8, "group_size": 32, "sym": True, "data_type": "mx_fp"},
    "nv/fp4": {"bits": 4, "group_size": 16, "sym": True, "data_type": "nv_fp"},
}
AS_STORED = {"bits": 16, "act_bits": 16}


class AutoRound(Runtime):
    """AutoRound's integers, by channel or group, MX and NVFP4."""

    name = "auto-round"
    file = "plan.auto_round.json"
    hint = "mode=sym,asym block=group n_bits=3,4,8"
    scope = "a checkpoint of transformers, whose linear layers have matrices named *.weight"

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why AutoRound does not quantize a tensor, None if it does."""
        refusal = super().refuse_tensor(tensor)
        is_excluded = is_embedding(tensor) or any(side % SIDE for side in tensor.shape)
        return refusal or ("rule" if is_excluded else None)

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the settings of a layer, None if AutoRound has no such format."""
        preset = standard_spec(assignment)
        if preset and preset.mode in PRESETS and preset.block == "group":
            return {**PRESETS[preset.mode], "act_bits": 16}
        spec = integer_spec(assignment, WIDTHS)
        if spec is None:
            return None
        return {
            "bits": spec.n_bits, "group_size": group_size(spec), "sym": spec.mode == "sym",
            "data_type": "int", "act_bits": 16,
        }  # fmt: skip

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with scales in float16, and zero points."""
        return integer_bits(assignment, has_zero_points=True)

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the mapping from layers to their settings; 16 bits leave one as it is stored."""
        configs = self.module_configs(assignments)
        return disk.to_json({module: config or AS_STORED for module, config in configs.items()})

    def usage(self, path: str) -> str:
        """Return the call."""
        return f"AutoRound(MODEL, layer_config=json.load(open({path!r}))).quantize_and_save(OUT)"
