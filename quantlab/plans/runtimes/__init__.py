"""What each runtime can store and how it is asked to: one module a runtime, chosen by its name.

A runtime knows rows of a sweep's table and says them in its own terms; it quantizes nothing. To add
one: a module with a subclass of `Runtime`, and its instance in ``registry.py``.
"""
