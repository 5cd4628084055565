"""Measure what it costs to store a tensor in n bits.

``measure(x)`` takes an array through a quantizer and back, and ``roundtrip(x)`` returns it.
``measure_grid(PATH, mode=[...])`` measures each tensor of a file in many formats.
``load(DIR)`` reads the table of a sweep, ``answers(DIR)`` what its model lost and ``verdict(DIR)``
what meets the bar; ``plan(DIR, bits=4.5)`` chooses a format for each tensor. ``quant`` holds the
quantizers of the lab.

The rooms: ``formats`` quantizes, ``sources`` yields named tensors, ``stats`` measures a round trip,
``models`` answer with stored weights, ``records`` reads and writes what is on disk, ``report``
shows it to people, ``plans`` chooses formats, ``sweep`` composes and launches runs with Hydra. Each
imports only rooms named before it.
"""

from importlib import import_module

TYPE_CHECKING = False  # a checker takes it as true; typing takes most of the time that comes before
if TYPE_CHECKING:
    from quantlab import quant
    from quantlab.measurement import measure, measure_grid, roundtrip
    from quantlab.plans.plan import plan
    from quantlab.records.answers import answers
    from quantlab.records.table import load
    from quantlab.report.verdict import verdict

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "answers",
    "load",
    "measure",
    "measure_grid",
    "plan",
    "quant",
    "roundtrip",
    "verdict",
]

_MODULES = {
    "answers": "records.answers",
    "load": "records.table",
    "measure": "measurement",
    "measure_grid": "measurement",
    "plan": "plans.plan",
    "quant": "quant",
    "roundtrip": "measurement",
    "verdict": "report.verdict",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: to import quantlab loads nothing else."""
    if name not in _MODULES:
        raise AttributeError(f"module 'quantlab' has no attribute {name!r}")
    module = import_module(f"quantlab.{_MODULES[name]}")
    return module if name == _MODULES[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
