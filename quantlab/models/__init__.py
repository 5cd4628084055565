"""Models that answer: a model and weights -> what the answers lose.

This room runs a model with any of its weights replaced, and compares its outputs with those of the
original, batch by batch; it knows nothing of formats. To add a kind of model: a class with
``answers(weights)``, as `model.Model` says, and a yaml in ``conf/model/``.
"""
