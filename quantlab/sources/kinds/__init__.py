"""Kinds of quantized checkpoints, decoded in NumPy to the values that a runtime computes with.

One module a kind. To add one: a module whose docstring has the formula, with `KINDS`, each a
`decoding.Kind`: a table of the tensors that a weight is stored in, and a function that decodes
rows. Then its name in `MODULES` of ``sources/safetensors.py``, and a vector of the real package in
``tests/data/stored``.
"""
