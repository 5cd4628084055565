"""A plan for a sweep: ``quantlab.plan(DIR, bits=4.5)``, and the command ``quantlab plan``."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.plans.files import PLAN_JSON, assignment_row, plan_json, recipe_bytes, write_files
from quantlab.plans.mixture import Plan, make_plan
from quantlab.plans.problem import format_names
from quantlab.plans.request import FIGURES, Request, parse_keep
from quantlab.plans.sentences import plan_summary
from quantlab.records.table import Aggregated, read_aggregate
from quantlab.report.bar import Bar, read_settings, row_bars
from quantlab.report.terminal import render
from quantlab.report.texts import Texts

OPTIONS = ("bits", "size", "bar", "recipe", "by", "weights", "keep", "same")
COUNTS = ("n_elements", "n_bytes", "n_bits", "block_size")
NUMBERS = ("bits_per_value", "sqnr_db", "noise")


def plan(
    directory: str | Path,
    *,
    bits: float | str | None = None,
    size: str | None = None,
    bar: bool | Mapping[str, float | bool | None] = False,
    recipe: str | None = None,
    by: str = FIGURES[0],
    weights: Mapping[str, float] | str | Path | None = None,
    keep: Mapping[str, str] | None = None,
    same: str | Sequence[str] = (),
) -> pd.DataFrame:
    """Choose a format for each tensor of a sweep, and return the choice, one row a tensor.

    Exactly one of `bits`, `size` and `bar` is given; nothing is written.

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
        A pattern, or several, whose tensors take one format together.

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
    sweep = read_aggregate(Path(directory))
    sweep_bar = row_bars(sweep.rows)[0]
    criteria = Bar.of(bar) if isinstance(bar, Mapping) else sweep_bar if bar else None
    options = {
        "bits": bits, "size": size, "bar": criteria, "recipe": recipe, "by": by,
        "weights": weights, "keep": keep, "same": same,
    }  # fmt: skip
    return plan_table(make_plan(sweep, Request.parse(options, tensor_names(sweep))))


def plan_table(plan: Plan) -> pd.DataFrame:
    """Return a plan, one row a tensor of the checkpoint.

    Text is ``string``, counts are ``Int64``, `bits_per_value`, `sqnr_db` in dB and `noise`, the
    weighted relative squared error, ``float64``. A tensor that stays as it is stored has no
    settings of a format; `reason` says why one was not measured.
    """
    table = pd.DataFrame([assignment_row(assignment) for assignment in plan.assignments])
    types = dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(NUMBERS, "float64")
    return table.astype({column: types.get(column, "string") for column in table.columns})


def tensor_names(sweep: Aggregated) -> list[str]:
    """Return the names of the tensors that were measured."""
    return list(dict.fromkeys(row["tensor"] for row in sweep.rows))


def run_command(
    directory: Path, settings: Sequence[str], options: Mapping[str, Any], command: str
) -> Iterator[str]:
    """Yield the plan of a sweep as text, write its files, then yield their paths.

    `options` are those of the command line, by their names; nothing is written if one is wrong.
    """
    sweep = read_aggregate(directory)
    report = read_settings(directory, settings)
    sweep, texts = sweep._replace(rows=report.judged(sweep.rows)), report.texts
    bar = row_bars(sweep.rows)[0]
    formats = format_names(sweep)
    typed = {name: options[name] for name in OPTIONS}
    parsed = typed | {
        "bar": bar if typed["bar"] else None,
        "keep": [parse_keep(text, formats) for text in typed["keep"]],
    }
    request = Request.parse(parsed, tensor_names(sweep), dashes="--")
    plan = make_plan(sweep, request)
    notes = {name: value for name, value in typed.items() if value}
    notes |= {"weights": str(typed["weights"])} if typed["weights"] else {}
    notes |= {"bar": bar.criteria} if typed["bar"] else {}
    files = plan_artefacts(plan, sweep, notes, f"quantlab {command}", texts)
    yield plan_summary(plan, texts)
    write_files(directory, files)
    paths = "\n".join(str(directory / name) for name in files)
    runtime = request.runtime
    yield "\n" + render(paths, runtime.usage(str(directory / runtime.file)) if runtime else "")


def plan_artefacts(
    plan: Plan, sweep: Aggregated, typed: Mapping[str, Any], command: str, texts: Texts
) -> dict[str, bytes]:
    """Return the files of a plan by their names, with the recipe of its runtime."""
    from quantlab.plans.page import render_page  # matplotlib, which quantlab.plan does without

    runtime = plan.problem.runtime
    files = {
        "plan.csv": table_csv(plan_table(plan)),
        "plan.html": render_page(plan, command, sweep.sha256, texts),
        **({runtime.file: recipe_bytes(plan, runtime)} if runtime else {}),
    }
    return {**files, PLAN_JSON: plan_json(plan, typed, sweep.sha256, files)}


def table_csv(table: pd.DataFrame) -> bytes:
    """Return plan.csv."""
    return table.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace")
