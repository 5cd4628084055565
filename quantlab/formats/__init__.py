"""How values become codes and come back: the quantizers and their round trip.

The ground floor: it knows NumPy and nothing else of quantlab. Choosing parameters from a range and
applying them to values are separate steps here, and no function looks at where values come from or
at what an error costs.
"""
