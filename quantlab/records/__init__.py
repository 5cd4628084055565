"""What is on disk: the record of a run, the table and the manifest of a sweep, their schemas.

Every file is written whole or not at all, and files of older schemas are read. It knows nothing of
how a figure came about, of Hydra, or of how it is shown; pandas is imported by the table of a sweep
alone, never by a run.
"""
