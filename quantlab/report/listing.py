"""The list of a file's tensors, for a terminal, for a pipe and as JSON.

A pipe gets whole lines with whole names, whatever its width, for grep and awk.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from quantlab.report.tables import Table
from quantlab.report.terminal import lay_out
from quantlab.sources.file import FileEntry
from quantlab.sources.pairing import StoredFile
from quantlab.text import count, format_number, format_size, label, printable

HEADS = ("tensor", "shape", "dtype", "elements", "")
STORED_HEADS = ("tensor", "shape", "stored as", "bits per value")


def listing(
    entries: Sequence[FileEntry], stored: StoredFile | None, path: str, *, whole: bool
) -> str:
    """List the tensors of a file, a line each, chosen or the reason why not, then the totals.

    The quantized ones of a `stored` file follow, and how the file of this `path` is compared. With
    `whole` no name is cut and no line broken.
    """
    rows = [
        (
            printable(entry.name) if whole else label(entry.name),
            str(list(entry.shape)),
            entry.dtype_name,
            f"{entry.size:,}",
            f"left out: {_reason(entry)}" if entry.skip_reason else "chosen",
        )
        for entry in entries
    ]
    chosen = [entry for entry in entries if not entry.skip_reason]
    totals = f"{_totals_text(entries)}; chosen: {_totals_text(chosen)}"
    parts = [lay_out(Table(HEADS, rows), whole=whole), totals]
    return "\n\n".join([*parts, *(_stored_parts(stored, path, whole) if stored else ())])


def _stored_parts(file: StoredFile, path: str, whole: bool) -> Iterator[str]:
    """List the quantized tensors of a file and their cost, if there are any."""
    stored = list(file.tensors.values())
    rows = [
        (
            printable(tensor.name) if whole else label(tensor.name),
            str(list(tensor.shape)),
            tensor.dtype,
            tensor.fault or format_number(tensor.bits / max(tensor.size, 1), ".4g"),
        )
        for tensor in stored
        if not tensor.is_dense
    ]
    if not rows:
        return
    bits, size = sum(tensor.bits for tensor in stored), sum(tensor.size for tensor in stored)
    yield f"quantized: compare it with mode=file/{file.format} mode.path={path}"
    yield lay_out(Table(STORED_HEADS, rows), whole=whole)
    yield (
        f"{len(stored)} tensors in all, {bits / max(size, 1):.4g} bits per value, "
        f"{format_size(bits / 8)}"
    )


def listing_json(entries: Sequence[FileEntry]) -> str:
    """List the tensors of a file as JSON: ``tensors``, the ``total`` of all and of the chosen.

    A tensor has ``name, dtype, shape, n_elements, n_bytes`` and the ``reason`` why it is left out,
    null where it is chosen.
    """
    rows = [
        {
            "name": entry.name,
            "dtype": entry.dtype_name,
            "shape": list(entry.shape),
            "n_elements": entry.size,
            "n_bytes": entry.n_bytes,
            "reason": _reason(entry),
        }
        for entry in entries
    ]
    chosen = [entry for entry in entries if not entry.skip_reason]
    totals = {"total": _totals(entries), "chosen": _totals(chosen)}
    return json.dumps({"tensors": rows, **totals}, indent=2)


def _reason(entry: FileEntry) -> str | None:
    """Return why a tensor is left out, its dtype called as in the list."""
    reason = entry.skip_reason
    if reason and reason.startswith(f"{entry.dtype} "):
        return f"{entry.dtype_name}{reason.removeprefix(entry.dtype)}"
    return reason


def _totals(entries: Sequence[FileEntry]) -> dict[str, Any]:
    return {
        "tensors": len(entries),
        "n_elements": sum(entry.size for entry in entries),
        "n_bytes": sum(entry.n_bytes for entry in entries),
    }


def _totals_text(entries: Sequence[FileEntry]) -> str:
    totals = _totals(entries)
    nouns = {"tensors": "tensor", "n_elements": "value"}
    counts = [count(totals[key], noun) for key, noun in nouns.items()]
    return ", ".join([*counts, format_size(totals["n_bytes"])])
