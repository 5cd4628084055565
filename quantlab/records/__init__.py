"""Files on disk: the record of a run, the table and the manifest of a sweep, their schemas.

Every file is written whole or not at all, and files of older schemas are read. A run imports the
record alone; the table knows pandas, and the manifest reads the yaml that Hydra wrote.
"""
