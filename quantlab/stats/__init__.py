"""Measure tensors in formats: the streaming engine, its figures, and what to expect of them.

It takes a tensor through a format and back, block by block, and returns plain JSON values. It may
know `formats` and `sources`, and needs NumPy alone; Numba, where it is there, does the same faster.
"""
