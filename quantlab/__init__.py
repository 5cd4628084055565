"""Measure what it costs to store a tensor in n bits.

``measure(x)`` takes an array through a quantizer and back, ``load(DIR)`` reads the table of a
sweep, ``quant`` holds the quantizers of the lab.

The rooms, in the order in which data passes them: ``formats`` quantizes, ``sources`` yields named
tensors, ``stats`` says what a round trip cost, ``records`` keeps it on disk, ``report`` shows it to
people, ``sweep`` is Hydra's side of it all. Each imports only rooms named before it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlab import quant
    from quantlab.measurement import measure
    from quantlab.records.table import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "measure", "quant"]

_MODULES = {"load": "records.table", "measure": "measurement", "quant": "quant"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: to import quantlab loads nothing else."""
    if name not in _MODULES:
        raise AttributeError(f"module 'quantlab' has no attribute {name!r}")
    module = import_module(f"quantlab.{_MODULES[name]}")
    return module if name == _MODULES[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
