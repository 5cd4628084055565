"""Runs that measure parts of one source: which part each measures, and their sum as one run.

A source whose config has ``part`` and ``parts`` is divided over several runs. A part is no level of
the results: what was measured in parts reads as if it had been measured at once.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, groupby
from pathlib import Path
from typing import Any, NamedTuple

from quantlab.records.record import Record, Run, has_effect, run_key

DIVISION_KEYS = ("part", "parts")  # of a source
DIVISION_OVERRIDES = {f"dist.{key}" for key in DIVISION_KEYS}
PART_SUFFIX = re.compile(r"-part-\d+-of-\d+$")  # of the name of a run directory


class Division(NamedTuple):
    """Part `part` of `parts`, counted from 0; a whole source is the one part of one."""

    part: int
    parts: int

    def __str__(self) -> str:
        """Name the part, for an error message."""
        return f"part {self.part} of {self.parts}" if self.parts > 1 else "undivided"

    @property
    def suffix(self) -> str:
        """End of the name of a run directory; empty for a whole source."""
        return f"-part-{self.part}-of-{self.parts}" if self.parts > 1 else ""


WHOLE = Division(0, 1)


class RunIdentity(NamedTuple):
    """Identity of the run in a directory: its config without the part, and which part it measures.

    `config_key` is the same for all parts of one source in one format.
    """

    directory: str
    config_key: str
    division: Division

    def overlaps(self, other: "RunIdentity") -> bool:
        """Test whether two runs of one config measure the same tensors in parts."""
        if self.division.parts != other.division.parts:
            return True
        return self.division == other.division != WHOLE


class MissingParts(NamedTuple):
    """The `missing` parts, of `parts`, of a source in one format.

    `overrides` are those of its runs that choose figures, sorted, without what divides the source.
    """

    dist: str
    overrides: tuple[str, ...]
    parts: int
    missing: tuple[int, ...]

    @property
    def source(self) -> str:
        """Name of the divided source, with its settings."""
        settings = [override for override in self.overrides if not override.startswith("dist=")]
        return " ".join([self.dist, *settings, f"in {self.parts} parts"])

    @property
    def override(self) -> str:
        """Override that sweeps over all parts."""
        return f"dist.part=range({self.parts})"

    @property
    def problem(self) -> str:
        """Sentence that names the missing parts."""
        noun = "parts" if len(self.missing) > 1 else "part"
        return f"{noun} {format_spans(self.missing)} without a record"

    @property
    def advice(self) -> str:
        """The problem, and how to solve it."""
        return f"{self.problem}: repeat its sweep in this directory with {self.override}"


def format_spans(numbers: Sequence[int]) -> str:
    """Format ascending numbers, three or more in a row as a span.

    >>> format_spans([0, 1, 2, 3, 5, 7, 8])
    '0 to 3, 5, 7, 8'
    """
    place = count()
    spans = [[*span] for _, span in groupby(numbers, lambda number: number - next(place))]
    return ", ".join(
        f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in spans
    )


def read_division(dist: Any) -> Division | None:
    """Read the part from a source's config; None if the source cannot be divided."""
    if not isinstance(dist, Mapping) or not all(key in dist for key in DIVISION_KEYS):
        return None
    part, parts = (dist[key] for key in DIVISION_KEYS)
    if type(parts) is not int or not (part is None or type(part) is int):
        return None
    return Division(part or 0, parts)


