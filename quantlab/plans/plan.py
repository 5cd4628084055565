"""A plan for a sweep: ``quantlab.plan(DIR, bits=4.5)``, and the command ``quantlab plan``."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.plans.mixture import Plan, plan_for_bar, plan_within_budget, smallest_plan
from quantlab.plans.options import Assignment
from quantlab.plans.problem import KL, Request, build_problem
from quantlab.plans.runtimes import RUNTIMES
from quantlab.plans.runtimes.runtime import FORMAT_COLUMNS, Runtime
from quantlab.records import disk
from quantlab.records.answers import NAME as ANSWERS
from quantlab.records.manifest import find_source
from quantlab.records.older import UNKNOWN
from quantlab.records.table import Aggregated, read_aggregate
from quantlab.report.bar import Bar, read_settings, row_bars
from quantlab.report.terminal import render
from quantlab.report.texts import Texts
from quantlab.sources.file import existing_path
from quantlab.sources.hub import is_hub_id
from quantlab.sources.readers import count_cached_values
from quantlab.text import format_size, label

OPTIONS = ("bits", "size", "kl", "bar", "recipe", "by", "weights", "keep", "same")
BUDGETS = ("bits", "size")  # of which a command takes several, with commas between
CACHE_BYTES = 2  # of a key or value, in float16
COUNTS = ("n_elements", "n_bytes", "n_bits", "block_size")
NUMBERS = ("bits_per_value", "sqnr_db", "noise")


def plan(
    directory: str | Path,
    *,
    bits: float | str | None = None,
    size: str | None = None,
    kl: float | str | None = None,
    bar: bool | Mapping[str, float | bool | None] = False,
    recipe: str | None = None,
    by: str | None = None,
    weights: Mapping[str, float] | str | Path | None = None,
    keep: Mapping[str, str] | None = None,
    same: str | Sequence[str] = (),
) -> pd.DataFrame:
    """Choose a format for each tensor of a sweep, and return the choice, one row a tensor.

    Exactly one of `bits`, `size`, `kl` and `bar` is given; nothing is written.

    Parameters
    ----------
    directory
        That of a sweep with results.csv and manifest.json.
    bits
        The budget in bits per value, on average over all tensors of the checkpoint.
    size
        The budget as a size, such as ``"60MB"``.
    kl
        What the answers of the model are predicted to lose at most, in bits: the smallest plan.
    bar
        True for the cheapest formats that meet the bars of the sweep, or criteria of another, such
        as ``{"sqnr_db": 25}``.
    recipe
        A runtime, to choose among the formats that it has: llama.cpp, torchao, mlx, onnxruntime,
        llm-compressor, gptqmodel, auto-round, modelopt, or json.
    by
        What is minimised: the noise by ``sqnr_db``, the default, or ``out_sqnr_db``, or the ``kl``
        of a model's answers.
    weights
        How much the relative error of each tensor counts, 1 where not given; or a csv file; or the
        directory of a sweep of ``mode=noise`` with answers of each tensor alone, which measures it.
    keep
        Formats that tensors must have, by patterns of names; the last that matches counts.
    same
        A pattern, or several, whose tensors take one format together.

    Returns
    -------
    DataFrame
        ``dist, tensor, dtype, n_elements, format, bits_per_value, n_bytes, sqnr_db`` (dB),
        ``noise`` (weighted relative squared error, or predicted KL), the settings of the format,
        and ``reason``, why a tensor was not measured.

    Raises
    ------
    ValueError
        Where the directory is no sweep, the budget is below what there is, or a name, pattern,
        format or weight is unknown.
    """
    sweep = read_aggregate(Path(directory))
    if isinstance(bar, Mapping):
        columns = Bar.of(bar).columns()
        sweep = sweep._replace(rows=[{**row, **columns} for row in sweep.rows])
    options = {
        "bits": bits, "size": size, "kl": kl, "bar": bar, "recipe": recipe, "by": by,
        "weights": weights, "keep": keep, "same": same,
    }  # fmt: skip
    return plan_table(make_plan(sweep, Request.parse(options, tensor_names(sweep))))


def make_plan(sweep: Aggregated, request: Request) -> Plan:
    """Return the plan of a sweep for the budget or the bars of a request; raises ValueError."""
    problem = build_problem(sweep, request)
    if request.bar:
        return plan_for_bar(problem)
    if request.kl is not None:
        return smallest_plan(problem, request.kl)
    return plan_within_budget(problem, request.budget(problem.n_values), request.budget_text)


def plan_table(plan: Plan) -> pd.DataFrame:
    """Return a plan, one row a tensor of the checkpoint.

    Text is ``string``, counts are ``Int64``, `bits_per_value`, `sqnr_db` in dB and `noise`, the
    weighted relative squared error, ``float64``. A tensor that stays as it is stored has no
    settings of a format; `reason` says why one was not measured.
    """
    rows = [assignment_row(assignment) for assignment in plan.assignments]
    table = pd.DataFrame(rows, dtype=object)
    types: dict[str, Any] = dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(NUMBERS, "float64")
    try:
        return table.astype({column: types.get(column, "string") for column in table.columns})
    except UnicodeEncodeError:  # PyArrow's strings are Unicode, and names need not be
        text = pd.StringDtype("python")
        return table.astype({column: types.get(column, text) for column in table.columns})


def tensor_names(sweep: Aggregated) -> list[str]:
    """Return the names of the tensors that were measured."""
    return list(dict.fromkeys(row["tensor"] for row in sweep.rows))


def run_command(
    directory: Path, settings: Sequence[str], options: Mapping[str, Any], command: str
) -> Iterator[str]:
    """Yield the plan of a sweep as text, write its files, then yield their paths.

    `options` are those of the command line, by their names; nothing is written if one is wrong, nor
    of several budgets, which are a row each of one table. Files go into the directory `out`, that
    of the sweep where there is none.
    """
    from quantlab.plans.page import budget_table, plan_summary  # matplotlib, which plan() lacks

    sweep, out = read_aggregate(directory), options.get("out") or directory
    report = read_settings(directory, settings)
    sweep, texts = sweep._replace(rows=report.judged(sweep.rows)), report.texts
    formats = format_names(sweep)
    typed = {name: options.get(name) for name in OPTIONS}
    parsed = typed | {"keep": [parse_keep(text, formats) for text in typed["keep"] or ()]}
    requests = [
        Request.parse(parsed | budget, tensor_names(sweep), dashes="--")
        for budget in split_budgets(typed)
    ]
    if len(requests) > 1:
        yield render(budget_table([make_plan(sweep, request) for request in requests], texts))
        return
    (request,) = requests
    plan = make_plan(sweep, request)
    typed["bits"] = request.bits
    notes = {name: value for name, value in typed.items() if value}
    notes |= {"weights": str(typed["weights"])} if typed["weights"] else {}
    if typed["bar"]:
        bars = [bar.criteria for bar in row_bars(sweep.rows)]
        notes["bar"] = bars if len(bars) > 1 else bars[0]
    source = find_source(directory)
    remarks = list(_file_remarks(plan, source, options.get("context"), texts))
    head = Path(source).name, remarks
    files = plan_artefacts(plan, sweep, notes, f"quantlab {command}", texts, head)
    _make_writable(out)
    yield plan_summary(plan, texts, *head)
    write_files(out, files)
    paths = "\n".join(str(out / name) for name in files)
    runtime = request.runtime
    yield "\n" + render(paths, runtime.usage(str(out / runtime.file)) if runtime else "")


def _file_remarks(plan: Plan, source: str, context: int | None, texts: Texts) -> Iterator[str]:
    """Yield what the file of a runtime weighs, and the keys and values of a context of tokens.

    Raises ValueError where the checkpoint does not tell how many those are.
    """
    runtime = plan.problem.runtime
    path = _find_checkpoint(source, is_needed=context is not None)
    size = runtime.file_size(plan.assignments, path) if runtime and path else None
    if runtime and size:
        about = {"size": format_size(size.n_bytes), "bytes": f"{size.n_bytes:,}"}
        yield texts(f"plan_file{'' if size.is_exact else '_about'}", runtime=runtime.name, **about)
    if context is None:
        return
    if context < 1:
        raise ValueError(f"--context takes a number of tokens above 0, got {context}")
    n_values = count_cached_values(path) if path else None
    if n_values is None:
        raise ValueError(
            f"--context {context}: {source or 'the checkpoint'} does not tell its layers, heads of "
            "keys and values, and their size"
        )
    yield texts(
        "plan_context", n=f"{context:,}", size=format_size(CACHE_BYTES * n_values * context)
    )


def _find_checkpoint(source: str, *, is_needed: bool) -> str:
    """Return the path of a checkpoint, empty where there is none; raises ValueError if needed."""
    if not source or (is_hub_id(source) and not is_needed):  # which might be downloaded again
        return ""
    try:
        return existing_path(source)
    except ValueError:
        if is_needed:
            raise
        return ""


def split_budgets(typed: Mapping[str, Any]) -> list[dict[str, str]]:
    """Split budgets at their commas; one that is empty leaves all as typed.

    >>> split_budgets({"bits": "4,5", "size": None})
    [{'bits': '4'}, {'bits': '5'}]
    """
    budgets = [(key, str(typed[key]).split(",")) for key in BUDGETS if typed.get(key) is not None]
    return [{key: value} for key, values in budgets for value in values] or [{}]


def _make_writable(directory: Path) -> None:
    """Make the directory of a plan; raises ValueError where it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ValueError(f"{directory} cannot be made: {reason.strerror}") from None
    disk.require_writable(directory, "name another directory with --out DIR")


