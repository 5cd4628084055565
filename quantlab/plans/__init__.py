"""Choose formats for tensors: the least noise within a budget, or the cheapest that meet a bar.

This room knows the table of a sweep and the tensors that its manifest lists; it opens no tensor and
measures nothing.
"""
