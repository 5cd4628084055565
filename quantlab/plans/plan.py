"""A plan for a sweep, in Python: ``quantlab.plan(DIR, bits=4.5)``."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import pandas as pd

from quantlab.plans.budget import parse_size, require_bits
from quantlab.plans.choose import meeting, within_budget
from quantlab.plans.mixture import Plan
from quantlab.plans.runtimes.registry import runtime
from quantlab.plans.slots import SQNR, Request, find_slots
from quantlab.plans.table import plan_table
from quantlab.plans.weights import read_weights, require_weights
from quantlab.records.table import Aggregated, read_aggregate
from quantlab.report.bar import Bar
from quantlab.report.format_name import format_name
from quantlab.report.settings import verdict_settings

ROUNDING = 2.0**-52  # of bits per value, which a plan prints and takes


def plan(
    directory: str | Path,
    *,
    bits: float | None = None,
    size: str | None = None,
    bar: bool | Mapping[str, float | bool | None] = False,
    recipe: str | None = None,
    by: str = SQNR,
    weights: Mapping[str, float] | str | Path | None = None,
    keep: Mapping[str, str] | None = None,
    same: Sequence[str] = (),
) -> pd.DataFrame:
    """Choose a format for each tensor of a sweep, and return the choice, one row a tensor.

    Exactly one of `bits`, `size` and `bar` says what for; nothing is written.

    Parameters
    ----------
    directory
        That of a sweep with results.csv and manifest.json.
    bits
        The budget in bits per value, on average over all tensors of the checkpoint.
    size
        The budget as a size, such as ``"60MB"``.
    bar
        True for the cheapest formats that meet the bar of the sweep, or criteria of another, such
        as ``{"sqnr_db": 25}``.
    recipe
        A runtime, to choose among the formats that it has: llama.cpp, torchao, mlx or json.
    by
        The figure whose noise is minimised, ``sqnr_db`` or ``out_sqnr_db``.
    weights
        How much the relative error of each tensor counts, 1 where not given; or a csv file.
    keep
        Formats that tensors must have, by patterns of names; the last that matches counts.
    same
        Patterns whose tensors take one format together.

    Returns
    -------
    DataFrame
        ``dist, tensor, dtype, n_elements, format, bits_per_value, n_bytes, sqnr_db`` (dB),
        ``noise`` (weighted relative squared error), the settings of the format, and ``reason``,
        why a tensor was not measured.

    Raises
    ------
    ValueError
        Where the directory is no sweep, the budget is below what there is, or a name, pattern,
        format or weight is unknown.
    """
    found = read_aggregate(Path(directory))
    if isinstance(weights, str | Path):
        weights = read_weights(Path(weights), tensor_names(found))
    kept = tuple((keep or {}).items())
    has = runtime(recipe) if recipe else None
    asked = Request(by, require_weights(weights or {}, tensor_names(found)), has, kept, tuple(same))
    of_sweep, _ = verdict_settings(found.directory, [])
    wanted = Bar.of(bar) if isinstance(bar, Mapping) else of_sweep if bar else None
    return plan_table(make_plan(found, asked, bits=bits, size=size, bar=wanted))


def make_plan(
    found: Aggregated,
    asked: Request,
    *,
    bits: float | None = None,
    size: str | None = None,
    bar: Bar | None = None,
) -> Plan:
    """Return the plan of exactly one kind: for bits per value, for a size, or to meet a bar."""
    if [bits, size, bar].count(None) != 2:
        raise ValueError("a plan takes one of --bits, --size and --bar")
    slots = find_slots(found, asked)
    if bar:
        return meeting(slots, bar)
    if bits is not None:
        n_values = sum(each.size for each in slots.tensors)
        budget = Fraction(require_bits(bits)) * n_values * (1 + Fraction(ROUNDING))
        return within_budget(slots, int(budget))
    return within_budget(slots, 8 * parse_size(str(size)))


def tensor_names(found: Aggregated) -> list[str]:
    """Return the names of the tensors that were measured."""
    return list(dict.fromkeys(row["tensor"] for row in found.rows))


def format_names(found: Aggregated) -> list[str]:
    """Return what formats may be called in lower case, dtypes of tensors that stay included."""
    names = [format_name(row, found.levels) for row in found.rows]
    stored = [str(row["stored_dtype"]) for row in found.rows if row.get("stored_dtype")]
    return list({name.lower() for name in [*names, *stored, *(r["dtype"] for r in found.rows)]})
