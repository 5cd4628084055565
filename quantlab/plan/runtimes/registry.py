"""The runtimes by their names."""

from quantlab.plan.runtimes.generic import Generic
from quantlab.plan.runtimes.llama_cpp import LlamaCpp
from quantlab.plan.runtimes.mlx import Mlx
from quantlab.plan.runtimes.runtime import Runtime
from quantlab.plan.runtimes.torchao import Torchao

RUNTIMES = {each.name: each for each in (LlamaCpp(), Torchao(), Mlx(), Generic())}


def runtime(name: str) -> Runtime:
    """Return the runtime of a name; raises ValueError where there is none."""
    if name not in RUNTIMES:
        raise ValueError(f"--recipe takes one of {', '.join(RUNTIMES)}, got {name!r}")
    return RUNTIMES[name]
