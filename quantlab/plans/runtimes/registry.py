"""The runtimes by their names."""

from quantlab.plans.runtimes.generic import Generic
from quantlab.plans.runtimes.llama_cpp import LlamaCpp
from quantlab.plans.runtimes.mlx import Mlx
from quantlab.plans.runtimes.runtime import Runtime
from quantlab.plans.runtimes.torchao import Torchao

RUNTIMES = {each.name: each for each in (LlamaCpp(), Torchao(), Mlx(), Generic())}


def runtime(name: str) -> Runtime:
    """Return the runtime of a name; raises ValueError where there is none."""
    if name not in RUNTIMES:
        raise ValueError(f"--recipe takes one of {', '.join(RUNTIMES)}, got {name!r}")
    return RUNTIMES[name]
