"""Choose formats for tensors: the least noise within a budget, or the cheapest that meet a bar.

This room knows the table of a sweep and the tensors that its manifest lists. To choose it opens no
tensor; a plan is a format too, and is applied to a checkpoint.
"""