def parse_keep(text: str, formats: Collection[str]) -> tuple[str, str]:
    """Return the pattern and the format of ``PATTERN=FORMAT``; both may hold an equals sign.

    It is split before one of `formats`, which are in lower case, else at the last sign.
    """
    signs = (place for place, character in enumerate(text) if character == "=")
    splits = [(text[:place], text[place + 1 :]) for place in signs]
    splits = [(pattern, name) for pattern, name in splits if pattern and name]
    if not splits:
        raise ValueError(f"--keep takes PATTERN=FORMAT, as in 'output.weight=q8_0', got {text!r}")
    return next((pair for pair in splits if pair[1].lower() in formats), splits[-1])


def format_names(sweep: Aggregated) -> set[str]:
    """Return the names of formats in lower case, dtypes of tensors that stay included."""
    names = {str(row["format"]) for row in sweep.rows} | {str(row["dtype"]) for row in sweep.rows}
    stored = {str(row["stored_dtype"]) for row in sweep.rows if row.get("stored_dtype")}
    return {name.lower() for name in names | stored}


def plan_artefacts(
    plan: Plan,
    sweep: Aggregated,
    typed: Mapping[str, Any],
    command: str,
    texts: Texts,
    head: tuple[str, Sequence[str]] = ("", ()),
) -> dict[str, bytes]:
    """Return the files of a plan by their names, with the recipe of its runtime.

    `head` is the name of the checkpoint, empty where it is not known, and what is remarked of it.
    """
    from quantlab.plans.page import render_page

    runtime = plan.problem.runtime
    files = {
        "plan.csv": table_csv(plan_table(plan)),
        "plan.html": render_page(plan, command, sweep.artefacts["results.json"], texts, *head),
        **({runtime.file: recipe_bytes(plan, runtime)} if runtime else {}),
    }
    return {**files, PLAN_JSON: plan_json(plan, typed, sweep.artefacts, files)}


