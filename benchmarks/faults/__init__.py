"""Faults that a sweep has to survive, of which benchmarks/chaos.py tries many.

`command` runs quantlab in processes that can be killed, `trial` has the invariants, and each other
module tries some kinds of faults. They know quantlab by its commands alone.
"""
