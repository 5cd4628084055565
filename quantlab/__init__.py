"""Measure what it costs to store a tensor in n bits.

``measure(x)`` takes an array through a quantizer and back, ``load(DIR)`` reads the table of a
sweep, ``quant`` holds the quantizers. A run measures one combination: ``dist`` yields named
tensors, ``quant`` chooses scale and zero point, ``stream`` makes the round trip, ``metrics`` and
``rank`` say what was lost, ``predict`` what theory expected, ``record`` keeps it all in one JSON
file. ``aggregate`` collects the records of a sweep, ``report`` makes a page of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlab import quant
    from quantlab.measurement import measure
    from quantlab.table import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "measure", "quant"]

_HOMES = {"load": "table", "measure": "measurement", "quant": "quant"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: to import quantlab loads nothing else."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quantlab' has no attribute {name!r}")
    home = import_module(f"quantlab.{_HOMES[name]}")
    return home if name == _HOMES[name] else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
