"""The files of a plan, in the directory of its sweep."""

from collections.abc import Mapping
from typing import Any

from quantlab.plans.mixture import Plan
from quantlab.plans.page import page
from quantlab.plans.runtimes.registry import RUNTIMES
from quantlab.plans.runtimes.runtime import Taken
from quantlab.plans.table import plan_json, plan_table, to_csv
from quantlab.records import disk
from quantlab.records.older import UNKNOWN
from quantlab.records.table import Aggregated
from quantlab.report.texts import Texts
from quantlab.text import label


def artefacts(
    plan: Plan, found: Aggregated, asked: Mapping[str, Any], command: str, t: Texts
) -> dict[str, bytes]:
    """Return the files of a plan under their names; the recipe's where one is asked for."""
    files = {
        "plan.csv": to_csv(plan_table(plan)),
        "plan.html": page(plan, command, found.sha256, t),
    }
    if asked.get("recipe"):
        chosen = RUNTIMES[asked["recipe"]]
        files[chosen.file] = chosen.recipe(_taken(plan))
    return {**files, "plan.json": plan_json(plan, asked, found.sha256, files)}


def _taken(plan: Plan) -> list[Taken]:
    """Return what each tensor takes; raises ValueError where two sources have one of one name."""
    if any(each.tensor.dtype == UNKNOWN for each in plan.tensors):
        raise ValueError(
            "an older version left tensors out without their shapes: sweep with resume=false first"
        )
    names = [each.tensor.name for each in plan.tensors]
    if len(set(names)) < len(names):
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise ValueError(f"two sources have a '{label(twice)}': a recipe is of one checkpoint")
    return [Taken(each.tensor, each.part.row) for each in plan.tensors]


def write(found: Aggregated, files: Mapping[str, bytes]) -> None:
    """Write the files of a plan, and remove the recipe of an earlier one."""
    for name, content in files.items():
        disk.write(found.directory / name, content)
    for each in RUNTIMES.values():
        if each.file not in files:
            (found.directory / each.file).unlink(missing_ok=True)
