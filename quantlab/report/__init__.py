"""Reports of a sweep: the verdict, the terminal, report.html, report.md and the plots.

It starts from the rows of a sweep's table and ends in text and pictures, the same bytes for the
same records. It may know every room above it; it measures nothing and knows nothing of Hydra.
"""
