"""The runtimes that a plan can be written for, by their names.

A runtime knows assignments of formats to tensors and says them in its own terms; it quantizes
nothing. To add one: a subclass of `Runtime` in a module here, and its instance in `RUNTIMES`.
"""

from quantlab.plans.runtimes.llama_cpp import LlamaCpp
from quantlab.plans.runtimes.mlx import Mlx
from quantlab.plans.runtimes.onnxruntime import OnnxRuntime
from quantlab.plans.runtimes.runtime import Generic, Runtime
from quantlab.plans.runtimes.torch import (
    AutoRound,
    CompressedTensors,
    GptqModel,
    ModelOpt,
    Torchao,
)

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        LlamaCpp(), Torchao(), Mlx(), OnnxRuntime(), CompressedTensors(), GptqModel(), AutoRound(),
        ModelOpt(), Generic(),
    )
}  # fmt: skip


def find_runtime(name: str, option: str = "recipe") -> Runtime:
    """Return the runtime of a name; raises ValueError if there is none."""
    if name not in RUNTIMES:
        raise ValueError(f"{option} takes one of {', '.join(RUNTIMES)}, got {name!r}")
    return RUNTIMES[name]
