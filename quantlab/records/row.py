"""One row of a sweep's table, and rows that belong together."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantlab.text import as_text

Row = Mapping[str, Any]  # the figures of one tensor in one run, under their keys


def group_rows(rows: Sequence[Row], levels: Sequence[str]) -> list[list[int]]:
    """Return where the rows stand that agree in some levels, in the order of the first of them."""
    found: dict[tuple[str, ...], list[int]] = {}
    for n, row in enumerate(rows):
        found.setdefault(tuple(as_text(row[level]) for level in levels), []).append(n)
    return list(found.values())
