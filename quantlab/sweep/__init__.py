"""Hydra's side: from the command line to runs, on whatever machine, and to their aggregate.

Configs end here: what is called from here takes plain arguments. It may know every other room, and
no room knows it.
"""