def table_csv(table: pd.DataFrame) -> bytes:
    """Return plan.csv."""
    return table.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace")


PLAN_JSON = "plan.json"
TABLES = {  # whose hashes plan.json has; older versions had the first alone
    "results_sha256": "results.json",
    "table_sha256": "results.csv",
    "answers_sha256": ANSWERS,
}
SCHEMA = 1
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
ADVICE = "run quantlab plan again"


def assignment_row(assignment: Assignment) -> dict[str, Any]:
    """Return the row of plan.csv for one tensor; None where it has no value."""
    row = assignment.row or {}
    return {
        "dist": assignment.tensor.dist,
        "tensor": assignment.tensor.name,
        "dtype": assignment.tensor.dtype,
        "n_elements": assignment.tensor.size,
        "format": assignment.format,
        "bits_per_value": assignment.bits_per_value,
        "n_bytes": -(-assignment.bits // 8),
        "sqnr_db": row.get("sqnr_db"),
        "noise": assignment.noise,
        **{key: row.get(key) for key in (*FORMAT_COLUMNS, "settings")},
        "reason": assignment.tensor.reason,
    }


def plan_json(
    plan: Plan, typed: Mapping[str, Any], artefacts: Mapping[str, str], files: Mapping[str, bytes]
) -> bytes:
    """Return plan.json.

    `typed` are the options of the command, `artefacts` the hashes of the aggregate which the plan
    was made from, `files` are those written beside it.
    """
    problem, best = plan.problem, plan.best_uniform
    rows = map(assignment_row, plan.assignments)
    tables = {key: name for key, name in TABLES.items() if name != ANSWERS or problem.by == KL}
    return disk.to_json(
        {
            "schema": SCHEMA,
            **{key: artefacts[name] for key, name in tables.items()},
            "asked": dict(typed),
            "bits_per_value": plan.total.bits_per_value,
            "n_bytes": -(-plan.total.bits // 8),
            "noise": plan.total.noise,
            **({"predicted_kl": plan.total.noise} if problem.minimised == KL else {}),
            "gap": plan.gap if plan.budget is not None else None,
            "best_uniform": best
            and {"format": best.format, "bits": best.bits, "noise": best.noise},
            "unmet": list(plan.unmet),
            "tensors": [
                {key: value for key, value in row.items() if value is not None} for row in rows
            ],
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
    )


def recipe_bytes(plan: Plan, runtime: Runtime) -> bytes:
    """Return the recipe of a plan; raises ValueError if the plan is not of one whole checkpoint."""
    tensors = [assignment.tensor for assignment in plan.assignments]
    if any(tensor.dtype == UNKNOWN for tensor in tensors):
        raise ValueError(
            "an older version left tensors out without their shapes: sweep with resume=false first"
        )
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise ValueError(
                f"two sources have a '{label(tensor.name)}': a recipe is of one checkpoint"
            )
        names.add(tensor.name)
    return runtime.recipe(plan.assignments)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a plan together, and remove the recipe of an earlier one."""
    recipes = {directory / runtime.file for runtime in RUNTIMES.values()}
    stale = [path for path in recipes if path.name not in files and path.exists()]
    disk.write_together(directory, files, voucher=PLAN_JSON, stale=stale)


def plan_files(directory: Path) -> dict[str, str]:
    """Return the sha256 of each file that plan.json lists; none if it cannot be read."""
    path = directory / PLAN_JSON
    try:
        files = disk.read_json(path)["files"].items() if path.is_file() else ()
        return {name: sha256 for name, sha256 in files if Path(name).name == name}
    except DAMAGE:
        return {}


def plan_faults(directory: Path) -> Iterator[str]:
    """Yield one sentence per difference between a plan and its files; none without a plan."""
    path = directory / PLAN_JSON
    if not path.is_file():
        return
    try:
        plan = disk.read_json(path)
        hashes = {"results.json": plan["results_sha256"]}
        hashes |= {name: plan[key] for key, name in TABLES.items() if key in plan}
    except DAMAGE:
        yield f"{path} is no plan: {ADVICE}"
        return
    tables = [directory / name for name in hashes if (directory / name).is_file()]
    changed = [table for table in tables if disk.digest(table) != hashes[table.name]]
    if changed:
        yield f"{path} is of other results than {changed[0]}: {ADVICE}"
    for name, sha256 in plan_files(directory).items():
        file = directory / name
        if not file.is_file():
            yield f"{file} is missing: {path} lists it"
        elif disk.digest(file) != sha256:
            yield f"{file} has changed: its sha256 is not the one in {path}"