def whole_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the config of a part to that of a run of the whole source."""
    dist = {key: value for key, value in config["dist"].items() if key not in DIVISION_KEYS}
    return {**config, "dist": dist}


def is_part_override(override: str) -> bool:
    """Test whether an override divides a source, or chooses a part."""
    return override.lstrip("+").partition("=")[0] in DIVISION_OVERRIDES


def without_part_overrides(overrides: Iterable[str]) -> tuple[str, ...]:
    """Select and sort the overrides that choose figures, without those that divide the source."""
    return tuple(
        sorted(
            override
            for override in overrides
            if has_effect(override) and not is_part_override(override)
        )
    )


def identify_run(directory: str, dist: str, config: Mapping[str, Any]) -> RunIdentity:
    """Identify a run by its config; `dist` is the name of its source."""
    division = read_division(config.get("dist"))
    key = run_key(whole_config(config) if division else dict(config), {}, {})
    return RunIdentity(directory, f"{dist} {key}", division or WHOLE)


def require_disjoint(identities: Iterable[RunIdentity], directory: Path) -> None:
    """Raise ValueError if two runs of a sweep measure the same tensors of a divided source."""
    runs_of: dict[str, list[RunIdentity]] = {}
    for run in identities:
        others = runs_of.setdefault(run.config_key, [])
        for other in others:
            if run.overlaps(other):
                raise ValueError(
                    f"{directory / other.directory} ({other.division}) and "
                    f"{directory / run.directory} ({run.division}) would measure the same "
                    "tensors: divide a source one way in a directory, or name another with "
                    "hydra.sweep.dir=..."
                )
        others.append(run)


def require_consistent(runs: Sequence[Run], directory: Path) -> None:
    """Raise ValueError if runs below a directory measure parts that do not make up a whole.

    Either two of them measure the same tensors, or their file listed other tensors for one of them
    than for another.
    """
    if not any(_is_part(run) for run in runs):
        return
    recorded = [(run.directory, run.record) for run in runs if run.record]
    require_disjoint(
        (identify_run(name, record["dist"], record["config"]) for name, record in recorded),
        directory,
    )
    for group in _group_parts(runs):
        _require_one_listing(group, directory)


def _require_one_listing(group: Sequence[Run], directory: Path) -> None:
    listed = [run for run in group if run.record and "listing" in run.record]
    first, *others = listed or [group[0]]
    for run in others:
        if run.record and first.record and run.record["listing"] != first.record["listing"]:
            raise ValueError(
                f"the file listed other tensors for {directory / first.directory} than for "
                f"{directory / run.directory}: repeat their sweep in this directory with "
                f"dist.part=range({_division(run).parts})"
            )


def unrecorded_part_keys(records: Sequence[Record]) -> set[str]:
    """Collect the keys that divide a source and stand in the config of no record.

    They may have been typed all the same: the config of an undivided source leaves them out.
    """
    dists = [record["config"].get("dist") for record in records]
    recorded = {
        key for dist in dists if isinstance(dist, Mapping) for key in DIVISION_KEYS if key in dist
    }
    return {f"dist.{key}" for key in DIVISION_KEYS if key not in recorded}


def join_parts(runs: Sequence[Run]) -> list[Run]:
    """Join the parts of each source to one run, in the place of the first; keep other runs."""
    return [_join(group) if _is_part(group[0]) else group[0] for group in _group_parts(runs)]


def find_missing_parts(runs: Sequence[Run]) -> list[MissingParts]:
    """Find the divided sources that lack parts in some format."""
    divided = [_missing_parts(group) for group in _group_parts(runs) if _is_part(group[0])]
    return [source for source in divided if source.missing]


def _missing_parts(group: Sequence[Run]) -> MissingParts:
    record, parts = group[0].record or {}, _division(group[0]).parts
    missing = sorted(set(range(parts)) - {_division(run).part for run in group})
    overrides = without_part_overrides(record["overrides"])
    return MissingParts(record["dist"], overrides, parts, tuple(missing))


def missing_part_advice(runs: Sequence[Run]) -> dict[str, str]:
    """Map each divided source that lacks parts to the advice about it."""
    return {source.source: source.advice for source in find_missing_parts(runs)}


def _group_parts(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the parts of one source; every other run stands alone. The order of runs is kept."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_config_key(run) if _is_part(run) else run.directory, []).append(run)
    return [*groups.values()]


def _division(run: Run) -> Division:
    return (run.record and read_division(run.record["config"].get("dist"))) or WHOLE


def _is_part(run: Run) -> bool:
    return _division(run).parts > 1


def _config_key(run: Run) -> str:
    record = run.record or {}
    return identify_run(run.directory, record["dist"], record["config"]).config_key


def _join(group: Sequence[Run]) -> Run:
    """Join the parts of a source to one run, its tensors in the order of the source."""
    records = [run.record for run in group if run.record]
    places = {name: place for record in records for name, place in _places(record).items()}

    def merged(key: str) -> dict[str, Any]:
        items = (item for record in records for item in record.get(key, {}).items())
        return dict(sorted(items, key=lambda item: places.get(item[0], math.inf)))

    keys = ("tensors", "failed", "unmeasured")
    whole = records[0] | {key: merged(key) for key in keys}
    whole["config"] = whole_config(whole["config"])
    if covered := [record["coverage"] for record in records if "coverage" in record]:
        whole["coverage"] = _joined_coverage(covered)
    whole["spec"] = next((record["spec"] for record in records if record["spec"]), None)
    skipped = merged("skipped")
    whole["skipped"] = {name: skipped[name] for name in [*_skipped_by_all(records), *skipped]}
    return group[0]._replace(record=whole)


def _joined_coverage(covered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what the parts of a source compared with one file."""
    sums = {key: sum(part[key] for part in covered) for key in ("values", "all_values", "bytes")}
    unpaired = {name: n for part in covered for name, n in part["unpaired"].items()}
    return sums | {
        "all_bytes": max(part["all_bytes"] for part in covered),
        "unpaired": dict(sorted(unpaired.items(), key=lambda item: -item[1])),
    }


def _places(record: Record) -> dict[str, int]:
    """Map the tensors of a part to their places in the source, also those without figures."""
    unmeasured = record.get("unmeasured", {})
    return record["places"] | {name: tensor["place"] for name, tensor in unmeasured.items()}


def _skipped_by_all(records: Sequence[Record]) -> list[str]:
    """List the tensors that every part leaves out: these are left out in any format."""
    skipped = [record["skipped"] for record in records if record["spec"]]  # others failed earlier
    if not skipped:
        return []
    return [name for name in skipped[0] if all(name in names for names in skipped)]
