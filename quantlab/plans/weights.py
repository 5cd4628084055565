"""How much the relative error of each tensor counts: alpha, from a csv file."""

import csv
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from quantlab.sources.patterns import near_misses
from quantlab.text import label

HEAD = ["tensor", "alpha"]


def read_weights(path: Path, names: Collection[str]) -> dict[str, float]:
    """Return the alpha of each tensor that a file lists; what it does not list counts as 1.

    The first line is ``tensor,alpha``. Raises ValueError, naming the line, where a tensor is none
    of `names` or stands there twice, or its alpha is no number from 0 up.
    """
    found: dict[str, float] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        why = getattr(reason, "strerror", None) or reason
        raise ValueError(f"{path} cannot be read: {why}") from None
    if not lines or [each.strip() for each in lines[0]] != HEAD:
        raise ValueError(f"{path} must begin with the line {','.join(HEAD)}")
    for number, line in enumerate(lines[1:], 2):
        if line:
            name, alpha = _entry(line, f"{path}, line {number}", names)
            if name in found:
                raise ValueError(f"{path}, line {number}: '{label(name)}' stands there twice")
            found[name] = alpha
    return found


def require_weights(weights: Mapping[str, float], names: Collection[str]) -> Mapping[str, float]:
    """Return weights; raises ValueError unless all are of `names` and from 0 up."""
    for name, alpha in weights.items():
        _entry([name, str(alpha)], "weights", names)
    return weights


def _entry(line: list[str], where: str, names: Collection[str]) -> tuple[str, float]:
    if len(line) != 2:
        raise ValueError(f"{where}: a line is a tensor and its alpha, got {','.join(line)!r}")
    name, text = line
    if name not in names:
        near = near_misses(name, list(names))
        raise ValueError(f"{where}: the sweep has no tensor '{label(name)}': {near}")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha < math.inf:
        raise ValueError(f"{where}: the alpha of '{label(name)}' must be from 0 up, got {text!r}")
    return name, alpha
