"""What a file of tensors holds, as text."""

from collections.abc import Sequence

from quantlab.report.console import render, table
from quantlab.sources.file import Entry
from quantlab.sources.tensor import label


def listing(entries: Sequence[Entry]) -> str:
    """Return what a file of tensors holds, a line each, chosen or why not."""
    rows = [
        (label(each.name), str(list(each.shape)), each.dtype, f"{each.size:,}", _choice(each))
        for each in entries
    ]
    return render(table(["tensor", "shape", "dtype", "elements", ""], rows))


def _choice(entry: Entry) -> str:
    return f"left out: {entry.skip_reason}" if entry.skip_reason else "chosen"
