"""The request for a plan: a budget or a bar, a runtime, weights and demands on tensors."""

import csv
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from quantlab.plans.runtimes import find_runtime
from quantlab.plans.runtimes.runtime import Runtime
from quantlab.text import as_list, format_size, label, matches, near_misses

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
    """One of `bits` per value, a `size` in bytes and the `bar` of each row; the demands on a plan.

    `by` is the figure that noise is computed from, `weights` the alpha of tensors, 1 if not given;
    `runtime` must have each format; `keep` are pairs of a pattern of names and a format, of which
    the last that matches counts; `same` are patterns whose tensors take one format together.
    `dashes` stand before the names of these arguments where a person types them: errors name them.
    """

    bits: float | None = None
    size: int | None = None
    bar: bool = False
    by: str = FIGURES[0]
    weights: Mapping[str, float] = field(default_factory=dict)
    runtime: Runtime | None = None
    keep: Sequence[tuple[str, str]] = ()
    same: Sequence[str] = ()
    dashes: str = ""

    @classmethod
    def parse(
        cls, options: Mapping[str, Any], names: Collection[str] = (), dashes: str = ""
    ) -> "Request":
        """Check the arguments of `quantlab.plan`; `names` are those of the tensors measured.

        Raises ValueError unless exactly one of `bits`, `size` and `bar` is given, and for anything
        that is not what its argument takes.
        """
        bits, size, by = (options.get(key) for key in ("bits", "size", "by"))
        bar = bool(options.get("bar"))
        if [bits is None, size is None, not bar].count(False) != 1:
            raise ValueError(f"a plan takes one of {dashes}bits, {dashes}size and {dashes}bar")
        if by and by not in FIGURES:
            raise ValueError(f"{dashes}by takes {' or '.join(FIGURES)}, got {by!r}")
        recipe = options.get("recipe")
        return cls(
            bits=None if bits is None else parse_bits(bits, f"{dashes}bits"),
            size=None if size is None else parse_size(size, f"{dashes}size"),
            bar=bar,
            by=by or FIGURES[0],
            weights=parse_weights(options.get("weights") or {}, names),
            runtime=find_runtime(recipe, f"{dashes}recipe") if recipe else None,
            keep=_check_keep(options.get("keep") or ()),
            same=tuple(as_list(options.get("same"))),
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


def _check_keep(keep: Any) -> Sequence[tuple[str, str]]:
    """Return pairs of patterns and formats, from a mapping too; raises ValueError."""
    pairs = tuple(keep.items()) if isinstance(keep, Mapping) else keep
    for pair in pairs:
        if not isinstance(pair, tuple) or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"keep takes a mapping from patterns to formats, got {keep!r}")
    return pairs


def parse_weights(
    weights: Mapping[str, float] | str | Path, names: Collection[str]
) -> Mapping[str, float]:
    """Return the alpha of each tensor, from a csv file whose first line is ``tensor,alpha`` too.

    Raises ValueError, with the line, if a tensor is none of `names` or is listed twice, or its
    alpha is no number from 0 up.
    """
    if isinstance(weights, Mapping):
        lines = [("weights", [name, str(alpha)]) for name, alpha in weights.items()]
    else:
        lines = _read_weight_lines(Path(weights))
    alphas: dict[str, float] = {}
    for where, line in lines:
        name, alpha = _parse_weight(line, where, names)
        if name in alphas:
            raise ValueError(f"{where}: '{label(name)}' stands there twice")
        alphas[name] = alpha
    return alphas


def _read_weight_lines(path: Path) -> list[tuple[str, list[str]]]:
    """Return the lines of a csv file, each with what to call it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        why = getattr(reason, "strerror", None) or reason
        raise ValueError(f"{path} cannot be read: {why}") from None
    if [cell.strip() for cell in head] != WEIGHTS_HEAD:
        raise ValueError(f"{path} must begin with the line {','.join(WEIGHTS_HEAD)}")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 2) if line]


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
