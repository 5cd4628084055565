"""The command ``quantlab plan``: what was asked for, the plan, its files and what is printed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlab.plans.artefacts import artefacts, write
from quantlab.plans.constraints import parse_keep
from quantlab.plans.plan import format_names, make_plan, tensor_names
from quantlab.plans.runtimes.registry import runtime
from quantlab.plans.slots import Request
from quantlab.plans.summary import plan_summary
from quantlab.plans.weights import read_weights
from quantlab.records.table import read_aggregate
from quantlab.report.settings import verdict_settings

ASKED = ("bits", "size", "bar", "recipe", "by", "weights", "keep", "same")


def run(directory: Path, settings: Sequence[str], options: Mapping[str, Any], command: str) -> str:
    """Write the plan of a sweep into its directory and return what to print.

    `options` are those of the command line, by their names; nothing is written where one is wrong.
    """
    found = read_aggregate(directory)
    bar, t = verdict_settings(directory, settings)
    names, path = tensor_names(found), options["weights"]
    known = format_names(found)
    asked = Request(
        by=options["by"],
        weights=read_weights(path, names) if path else {},
        runtime=runtime(options["recipe"]) if options["recipe"] else None,
        keep=[parse_keep(each, known) for each in options["keep"]],
        same=options["same"],
    )
    made = make_plan(
        found,
        asked,
        bits=options["bits"],
        size=options["size"],
        bar=bar if options["bar"] else None,
    )
    noted = {key: options[key] for key in ASKED if options[key]}
    noted |= {"weights": str(path)} if path else {}
    noted |= {"bar": bar.criteria} if options["bar"] else {}
    files = artefacts(made, found, noted, f"quantlab {command}", t)
    write(found, files)
    paths = [directory / name for name in files]
    usage = asked.runtime.usage(str(directory / asked.runtime.file)) if asked.runtime else None
    return plan_summary(made, paths, usage, t)
