"""Files that are quantized already, decoded in NumPy: what a runtime computes with.

One module a kind of checkpoint; each finds its tensors among those of a file and yields them with
their rows decoded when they are asked for. It may know the readers beside it, and `formats`.
"""
