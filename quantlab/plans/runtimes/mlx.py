"""MLX: for each module the arguments that `quant_predicate` of ``mlx_lm.utils`` returns, as JSON.

MLX's affine codes have a bias in the type of the scale where asymmetric ones have a zero point of
`n_bits`: a plan counts the bias, in the type of the sweep's scales, which should be the model's.
Its rounding differs: figures of 4 bits are within 0.04 dB of the sweep's, of 2 bits within 1.
`q_group_size` is 32 as mlx_lm leaves rows as they are that are no multiple of it.
"""

from collections.abc import Iterable
from typing import Any

from quantlab.plans.originals import Original, width
from quantlab.plans.runtimes.runtime import (
    Runtime,
    Taken,
    bits_of,
    has_whole_groups,
    is_plain_range,
    module_name,
)
from quantlab.records import disk
from quantlab.records.record import Row

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
PRESETS = {"mx/fp4": ("mxfp4", 32, 4), "mx/fp8_e4m3": ("mxfp8", 32, 8)}


class Mlx(Runtime):
    """MLX's quantized layers, as mlx_lm makes them."""

    name = "mlx"
    file = "plan.mlx.json"
    hint = "mode=asym block=group block.size=32,64,128 block.scale=bfloat16"

    def takes(self, tensor: Original) -> bool:
        """Return whether it is the weight of a layer that MLX quantizes."""
        return len(tensor.shape) > 1 and tensor.name.endswith(".weight")

    def settings(self, row: Row) -> dict[str, Any] | None:
        """Return the arguments of a row's format."""
        if row["mode"] in PRESETS:
            mode, group, bits = PRESETS[row["mode"]]
            if not has_whole_groups(row, group):
                return None
            return {"group_size": group, "bits": bits, "mode": mode}
        affine = row["mode"] == "asymmetric" and row.get("block") == "group" and is_plain_range(row)
        if not affine or row["n_bits"] not in BITS or row["block_size"] not in GROUPS:
            return None
        if not has_whole_groups(row, row["block_size"]):
            return None
        return {"group_size": row["block_size"], "bits": row["n_bits"], "mode": "affine"}

    def bits(self, row: Row) -> int:
        """Return the size with the biases of affine codes."""
        if row["mode"] in PRESETS:
            return bits_of(row)
        return row["n_bits"] * row["n_elements"] + 2 * width(row["scale_dtype"]) * row["n_scales"]

    def recipe(self, taken: Iterable[Taken]) -> bytes:
        """Return the mapping from modules to their arguments; false keeps one as it is."""
        arguments = {
            module_name(each.tensor.name): each.row is not None and self.settings(each.row)
            for each in taken
            if self.takes(each.tensor)
        }
        return disk.to_json(arguments)

    def usage(self, path: str) -> str:
        """Return what to pass to ``mlx_lm.convert``."""
        return (
            f"plan = json.load(open({path!r})); mlx_lm.convert(MODEL, quantize=True, "
            "q_group_size=32, quant_predicate=lambda path, module: plan.get(path, False))"
        )
