"""Sources of tensors: seeded distributions, and files of several formats.

A source lists its tensors and opens them one at a time, memory-mapped where the format allows it,
and says what is believed of them before they are seen. It may know `formats`, and the package that
reads a file is imported when such a file is read.
"""
