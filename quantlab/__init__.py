"""Measure what it costs to store a tensor in n bits.

A run measures one combination: ``dist`` yields named tensors, ``quant`` chooses scale and zero
point and makes the round trip, ``metrics`` and ``rank`` say what was lost, ``predict`` what theory
expected, ``record`` keeps it all in one JSON file. ``aggregate`` collects the records of a sweep.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
