"""The figures of one run, as text."""

from collections.abc import Iterator
from typing import Any

from quantlab.records.record import Record, figures
from quantlab.report.bar import Bar
from quantlab.report.console import render, table
from quantlab.report.numbers import RATIOS, ratio_cells
from quantlab.report.sentences import bar_text, skipped_sentences, underflow_sentences
from quantlab.report.stored import stored_rows, stored_sentences
from quantlab.report.texts import Texts
from quantlab.report.verdict import quality
from quantlab.text import format_number, label

LONGEST = 60  # rows; beyond them a terminal is the wrong place


def run_summary(one: Record, bar: Bar, t: Texts) -> str:
    """Return the figures of one run: of one tensor all, of many those that decide, worst first."""
    tensors = one["tensors"]
    if len(tensors) == 1:
        lines = list(_figure_lines(one, *next(iter(tensors.items()))))
    else:
        lines = [_worst_table(tensors, t), *skipped_sentences(one["skipped"], t)]
    rows = [figures(each) | {"dist": "", "tensor": name} for name, each in tensors.items()]
    if stored := stored_rows(rows, ["dist"]):
        lines += [*stored_sentences(stored, bar, t), bar_text(bar, t)]
    underflows = {name: tensor.get("underflowed") or 0 for name, tensor in tensors.items()}
    return "\n".join([*lines, *underflow_sentences(underflows, t)])


def _worst_table(tensors: dict[str, Any], t: Texts) -> str:
    measured = {name: tensor["measured"] for name, tensor in tensors.items()}
    worst = sorted(tensors, key=lambda name: quality(measured[name]))
    stored = ["stored_dtype"] if any("stored_dtype" in each for each in tensors.values()) else []
    rows = [
        (
            label(name),
            f"{tensors[name]['n_elements']:,}",
            *(tensors[name][key] for key in stored),
            *ratio_cells(measured[name]),
        )
        for name in worst[:LONGEST]
    ]
    lines = render(table([t("head_worst_first"), t("head_elements"), *stored, *RATIOS], rows))
    more = len(worst) - LONGEST
    return "\n".join([lines, t("more_tensors", n=more)]) if more > 0 else lines


def _unknown(tensor: dict[str, Any]) -> set[str]:
    """Return the figures that no codec has, which a terminal leaves out."""
    if "stored_dtype" not in tensor:
        return set()
    reasons = tensor["reasons"]
    return {key for key, why in reasons.items() if why == reasons.get("scale")}


def _figure_lines(one: Record, name: str, tensor: dict[str, Any]) -> Iterator[str]:
    bits = f"{tensor['storage']['bits_per_value']:.4g} bits a value"
    if one["n_bits"] is not None and "stored_dtype" not in tensor:
        bits = f"{one['n_bits']} bits"
    yield f"{label(name)} {tensor['shape']}, {one['mode']}, {bits}"
    predicted = tensor["predicted"] or {}
    unknown = _unknown(tensor)
    for key, value in (tensor["params"] | tensor["measured"] | tensor["rank"]).items():
        if key in unknown:
            continue
        note = f"   {tensor['reasons'][key]}" if key in tensor["reasons"] else ""
        if key in predicted:
            note = f"   predicted {format_number(predicted[key], '.6g')}"
        yield f"  {key:<20}{format_number(value, '.6g'):>14}{note}"
