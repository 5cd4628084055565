"""What a file of tensors holds, as text."""

from collections.abc import Sequence

from quantlab.report.console import render, table
from quantlab.sources.file import FileEntry
from quantlab.sources.pairing import StoredFile
from quantlab.text import format_number, format_size, label


def listing(entries: Sequence[FileEntry]) -> str:
    """Return what a file of tensors holds, a line each, chosen or why not."""
    rows = [
        (label(each.name), str(list(each.shape)), each.dtype, f"{each.size:,}", _choice(each))
        for each in entries
    ]
    return render(table(["tensor", "shape", "dtype", "elements", ""], rows))


def stored_listing(file: StoredFile) -> str:
    """Return what a file holds in codes, and what it costs."""
    stored = list(file.tensors.values())
    quantized = [each for each in stored if not each.is_dense]
    if not quantized:
        return ""
    rows = [
        (
            label(each.name),
            str(list(each.shape)),
            each.dtype,
            each.fault or format_number(each.bits / max(each.size, 1), ".4g"),
        )
        for each in quantized
    ]
    bits, size = sum(each.bits for each in stored), sum(each.size for each in stored)
    return render(
        f"quantized: compare it with mode=file/{file.format} mode.path={file.path}",
        table(["tensor", "shape", "stored as", "bits per value"], rows),
        f"{len(stored)} tensors in all, {bits / max(size, 1):.4g} bits per value, "
        f"{format_size(bits / 8)}",
    )


def _choice(entry: FileEntry) -> str:
    return f"left out: {entry.skip_reason}" if entry.skip_reason else "chosen"
