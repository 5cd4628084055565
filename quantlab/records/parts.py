"""Runs that measure parts of one source, put together as the run of the whole.

A part is no level of the results: what was measured in parts reads as if it had been measured at
once.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quantlab.records.division import (
    KEYS,
    WHOLE,
    Division,
    claim,
    division,
    require_apart,
    without_part,
)
from quantlab.records.record import Record
from quantlab.records.run import Run


class Gap(NamedTuple):
    """The parts that a source, divided into `parts`, lacks in some format."""

    dist: str
    parts: int
    lacks: tuple[int, ...]

    @property
    def source(self) -> str:
        """What the source is called."""
        return f"{self.dist} in {self.parts} parts"

    @property
    def override(self) -> str:
        """What asks for all parts."""
        return f"dist.part=range({self.parts})"

    @property
    def fault(self) -> str:
        """What is wrong."""
        listed = ", ".join(map(str, self.lacks))
        return f"part{'s' if len(self.lacks) > 1 else ''} {listed} without a record"

    @property
    def reason(self) -> str:
        """What is wrong, and what to do."""
        return f"{self.fault}: repeat the sweep in this directory with {self.override}"


def require_runs_apart(runs: Sequence[Run], directory: Path) -> None:
    """Raise ValueError where two runs below a directory measure the same tensors in parts."""
    if any(_is_part(run) for run in runs):
        known = [(run.directory, run.record) for run in runs if run.record]
        require_apart((claim(name, one["dist"], one["config"]) for name, one in known), directory)


def no_settings(records: Sequence[Record]) -> set[str]:
    """Return the keys of a division that no record has in its config, though they were typed."""
    dists = [one["config"].get("dist") for one in records]
    has_own = {key for dist in dists if isinstance(dist, Mapping) for key in KEYS if key in dist}
    return {f"dist.{key}" for key in KEYS if key not in has_own}


def combined(runs: Sequence[Run]) -> list[Run]:
    """Return runs in their order, the parts of one source as one run in the place of the first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_question(run) if _is_part(run) else run.directory, []).append(run)
    return [_joined(group) if _is_part(group[0]) else group[0] for group in groups.values()]


def gaps(runs: Sequence[Run]) -> list[Gap]:
    """Return which divided sources lack parts."""
    there: dict[str, set[Division]] = {}
    for run in runs:
        if run.record and _is_part(run):
            there.setdefault(_question(run), set()).add(_division(run))
    lacking: dict[tuple[str, int], set[int]] = {}
    for question, found in there.items():
        parts = next(iter(found)).parts
        if lacks := set(range(parts)) - {each.part for each in found}:
            lacking.setdefault((question.split()[0], parts), set()).update(lacks)
    return [Gap(*source, tuple(sorted(lacks))) for source, lacks in lacking.items()]


def missing(runs: Sequence[Run]) -> dict[str, str]:
    """Return the divided sources that lack parts, and what to do about each."""
    return {each.source: each.reason for each in gaps(runs)}


def _division(run: Run) -> Division:
    return (run.record and division(run.record["config"].get("dist"))) or WHOLE


def _is_part(run: Run) -> bool:
    return _division(run).parts > 1


def _question(run: Run) -> str:
    one = run.record or {}
    return claim(run.directory, one["dist"], one["config"]).question


def _joined(parts: Sequence[Run]) -> Run:
    """Return the run of a whole source, its tensors in the order of the source."""
    records = [run.record for run in parts if run.record]
    places = {name: place for one in records for name, place in _places(one).items()}

    def merged(key: str) -> dict[str, Any]:
        every = (item for one in records for item in one.get(key, {}).items())
        return dict(sorted(every, key=lambda item: places.get(item[0], math.inf)))

    keys = ("tensors", "identities", "directories", "failed", "unmeasured")
    whole = records[0] | {key: merged(key) for key in keys}
    whole["config"] = without_part(whole["config"])
    whole["format"] = next((one["format"] for one in records if one["format"]), {})
    skipped = merged("skipped")
    whole["skipped"] = {name: skipped[name] for name in [*_left_out_of_all(records), *skipped]}
    return parts[0]._replace(record=whole)


def _places(one: Record) -> dict[str, int]:
    """Return where the tensors of a part stand in the source, also those without figures."""
    without = one.get("unmeasured", {})
    return one["places"] | {name: each["place"] for name, each in without.items()}


def _left_out_of_all(records: Sequence[Record]) -> list[str]:
    """Return the tensors that every part leaves out, as no format changes that they are."""
    every = [one["skipped"] for one in records if one["format"]]  # the others failed before
    return [name for name in every[0] if all(name in each for each in every)] if every else []
