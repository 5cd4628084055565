"""The files of a plan in the directory of its sweep, and whether they are still as written.

plan.json holds the options of the command, the sums, the tensors, and the sha256 of the others.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantlab.plans.mixture import Plan
from quantlab.plans.options import Assignment
from quantlab.plans.runtimes import RUNTIMES
from quantlab.plans.runtimes.runtime import FORMAT_COLUMNS, Runtime
from quantlab.records import disk
from quantlab.records.older import UNKNOWN
from quantlab.text import label

PLAN_JSON = "plan.json"
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
    plan: Plan, typed: Mapping[str, Any], results_sha256: str, files: Mapping[str, bytes]
) -> bytes:
    """Return plan.json.

    `typed` are the options of the command, `results_sha256` is that of the results.json which the
    plan was made from, `files` are those written beside it.
    """
    best = plan.best_uniform
    rows = map(assignment_row, plan.assignments)
    return disk.to_json(
        {
            "schema": SCHEMA,
            "results_sha256": results_sha256,
            "asked": dict(typed),
            "bits_per_value": plan.bits_per_value,
            "n_bytes": -(-plan.bits // 8),
            "noise": plan.noise,
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
    """Write the files of a plan, and remove the recipe of an earlier one."""
    for name, content in files.items():
        disk.write(directory / name, content)
    for runtime in RUNTIMES.values():
        if runtime.file not in files:
            (directory / runtime.file).unlink(missing_ok=True)


def plan_files(directory: Path) -> dict[str, str]:
    """Return the sha256 of each file that plan.json lists; none if it cannot be read."""
    path = directory / PLAN_JSON
    try:
        files = json.loads(path.read_bytes())["files"].items() if path.is_file() else ()
        return {name: sha256 for name, sha256 in files if Path(name).name == name}
    except DAMAGE:
        return {}


def plan_faults(directory: Path) -> Iterator[str]:
    """Yield one sentence per difference between a plan and its files; none without a plan."""
    path = directory / PLAN_JSON
    if not path.is_file():
        return
    try:
        plan = json.loads(path.read_bytes())
        results_sha256 = plan["results_sha256"]
    except DAMAGE:
        yield f"{path} is no plan: {ADVICE}"
        return
    results = directory / "results.json"
    if results.is_file() and disk.digest(results) != results_sha256:
        yield f"{path} is of other results than {results}: {ADVICE}"
    for name, sha256 in plan_files(directory).items():
        file = directory / name
        if not file.is_file():
            yield f"{file} is missing: {path} lists it"
        elif disk.digest(file) != sha256:
            yield f"{file} has changed: its sha256 is not the one in {path}"
