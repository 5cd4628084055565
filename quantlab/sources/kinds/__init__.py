"""Kinds of quantized checkpoints, decoded in NumPy to the values that a runtime computes with.

Kinds whose codes are stored alike share a module. To add one: in the docstring of a module the
formula, and in its `KINDS` a `decoding.Kind`: a table of the tensors that a weight is stored in,
and a function that decodes rows. Then, of a new module, its name in `MODULES` of
``sources/safetensors.py``, and a vector of the real package in ``tests/data/stored``.
"""
