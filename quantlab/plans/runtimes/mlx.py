"""MLX: for each module the arguments that `quant_predicate` of ``mlx_lm.utils`` returns, as JSON.

MLX's affine codes have a bias in the type of the scale where asymmetric ones have a zero point of
`n_bits`: a plan counts the bias, in the type of the sweep's scales, which should be the model's.
Its rounding differs: figures of 4 bits are within 0.04 dB of the sweep's, of 2 bits within 1.
`q_group_size` is 32 as mlx_lm leaves rows as they are that are no multiple of it.
"""

from collections.abc import Iterable
from typing import Any

from quantlab.plans.options import Assignment, float_width
from quantlab.plans.runtimes.runtime import Runtime, standard_spec
from quantlab.records import disk

AFFINE_BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
PRESETS = {"mx/fp4": "mxfp4", "mx/fp8_e4m3": "mxfp8"}


class Mlx(Runtime):
    """MLX's quantized layers, as mlx_lm makes them."""

    name = "mlx"
    file = "plan.mlx.json"
    hint = "mode=asym block=group block.size=32,64,128 block.scale=bfloat16"
    scope = "a checkpoint of mlx_lm, whose layers have matrices named *.weight"
    axes = range(2, 9)  # stacked experts included

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the arguments of a format, None if MLX has none with the same groups and codes."""
        spec = standard_spec(assignment)
        if spec is None:
            return None
        mode = "affine" if spec.mode == "asym" else PRESETS.get(spec.mode)
        if mode == "affine" and not (spec.n_bits in AFFINE_BITS and spec.block_size in GROUPS):
            return None
        if mode is None or spec.block != "group":
            return None
        return {"group_size": spec.block_size, "bits": spec.n_bits, "mode": mode}

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with the biases of affine codes."""
        spec, size = assignment.spec, assignment.tensor.size
        if not spec or spec.mode in PRESETS:
            return assignment.bits
        per_group = 2 * float_width(str(spec.scale_dtype))
        return (spec.n_bits or 0) * size + per_group * (size // (spec.block_size or size))

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the mapping from modules to their arguments; false leaves one as it is stored."""
        configs = self.module_configs(assignments)
        return disk.to_json({module: config or False for module, config in configs.items()})

    def usage(self, path: str) -> str:
        """Return the call of ``mlx_lm.convert``."""
        return (
            f"plan = json.load(open({path!r})); mlx_lm.convert(MODEL, quantize=True, "
            "q_group_size=32, quant_predicate=lambda path, module: plan.get(path, False))"
        )
