"""MLX: for each module the arguments that `quant_predicate` of ``mlx_lm.utils`` returns, as JSON.

``mode=mlx/...`` is MLX's own rule, and its figures those of the result. Of ``mode=asym`` rounding
differs, in 4 bits by up to 0.04 dB and in 2 bits by 1; and MLX has a bias in the type of the scale
where that has a zero point of `n_bits`: a plan counts the bias, in the type of the sweep's scales.
`q_group_size` is 32 as mlx_lm leaves rows as they are that are no multiple of it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from quantlab.formats.floats import float_width
from quantlab.formats.format import FormatSpec
from quantlab.formats.mlx import MlxAffine, MlxFp4
from quantlab.plans.options import Assignment
from quantlab.plans.runtimes.runtime import own_spec, standard_spec
from quantlab.plans.runtimes.safetensors_file import (
    SafetensorsRuntime,
    StoredArray,
    scale_kind,
    word_count,
)
from quantlab.records import disk

OWN_MODES = {MlxAffine.mode: "affine", MlxFp4.mode: "mxfp4"}
PRESETS = {"mx/fp4": "mxfp4", "mx/fp8_e4m3": "mxfp8"}


class Mlx(SafetensorsRuntime):
    """MLX's quantized layers, as mlx_lm makes them."""

    name = "mlx"
    file = "plan.mlx.json"
    hint = "'mode=glob(mlx/*)' n_bits=4,8"
    scope = "a checkpoint of mlx_lm, whose layers have matrices named *.weight"
    call = (
        "plan = json.load(open({path!r})); mlx_lm.convert(MODEL, quantize=True, q_group_size=32, "
        "quant_predicate=lambda path, module: plan.get(path, False))"
    )
    framework = "mlx"
    axes = range(2, 9)  # stacked experts included

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the arguments of a format, None if MLX has none with the same groups and codes."""
        own = own_spec(assignment, OWN_MODES)
        if own:
            return _arguments(own, OWN_MODES[own.mode])
        spec = standard_spec(assignment)
        if spec is None:
            return None
        mode = "affine" if spec.mode == "asym" else PRESETS.get(spec.mode)
        if mode == "affine" and not (
            spec.n_bits in MlxAffine.widths and spec.block_size in MlxAffine.sizes
        ):
            return None
        if mode is None or spec.block != "group":
            return None
        return _arguments(spec, mode)

    def stored_bits(self, assignment: Assignment) -> int:
        """Return the size with the biases of affine codes."""
        spec, size = assignment.spec, assignment.tensor.size
        if not spec or spec.mode in PRESETS or spec.mode in OWN_MODES:
            return assignment.bits
        per_group = 2 * float_width(str(spec.scale_dtype))
        return (spec.n_bits or 0) * size + per_group * (size // (spec.block_size or size))

    def quantized_arrays(
        self, assignment: Assignment, config: dict[str, Any]
    ) -> Iterator[StoredArray]:
        """Yield words of codes, and the scales and biases of groups."""
        *rows, width = assignment.tensor.shape
        groups = (*rows, width // config["group_size"])
        yield StoredArray("weight", "U32", (*rows, word_count(width, config["bits"])))
        is_affine = config["mode"] == "affine"
        yield StoredArray("scales", scale_kind(assignment) if is_affine else "U8", groups)
        if is_affine:
            yield StoredArray("biases", scale_kind(assignment), groups)

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the mapping from modules to their arguments; false leaves one as it is stored."""
        configs = self.module_configs(assignments)
        return disk.to_json({module: config or False for module, config in configs.items()})


def _arguments(spec: FormatSpec, mode: str) -> dict[str, Any]:
    """Return the arguments of ``mlx.nn.quantize`` for a module."""
    return {"group_size": spec.block_size, "bits": spec.n_bits, "mode": mode}
