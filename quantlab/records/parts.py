"""Runs that measure parts of one source, put together as the run of the whole.

A part is no level of the results: what was measured in parts reads as if it had been measured at
once.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import count, groupby
from pathlib import Path
from typing import Any, NamedTuple

from quantlab.records.division import (
    KEYS,
    WHOLE,
    Division,
    claim,
    division,
    require_apart,
    undivided,
    without_part,
)
from quantlab.records.record import Record, Run


class Gap(NamedTuple):
    """The parts that are lacking of a source in one format: of `parts` those that it `lacks`.

    `overrides` are those of its runs that choose figures, sorted, without what divides it.
    """

    dist: str
    overrides: tuple[str, ...]
    parts: int
    lacks: tuple[int, ...]

    @property
    def source(self) -> str:
        """What was divided."""
        settings = [each for each in self.overrides if not each.startswith("dist=")]
        return " ".join([self.dist, *settings, f"in {self.parts} parts"])

    @property
    def override(self) -> str:
        """What asks for all parts."""
        return f"dist.part=range({self.parts})"

    @property
    def fault(self) -> str:
        """What is wrong."""
        return f"part{'s' if len(self.lacks) > 1 else ''} {_spans(self.lacks)} without a record"

    @property
    def reason(self) -> str:
        """What is wrong, and what to do."""
        return f"{self.fault}: repeat its sweep in this directory with {self.override}"


def _spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, those that follow each other as one span."""
    place = count()
    spans = [[*span] for _, span in groupby(numbers, lambda n: n - next(place))]
    return ", ".join(
        f"{one[0]} to {one[-1]}" if len(one) > 2 else ", ".join(map(str, one)) for one in spans
    )


def require_consistent(runs: Sequence[Run], directory: Path) -> None:
    """Raise ValueError where runs below a directory measure parts that do not make up a whole.

    They measure the same tensors, or the source listed others when one of them was measured.
    """
    if not any(_is_part(run) for run in runs):
        return
    known = [(run.directory, run.record) for run in runs if run.record]
    require_apart((claim(name, one["dist"], one["config"]) for name, one in known), directory)
    for group in _grouped(runs):
        _require_one_listing(group, directory)


def _require_one_listing(group: Sequence[Run], directory: Path) -> None:
    one, *others = [run for run in group if run.record and "listing" in run.record] or [group[0]]
    for run in others:
        if run.record and one.record and run.record["listing"] != one.record["listing"]:
            raise ValueError(
                f"the file listed other tensors for {directory / one.directory} than for "
                f"{directory / run.directory}: repeat their sweep in this directory with "
                f"dist.part=range({_division(run).parts})"
            )


def no_settings(records: Sequence[Record]) -> set[str]:
    """Return the keys of a division that no record has in its config, though they were typed."""
    dists = [one["config"].get("dist") for one in records]
    has_own = {key for dist in dists if isinstance(dist, Mapping) for key in KEYS if key in dist}
    return {f"dist.{key}" for key in KEYS if key not in has_own}


def combined(runs: Sequence[Run]) -> list[Run]:
    """Return runs in their order, the parts of one source as one run in the place of the first."""
    return [_joined(group) if _is_part(group[0]) else group[0] for group in _grouped(runs)]


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs in their order, the parts of one source together, and each other run alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_question(run) if _is_part(run) else run.directory, []).append(run)
    return [*groups.values()]


def gaps(runs: Sequence[Run]) -> list[Gap]:
    """Return where parts are lacking of a divided source in some format."""
    divided = [group for group in _grouped(runs) if _is_part(group[0])]
    return [gap for parts in divided if (gap := _gap(parts)).lacks]


def _gap(found: Sequence[Run]) -> Gap:
    one, parts = found[0].record or {}, _division(found[0]).parts
    lacks = set(range(parts)) - {_division(run).part for run in found}
    return Gap(one["dist"], undivided(one["overrides"]), parts, tuple(sorted(lacks)))


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
    whole["spec"] = next((one["spec"] for one in records if one["spec"]), None)
    skipped = merged("skipped")
    whole["skipped"] = {name: skipped[name] for name in [*_left_out_of_all(records), *skipped]}
    return parts[0]._replace(record=whole)


def _places(one: Record) -> dict[str, int]:
    """Return where the tensors of a part stand in the source, also those without figures."""
    without = one.get("unmeasured", {})
    return one["places"] | {name: each["place"] for name, each in without.items()}


def _left_out_of_all(records: Sequence[Record]) -> list[str]:
    """Return the tensors that every part leaves out, as no format changes that they are."""
    every = [one["skipped"] for one in records if one["spec"]]  # the others failed before
    return [name for name in every[0] if all(name in each for each in every)] if every else []
