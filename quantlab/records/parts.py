"""Runs that measure parts of one source, put together as the run of the whole.

A source whose config has ``part`` and ``parts`` is divided over several runs. A part is no level of
the results: what was measured in parts reads as if it had been measured at once.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quantlab.records.record import Record, run_key
from quantlab.records.run import Run

KEYS = ("part", "parts")  # of a source
SUFFIX = re.compile(r"-part-\d+-of-\d+$")
OVERRIDES = tuple(f"dist.{key}" for key in KEYS)


class Division(NamedTuple):
    """Part `part` of `parts`, counted from 0; a whole source is the one part of one."""

    part: int
    parts: int

    def __str__(self) -> str:
        """Say which part it is."""
        return f"part {self.part} of {self.parts}" if self.parts > 1 else "undivided"

    @property
    def suffix(self) -> str:
        """What the name of a run directory ends on; nothing where all is one part."""
        return f"-part-{self.part}-of-{self.parts}" if self.parts > 1 else ""


WHOLE = Division(0, 1)


class Claim(NamedTuple):
    """Which part of which question the run of a directory answers."""

    directory: str
    question: str
    division: Division

    def clashes(self, other: "Claim") -> bool:
        """Return whether two runs of one question measure the same tensors in parts."""
        one, two = self.division, other.division
        return one.parts != two.parts or one == two != WHOLE


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


def division(dist: Any) -> Division | None:
    """Return which part a source's config asks for; None of a source that cannot be divided."""
    if not isinstance(dist, Mapping) or not all(type(dist.get(key)) is int for key in KEYS):
        return None
    return Division(*(dist[key] for key in KEYS))


def is_part(config: Mapping[str, Any]) -> bool:
    """Return whether a run with this config measures less than the whole source."""
    return (division(config.get("dist")) or WHOLE).parts > 1


def without_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run of a divided source as that of the whole would be."""
    dist = {key: value for key, value in config["dist"].items() if key not in KEYS}
    return {**config, "dist": dist}


def of_division(override: str) -> bool:
    """Return whether an override has the key that divides a source, or chooses a part."""
    return override.lstrip("+").partition("=")[0] in OVERRIDES


def claim(directory: str, dist: str, config: Mapping[str, Any]) -> Claim:
    """Return what a run with this config, of the source of this name, answers."""
    divided = division(config.get("dist"))
    question = without_part(config) if divided else dict(config)
    return Claim(directory, f"{dist} {run_key(question, {}, {})}", divided or WHOLE)


def require_apart(claims: Iterable[Claim], directory: Path) -> None:
    """Raise ValueError where two runs of a sweep measure the same tensors of a divided source."""
    known: dict[str, list[Claim]] = {}
    for each in claims:
        others = known.setdefault(each.question, [])
        for other in others:
            if each.clashes(other):
                raise ValueError(
                    f"{directory / other.directory} ({other.division}) and "
                    f"{directory / each.directory} ({each.division}) would measure the same "
                    "tensors: divide a source one way in a directory, or name another with "
                    "hydra.sweep.dir=..."
                )
        others.append(each)


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
        every = (item for one in records for item in one[key].items())
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
    return {**one["places"], **{name: each["place"] for name, each in one["unmeasured"].items()}}


def _left_out_of_all(records: Sequence[Record]) -> list[str]:
    """Return the tensors that every part leaves out, as no format changes that they are."""
    every = [one["skipped"] for one in records if one["format"]]  # the others failed before
    return [name for name in every[0] if all(name in each for each in every)] if every else []
