"""Which part of a source a run measures, and which runs measure the same.

A source whose config has ``part`` and ``parts`` is divided over several runs.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quantlab.records.record import has_effect, run_key

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


def division(dist: Any) -> Division | None:
    """Return which part a source's config asks for; None of a source that cannot be divided."""
    if not isinstance(dist, Mapping) or not all(key in dist for key in KEYS):
        return None
    part, parts = (dist[key] for key in KEYS)
    if type(parts) is not int or not (part is None or type(part) is int):
        return None
    return Division(part or 0, parts)


def without_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run of a divided source as that of the whole would be."""
    dist = {key: value for key, value in config["dist"].items() if key not in KEYS}
    return {**config, "dist": dist}


def of_division(override: str) -> bool:
    """Return whether an override has the key that divides a source, or chooses a part."""
    return override.lstrip("+").partition("=")[0] in OVERRIDES


def undivided(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return the overrides of a run that choose figures, sorted; none that divides its source."""
    return tuple(sorted(each for each in overrides if has_effect(each) and not of_division(each)))


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
