"""What a person reads in the terminal: one run's figures; a sweep's table and verdict."""

from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a single run prints its figures without pandas
    import pandas as pd

    from quantlab.aggregate import Sweep
    from quantlab.record import Record

LONGEST = 60  # rows; beyond them a terminal is the wrong place
MEASURED = {
    "mae": ".3e",
    "max_err": ".3e",
    "rel_err": ".1%",
    "cos_sim": ".7f",
    "n_codes": "d",
    "sqnr_db": ".2f",
    "zeroed": ".1%",
}
PREDICTED = {"scale": ".3g", "mae": ".3g", "sqnr_db": ".1f", "landmark_rel_err": ".1%"}


def figures(one: "Record") -> str:
    """Return every figure of one run, a line each, with what was predicted beside it."""
    return "\n".join(
        line for name, tensor in one["tensors"].items() for line in _figure_lines(one, name, tensor)
    )


def _figure_lines(one: "Record", name: str, tensor: dict[str, Any]) -> Iterator[str]:
    yield f"{name} {tensor['shape']}, {one['mode']}, {one['n_bits']} bits"
    predicted = tensor["predicted"] or {}
    for key, value in (tensor["params"] | tensor["measured"] | tensor["rank"]).items():
        note = f"   {tensor['reasons'][key]}" if key in tensor["reasons"] else ""
        if key in predicted:
            note = f"   predicted {_cell(predicted[key], '.6g')}"
        yield f"  {key:<20}{_cell(value, '.6g'):>14}{note}"


def sweep(done: "Sweep") -> str:
    """Return the tables of a sweep, its verdict, its failures and where its files are."""
    parts = [
        *_tables(done),
        "\n".join(f"{where} failed: {why}" for where, why in done.failures.items()),
        "\n".join(str(path) for path in done.files),
    ]
    return "\n\n".join(part for part in parts if part)


def _tables(done: "Sweep") -> Iterator[str]:
    if done.table.empty:
        return
    yield measured(done)
    if "predicted_scale" in done.table:
        yield f"predicted → measured\n{predicted(done)}"
    yield verdict(done)


def measured(done: "Sweep") -> str:
    """Return the figures that decide, a row a tensor and run."""
    rows = done.table[:LONGEST]
    columns = {key: rows[key].map(lambda v, s=spec: _cell(v, s)) for key, spec in MEASURED.items()}
    columns["top k"] = rows.apply(_rank, axis=1)
    text = _aligned(rows[done.levels].map(str).assign(**columns))
    left_out = len(done.table) - len(rows)
    return text + (f"\n... and {left_out} rows more, in results.csv" if left_out else "")


def predicted(done: "Sweep") -> str:
    """Return what theory said beside what came out, a row a tensor and run."""
    rows = done.table[:LONGEST]
    rows = rows[rows["predicted_scale"].notna()]
    columns = {
        key: [
            f"{_cell(before, spec)} → {_cell(after, spec)}"
            for before, after in zip(rows[f"predicted_{key}"], rows[key], strict=True)
        ]
        for key, spec in PREDICTED.items()
    }
    return _aligned(rows[done.levels].map(str).assign(**columns))


def verdict(done: "Sweep") -> str:
    """Return a sentence for each tensor and quantizer: from how many bits its order holds."""
    keys = [level for level in done.levels if level != "n_bits"]
    groups = done.table[:LONGEST].groupby(keys, sort=False, dropna=False)
    return "\n".join(f"{', '.join(map(str, name))}: {_sentence(rows)}" for name, rows in groups)


def _sentence(rows: "pd.DataFrame") -> str:
    widest_first = rows.sort_values("n_bits", ascending=False).to_dict("records")
    holding = list(takewhile(_order_holds, widest_first))
    row = holding[-1] if holding else widest_first[0]
    top, bits = f"the top {row['top_k']}", f"{row['n_bits']} bits"
    if holding:
        order = f"{top} keeps its order {f'from {bits} up' if len(rows) > 1 else f'at {bits}'}"
    else:
        order = f"{top} is not safe at {bits} ({_rank(row)})"
    cost = f"rel_err {_cell(row['rel_err'], '.1%')}, {_cell(row['zeroed'], '.1%')} become 0"
    return f"{order}; there {cost}"


def _order_holds(row: Any) -> bool:
    return not row["top_merged"] and not row["top_swapped"] and row["top_worst"] == 1


def _rank(row: Any) -> str:
    """Say what became of the top k, whatever way ties are broken."""
    if _order_holds(row):
        return "in order"
    found = [f"{row[f'top_{kind}']} {kind}" for kind in ("swapped", "merged") if row[f"top_{kind}"]]
    if row["top_worst"] < 1:
        found.append(f"{row['top_worst']:.0%} to {row['top_best']:.0%} kept")
    return ", ".join(found)


def _aligned(table: "pd.DataFrame") -> str:
    return table.to_string(index=False)


def _cell(value: Any, spec: str) -> str:
    """Format a number; null is a dash, anything else is itself."""
    if value is None:
        return "–"
    return format(value, spec) if type(value) in (int, float) else str(value)
