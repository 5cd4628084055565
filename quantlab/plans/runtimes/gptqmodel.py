"""GPTQModel: the arguments of a ``QuantizeConfig``, with a pattern a module in its ``dynamic``.

GPTQ rounds with regard to the inputs that it is calibrated with, so that its error is another: a
plan says what widths and groups cost when they are rounded to the nearest. A group has a scale in
float16 and a zero point of `n_bits`, also a symmetric one, and an input the number of its group.
"""

import re
from collections.abc import Iterable
from typing import Any

from quantlab.formats.rounding import INDEX_BITS
from quantlab.plans.options import Assignment, Original
from quantlab.plans.runtimes.runtime import Runtime, group_size, integer_bits, integer_spec
from quantlab.records import disk

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024)
OF_A_LAYER = re.compile(r"\.\d+\.")  # only linear modules in the layers of a model are quantized


class GptqModel(Runtime):
    """GPTQ's integers, by channel or group, as GPTQModel writes them."""

    name = "gptqmodel"
    file = "plan.gptqmodel.json"
    hint = "mode=sym,asym block=group n_bits=3,4,8"
    scope = "a checkpoint of transformers, whose layers have matrices named *.N.*.weight"

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why GPTQModel does not quantize a tensor, None if it does."""
        outside = None if OF_A_LAYER.search(tensor.name) else "rule"
        return super().refuse_tensor(tensor) or outside

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the overrides of a module, None if GPTQ has no such integers."""
        spec = integer_spec(assignment, WIDTHS)
        if spec is None or (spec.block == "group" and spec.block_size not in GROUPS):
            return None
        symmetric = spec.mode == "sym"
        return {"bits": spec.n_bits, "group_size": group_size(spec), "sym": symmetric}

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with zero points, and the group of each input."""
        if assignment.spec is None:
            return assignment.bits
        bits = integer_bits(assignment, has_zero_points=True)
        return bits + INDEX_BITS * assignment.tensor.shape[-1]

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the arguments; a pattern after ``-:`` leaves a module as it is."""
        configs = self.module_configs(assignments)
        dynamic = {
            f"{'+' if config else '-'}:^{re.escape(module)}$": config or {}
            for module, config in configs.items()
        }
        default: dict[str, Any] = next(filter(None, configs.values()), {})
        return disk.to_json({**default, "dynamic": dynamic})

    def usage(self, path: str) -> str:
        """Return the call."""
        config = f"QuantizeConfig(**json.load(open({path!r})))"
        return f"GPTQModel.load(MODEL, {config}).quantize(CALIBRATION)"
