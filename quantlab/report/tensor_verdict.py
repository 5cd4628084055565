"""Whether each tensor meets the bar in some format of those tried: verdict.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab.records import disk
from quantlab.records.record import Row, group_rows
from quantlab.report.bar import Bar
from quantlab.report.format_name import format_name, is_of_format
from quantlab.report.verdict import quality
from quantlab.text import as_text, printable

NAME = "verdict.json"
SCHEMA = 1
FIGURES = ("mode", "n_bits", "bits_per_value", "sqnr_db", "rel_err")


@dataclass(frozen=True)
class TensorVerdict:
    """How one tensor fares: in its cheapest format that meets the bar, else in the nearest to it.

    `settings` are what else was swept that is no part of the format; `missed` are the criteria of
    the bar that `row`, that of the format, does not meet.
    """

    dist: str
    tensor: str
    settings: Mapping[str, Any]
    format: str
    row: Row
    missed: Sequence[str]

    @property
    def meets(self) -> bool:
        """Whether some format meets the bar."""
        return not self.missed

    @property
    def name(self) -> str:
        """Which tensor, and what else was swept."""
        others = (f"{key}={as_text(value)}" for key, value in self.settings.items())
        return ", ".join(map(printable, [self.tensor, *others]))


def tensor_levels(levels: Sequence[str]) -> list[str]:
    """Return what tells tensors apart: source, name, and the levels that are no format."""
    known = ["dist", "tensor"]
    return known + [each for each in levels if each not in known and not is_of_format(each)]


def tensor_verdicts(rows: Sequence[Row], levels: Sequence[str], bar: Bar) -> list[TensorVerdict]:
    """Return the verdict of each tensor, in the order of the table."""
    apart = tensor_levels(levels)
    return [
        _verdict([rows[n] for n in group], levels, apart[2:], bar)
        for group in group_rows(rows, apart)
    ]


def _verdict(
    rows: Sequence[Row], levels: Sequence[str], settings: Sequence[str], bar: Bar
) -> TensorVerdict:
    def rank(row: Row) -> tuple[Any, ...]:
        missed, bits = len(bar.missed(row)), row.get("bits_per_value")
        bits = math.inf if bits is None else bits
        cheap = (bits, -quality(row)) if not missed else (-quality(row), bits)
        return missed, *cheap, format_name(row, levels)

    best = min(rows, key=rank)
    others = {key: best[key] for key in settings}
    name = format_name(best, levels)
    return TensorVerdict(best["dist"], best["tensor"], others, name, best, bar.missed(best))


def verdict_json(found: Sequence[TensorVerdict], bar: Bar, failures: Mapping[str, str]) -> bytes:
    """Return verdict.json: the bar, whether all tensors meet it, each of them, and failed runs."""
    return disk.to_json(
        {
            "schema": SCHEMA,
            "bar": {key: _number(asked) for key, asked in asdict(bar).items()},
            "meets": not failures and all(each.meets for each in found),
            "tensors": [_entry(each) for each in found],
            "failures": dict(failures),
        }
    )


def read_verdict(directory: Path) -> dict[str, Any]:
    """Return verdict.json of a sweep; raises ValueError where there is none to read."""
    path = directory / NAME
    again = f"quantlab aggregate {directory} writes it"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {again}")
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content["bar"], dict) and isinstance(content["tensors"], list):
            return dict(content)
        raise KeyError("bar")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is no verdict: {again} again") from None


def _number(asked: float | bool | None) -> float | bool | None:
    """Return a threshold as it is written: 30 and 30.0 are one."""
    return asked if asked is None or isinstance(asked, bool) else float(asked)


def _entry(each: TensorVerdict) -> dict[str, Any]:
    figures = {key: each.row.get(key) for key in FIGURES}
    return {
        "dist": each.dist,
        "tensor": each.tensor,
        **each.settings,
        "meets": each.meets,
        "missed": list(each.missed),
        "format": each.format,
        **figures,
    }
