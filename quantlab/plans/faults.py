"""Whether the files of a plan are still as its plan.json says, and of the results beside it."""

import json
from collections.abc import Iterator
from pathlib import Path

from quantlab.records import disk

NAME = "plan.json"
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
AGAIN = "run quantlab plan again"


def plan_files(directory: Path) -> dict[str, str]:
    """Return the sha256 of each file that a plan lists; none where there is no plan to read."""
    path = directory / NAME
    try:
        files = json.loads(path.read_bytes())["files"].items() if path.is_file() else ()
        return {name: sha256 for name, sha256 in files if Path(name).name == name}
    except DAMAGED:
        return {}


def plan_faults(directory: Path) -> Iterator[str]:
    """Yield, a sentence each, what of a plan is not as it was written; nothing without a plan."""
    path = directory / NAME
    if not path.is_file():
        return
    try:
        plan = json.loads(path.read_bytes())
        sha256 = plan["results_sha256"]
    except DAMAGED:
        yield f"{path} is no plan: {AGAIN}"
        return
    results = directory / "results.json"
    if results.is_file() and disk.digest(results) != sha256:
        yield f"{path} is of other results than {results}: {AGAIN}"
    for name, expected in plan_files(directory).items():
        file = directory / name
        if not file.is_file():
            yield f"{file} is missing: {path} lists it"
        elif disk.digest(file) != expected:
            yield f"{file} has changed: its sha256 is not the one in {path}"
