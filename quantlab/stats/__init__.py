"""What a round trip cost: the streaming engine and the figures that it gathers.

It takes a tensor through a format and back, block by block, and returns plain JSON values. It may
know `formats` and `sources`, and needs NumPy alone; Numba, where it is there, does the same faster.
"""
