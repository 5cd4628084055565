"""What the aggregate of a sweep holds, read back from its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd

from quantlab.records import disk, schema
from quantlab.records.row import Row
from quantlab.records.table import load

TENSORS_SINCE = 4  # the schema of a manifest


class Aggregated(NamedTuple):
    """The table of a sweep and what its manifest says.

    `tensors` are the originals, those that were not measured too, with ``dist``, ``name``,
    ``dtype``, ``shape`` and ``sha256``; `failures` map a run that failed, or a source that
    lacks parts, to the reason; `sha256`
    is that of results.json.
    """

    directory: Path
    rows: list[Row]
    levels: list[str]
    tensors: Sequence[Mapping[str, Any]]
    failures: Mapping[str, str]
    sha256: str


def read(directory: Path) -> Aggregated:
    """Read results.csv and manifest.json of a sweep; raises ValueError, naming what is missing."""
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory: give the directory of a sweep")
    path = directory / "manifest.json"
    table = load(directory)
    again = f"quantlab aggregate {directory} writes it again"
    try:
        manifest = json.loads(path.read_bytes())
        schema.require("manifest", manifest)
        sha256 = disk.digest(directory / "results.json")
    except (OSError, ValueError, RecursionError) as reason:
        raise ValueError(f"{path} cannot be read ({reason}): {again}") from None
    if manifest["schema"] < TENSORS_SINCE:
        raise ValueError(f"{path} is of an older version and lists no tensors: {again}")
    failures = {
        run["directory"]: run["error"] or run["status"]
        for run in manifest["runs"]
        if run["status"] != "completed"
    } | manifest.get("missing", {})
    return Aggregated(
        directory, rows(table), manifest["levels"], manifest["tensors"], failures, sha256
    )


def rows(table: pd.DataFrame) -> list[Row]:
    """Return the rows of a table in Python's own types; what is missing is None."""
    plain = table.astype(object)
    return cast("list[Row]", plain.where(plain.notna(), None).to_dict("records"))
