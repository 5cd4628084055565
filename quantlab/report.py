"""What a person reads in the terminal: one run's figures; a sweep's table and verdict."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from statistics import median
from typing import TYPE_CHECKING, Any

from quantlab.tensor import label

if TYPE_CHECKING:  # a single run prints its figures without pandas
    import pandas as pd

    from quantlab.aggregate import Sweep
    from quantlab.files import Entry
    from quantlab.record import Record

LONGEST = 60  # rows; beyond them a terminal is the wrong place
WORST = 3  # of them a terminal shows those that suffer most
MEASURED = {
    "mae": ".3e",
    "max_err": ".3e",
    "rel_err": ".1%",
    "cos_sim": ".7f",
    "n_codes": "d",
    "sqnr_db": ".2f",
    "zeroed": ".1%",
}
RATIOS = {key: MEASURED[key] for key in ("sqnr_db", "rel_err", "zeroed", "cos_sim", "n_codes")}
Run = tuple[dict[str, str], list[Any]]  # what identifies it, and its rows, the worst first
PREDICTED = {"scale": ".3g", "mae": ".3g", "sqnr_db": ".1f", "landmark_rel_err": ".1%"}


def listing(entries: Sequence["Entry"]) -> str:
    """Return what a file of tensors holds, a line each, chosen or why not."""
    rows = [
        (label(each.name), str(list(each.shape)), each.dtype, f"{each.size:,}", _choice(each))
        for each in entries
    ]
    return _columns([("tensor", "shape", "dtype", "elements", ""), *rows])


def _choice(entry: "Entry") -> str:
    return f"left out: {entry.left_out}" if entry.left_out else "chosen"


def figures(one: "Record") -> str:
    """Return the figures of one run: of one tensor all, of many those that decide, worst first."""
    tensors = one["tensors"]
    if len(tensors) == 1:
        return "\n".join(_figure_lines(one, *next(iter(tensors.items()))))
    measured = {name: tensor["measured"] for name, tensor in tensors.items()}
    worst = sorted(tensors, key=lambda name: quality(measured[name]["sqnr_db"]))
    rows = [
        (label(name), f"{tensors[name]['n_elements']:,}", *_ratios(measured[name]))
        for name in worst[:LONGEST]
    ]
    left_out = [f"... and {len(worst) - LONGEST} more, in record.json"] * (len(worst) > LONGEST)
    table = _columns([("tensor, worst first", "elements", *RATIOS), *rows])
    return "\n".join([table, *left_out, *_skipped(one["skipped"])])


def _figure_lines(one: "Record", name: str, tensor: dict[str, Any]) -> Iterator[str]:
    yield f"{label(name)} {tensor['shape']}, {one['mode']}, {one['n_bits']} bits"
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
        "\n".join(_skipped(done.skipped)),
        _failures(done.failures),
        "\n".join(str(path) for path in done.files),
    ]
    return "\n\n".join(part for part in parts if part)


def _tables(done: "Sweep") -> Iterator[str]:
    if done.table.empty:
        return
    if "tensor" in done.levels:
        runs = list(_by_run(done))
        yield _overview(runs)
        yield f"the {WORST} worst tensors of each run, by sqnr_db\n{_worst(runs)}"
        yield "\n".join(_checkpoint_verdicts(runs))
        return
    yield measured(done)
    if "predicted_scale" in done.table:
        yield f"predicted → measured\n{predicted(done)}"
    yield verdict(done)


def _failures(reasons: dict[str, str]) -> str:
    lines = [f"{run} failed: {why}" for run, why in reasons.items()]
    many = [f"{len(lines)} runs failed or left no record that can be read"] * (len(lines) > 1)
    return "\n".join([*many, _shortened(lines, "manifest.json")])


def _shortened(lines: list[str], where: str) -> str:
    """Return the lines that a terminal has room for, and where the rest is."""
    more = [f"... and more, in {where}"] * (len(lines) > LONGEST)
    return "\n".join(lines[:LONGEST] + more)


def _skipped(reasons: dict[str, str]) -> list[str]:
    lines = [f"left out: {label(name)} ({why})" for name, why in reasons.items()]
    more = [f"... and {len(lines) - WORST} more, in record.json"] * (len(lines) > WORST)
    return lines[:WORST] + more


def _by_run(done: "Sweep") -> Iterator[Run]:
    for run, rows in _groups(done, without="tensor"):
        yield run, sorted(rows.to_dict("records"), key=lambda row: quality(row["sqnr_db"]))


def _groups(done: "Sweep", without: str) -> Iterator[tuple[dict[str, str], "pd.DataFrame"]]:
    """Yield the rows that agree in every level but one, with what they agree in."""
    keys = [level for level in done.levels if level != without]
    labels = [done.table[key].map(str) for key in keys]  # grouped raw, a null would become nan
    for values, rows in done.table.groupby(labels, sort=False):
        yield dict(zip(keys, map(str, values), strict=True)), rows


def _named(run: dict[str, str]) -> str:
    """Say which run is meant: its distribution and mode, then what else varies."""
    dist, mode, *others = run.items()
    rest = [f"{value} bits" if key == "n_bits" else f"{key}={value}" for key, value in others]
    return ", ".join([dist[1], mode[1], *map(label, rest)])


def _overview(runs: list[Run]) -> str:
    """Return a row a run: how its tensors fared, the middle one and the worst."""
    lines = []
    for run, ranked in runs:
        middle = median(quality(row["sqnr_db"]) for row in ranked)
        lines.append(
            (
                *run.values(),
                str(len(ranked)),
                f"{sum(row['n_elements'] for row in ranked):,}",
                str(sum(map(_order_holds, ranked))),
                _cell(middle, ".2f"),
                _cell(ranked[0]["sqnr_db"], ".2f"),
                label(ranked[0]["tensor"]),
            )
        )
    head = ("tensors", "elements", "top k in order", "median sqnr_db", "least", "of")
    return _columns([(*runs[0][0], *head), *lines])


def _worst(runs: list[Run]) -> str:
    """Return the figures that decide of the worst tensors of each run."""
    lines = [
        (*run.values(), label(row["tensor"]), *_ratios(row))
        for run, ranked in runs
        for row in ranked[:WORST]
    ]
    return _columns([(*runs[0][0], "tensor", *RATIOS), *lines[:LONGEST]])


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
    groups = islice(_groups(done, without="n_bits"), LONGEST + 1)
    return _shortened([f"{_named(run)}: {_sentence(rows)}" for run, rows in groups], "results.csv")


def _sentence(rows: "pd.DataFrame") -> str:
    widest_first = rows.sort_values("n_bits", ascending=False).to_dict("records")
    holding = list(takewhile(_order_holds, widest_first))
    row = holding[-1] if holding else widest_first[0]
    top, bits = f"the top {row['top_k']}", f"{row['n_bits']} bits"
    if holding:
        order = f"{top} keeps its order {f'from {bits} up' if len(rows) > 1 else f'at {bits}'}"
    else:
        order = f"{top} is not safe at {bits} ({_rank(row)})"
    return f"{order}; there {_cost(row)}"


def _cost(row: Any) -> str:
    return f"rel_err {_cell(row['rel_err'], '.1%')}, {_cell(row['zeroed'], '.1%')} become 0"


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


def _checkpoint_verdicts(runs: list[Run]) -> Iterator[str]:
    """Yield a sentence a run: in how many tensors the order holds, and which is worst off."""
    for run, ranked in runs:
        holding, worst_off = sum(map(_order_holds, ranked)), ranked[0]
        yield (
            f"{_named(run)}: the top values keep their order in {holding} of {len(ranked)} "
            f"tensors; worst off is {label(worst_off['tensor'])}, {_cost(worst_off)}"
        )


def _ratios(figures: Any) -> Iterator[str]:
    return (_cell(figures[key], spec) for key, spec in RATIOS.items())


def quality(sqnr_db: float | None) -> float:
    """Return an SQNR to rank by, in dB; a perfect round trip, which has none, ranks first."""
    return math.inf if sqnr_db is None else sqnr_db


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Align words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [cell[:1].isdigit() or cell == "–" for cell in rows[-1]]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    )


def _aligned(table: "pd.DataFrame") -> str:
    return table.to_string(index=False)


def _cell(value: Any, spec: str) -> str:
    """Format a number; null is a dash, anything else is itself."""
    if value is None:
        return "–"
    return format(value, spec) if type(value) in (int, float) else str(value)
