"""What a person asks of a plan: a budget or a bar, a runtime, weights and demands on tensors."""

import csv
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from quantlab.plans.runtimes import find_runtime
from quantlab.plans.runtimes.runtime import Runtime
from quantlab.report.bar import Bar
from quantlab.sources.patterns import Patterns, as_list, matches, near_misses
from quantlab.text import format_size, label

FIGURES = ("sqnr_db", "out_sqnr_db")  # that noise may be computed from
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGT", 1)
}
SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]+)")
WEIGHTS_HEAD = ["tensor", "alpha"]
# A plan prints its bits per value, which must suffice for the same plan again.
BITS_ROUNDING = Fraction(2.0**-52)


@dataclass(frozen=True)
class Request:
    """What a plan is asked for: one of `bits` per value, a `size` in bytes and a `bar`.

    `by` is the figure that noise is computed from, `weights` the alpha of tensors, 1 if not given;
    `runtime` must have each format; `keep` are pairs of a pattern of names and a format, of which
    the last that matches counts; `same` are patterns whose tensors take one format together.
    `dashes` stand before the names of these arguments where a person types them: errors name them.
    """

    bits: float | None = None
    size: int | None = None
    bar: Bar | None = None
    by: str = FIGURES[0]
    weights: Mapping[str, float] = field(default_factory=dict)
    runtime: Runtime | None = None
    keep: Sequence[tuple[str, str]] = ()
    same: Sequence[str] = ()
    dashes: str = ""

    @classmethod
    def parse(
        cls,
        *,
        bits: float | str | None = None,
        size: str | None = None,
        bar: Bar | None = None,
        recipe: str | None = None,
        by: str = FIGURES[0],
        weights: Mapping[str, float] | str | Path | None = None,
        keep: Sequence[tuple[str, str]] = (),
        same: Patterns = (),
        names: Collection[str] = (),
        dashes: str = "",
    ) -> "Request":
        """Check the arguments of `plan`; `names` are those of the tensors that were measured.

        Raises ValueError unless exactly one of `bits`, `size` and `bar` is given, and for anything
        that is not what its argument takes.
        """
        if [bits, size, bar].count(None) != 2:
            options = (f"{dashes}{name}" for name in ("bits", "size", "bar"))
            raise ValueError("a plan takes one of {}, {} and {}".format(*options))
        if by not in FIGURES:
            raise ValueError(f"{dashes}by takes {' or '.join(FIGURES)}, got {by!r}")
        return cls(
            bits=None if bits is None else parse_bits(bits, f"{dashes}bits"),
            size=None if size is None else parse_size(size, f"{dashes}size"),
            bar=bar,
            by=by,
            weights=_parse_weights(weights, names),
            runtime=None if recipe is None else find_runtime(recipe, f"{dashes}recipe"),
            keep=tuple(keep),
            same=tuple(as_list(same)),
            dashes=dashes,
        )

    def budget(self, n_values: int) -> int:
        """Return the budget in bits for a checkpoint of so many values."""
        if self.bits is None:
            return 8 * (self.size or 0)
        return int(Fraction(self.bits) * n_values * (1 + BITS_ROUNDING))

    def budget_text(self, n_values: int) -> str:
        """Return the budget as it was asked for, and as bits per value or as a size."""
        if self.bits is None:
            bits = self.budget(n_values) / max(n_values, 1)
            return f"{format_size(self.size or 0)} ({bits:.6g} bits per value)"
        return f"{self.bits:.15g} bits per value ({format_size(self.budget(n_values) / 8)})"

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise ValueError, with near misses, if a pattern matches none of the names."""
        keep = [("keep", pattern) for pattern, _ in self.keep]
        for option, pattern in [*keep, *(("same", pattern) for pattern in self.same)]:
            if not any(matches(name, pattern) for name in names):
                raise ValueError(
                    f"{self.dashes}{option} {pattern} matches none of the {len(names)} tensors "
                    f"measured: {near_misses(pattern, list(names))}"
                )


def parse_bits(value: float | str, option: str = "bits") -> float:
    """Return bits per value; raises ValueError unless they are a number above 0.

    >>> parse_bits("4.64")
    4.64
    """
    try:
        bits = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        bits = math.nan
    if not 0 < bits < math.inf:
        raise ValueError(f"{option} takes a number of bits per value above 0, got {value!r}")
    return bits


def parse_size(text: str, option: str = "size") -> int:
    """Return a size in bytes; raises ValueError if it is none.

    >>> parse_size("60MB"), parse_size("1.5 GiB")
    (60000000, 1610612736)
    """
    match = SIZE.fullmatch(str(text).strip())
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    if not match or match[2].lower() not in units or not Fraction(match[1]):
        raise ValueError(
            f"{option} takes a number and one of {', '.join(UNITS)}, as in 60MB, got {text!r}"
        )
    return math.floor(Fraction(match[1]) * units[match[2].lower()])


def parse_keep(text: str, formats: Collection[str]) -> tuple[str, str]:
    """Return the pattern and the format of ``PATTERN=FORMAT``; both may hold an equals sign.

    It is split before one of `formats`, which are in lower case, else at the last sign.
    """
    signs = (place for place, character in enumerate(text) if character == "=")
    splits = [(text[:place], text[place + 1 :]) for place in signs]
    splits = [(pattern, name) for pattern, name in splits if pattern and name]
    if not splits:
        raise ValueError(f"--keep takes PATTERN=FORMAT, as in 'output.weight=q8_0', got {text!r}")
    return next((pair for pair in splits if pair[1].lower() in formats), splits[-1])


def check_keep(keep: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """Return the pairs of a mapping; raises ValueError unless all are text."""
    if not isinstance(keep or {}, Mapping):
        raise ValueError(f"keep takes a mapping from patterns to formats, got {keep!r}")
    pairs = list((keep or {}).items())
    for pair in pairs:
        if not all(isinstance(part, str) for part in pair):
            raise ValueError(f"keep takes names of tensors and of formats, got {pair!r}")
    return pairs


def _parse_weights(
    weights: Mapping[str, float] | str | Path | None, names: Collection[str]
) -> Mapping[str, float]:
    if isinstance(weights, str | Path):
        return read_weights(Path(weights), names)
    for name, alpha in (weights or {}).items():
        _parse_weight([name, str(alpha)], "weights", names)
    return weights or {}


def read_weights(path: Path, names: Collection[str]) -> dict[str, float]:
    """Return the alpha of each tensor that a csv file lists; others count as 1.

    The first line is ``tensor,alpha``. Raises ValueError, naming the line, if a tensor is none of
    `names` or is listed twice, or its alpha is no number from 0 up.
    """
    weights: dict[str, float] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        why = getattr(reason, "strerror", None) or reason
        raise ValueError(f"{path} cannot be read: {why}") from None
    if not lines or [cell.strip() for cell in lines[0]] != WEIGHTS_HEAD:
        raise ValueError(f"{path} must begin with the line {','.join(WEIGHTS_HEAD)}")
    for number, line in enumerate(lines[1:], 2):
        if line:
            name, alpha = _parse_weight(line, f"{path}, line {number}", names)
            if name in weights:
                raise ValueError(f"{path}, line {number}: '{label(name)}' stands there twice")
            weights[name] = alpha
    return weights


def _parse_weight(line: list[str], where: str, names: Collection[str]) -> tuple[str, float]:
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
