"""Quantizers: element grids, blocks that share a scale, ranges, types of scales, and libraries.

The ground floor: it knows NumPy, ml_dtypes and nothing else of quantlab. Choosing parameters from a
range and applying them to values are separate steps here, and no function looks at where values
come from; of the cost of errors only the search of a range knows, see `ranges.squared_errors`.
"""
