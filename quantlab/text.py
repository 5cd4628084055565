"""Names and numbers as text, for errors, terminals and pages alike."""

import difflib
import json
import math
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from importlib import import_module
from typing import Any

NULL = "–"  # what stands for a figure that does not exist
SIZE_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGT", 1)
}
ON_INDEX = {"ml_dtypes": "ml-dtypes", "mlflow": "mlflow-skinny"}  # modules by another name
PLAIN_PATH = re.compile(r"[\w./:@-]+")  # that Hydra takes without quotes
SIZE_TEXT = re.compile(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]+)")


def require_packages(modules: Sequence[str], purpose: str) -> None:
    """Raise ValueError, with what to install, where a module that a purpose takes is missing."""
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError:
            packages = " ".join(ON_INDEX.get(name, name) for name in modules)
            raise ValueError(
                f"{purpose} takes the package {module}: pip install {packages}"
            ) from None


def printable(name: str) -> str:
    """Escape the characters of a name that a terminal cannot show."""
    return name if name.isprintable() else ascii(name)[1:-1]


def label(name: str, max_chars: int = 48) -> str:
    """Shorten a tensor's name to fit a line, with every character printable.

    The middle of a long name is cut: tensors differ at the end.
    """
    name = printable(name)
    head = (max_chars - 8) // 2
    return name if len(name) <= max_chars else f"{name[:head]}…{name[head + 1 - max_chars :]}"


def first_few(
    items: Sequence[str], limit: int, more: Callable[[int], str] = "and {} more".format
) -> list[str]:
    """List at most `limit` items, then one text that counts the others.

    >>> first_few(["a", "b", "c", "d"], 2)
    ['a', 'b', 'and 2 more']
    """
    rest = len(items) - limit
    return [*items[:limit], *([more(rest)] if rest > 0 else ())]


def as_text(value: Any) -> str:
    """Format a setting: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def count(n: int, noun: str) -> str:
    """Format a number of things.

    >>> count(1, "tensor"), count(1200, "value")
    ('1 tensor', '1,200 values')
    """
    return f"{n:,} {noun}{'s' * (n != 1)}"


def as_setting(key: str, path: str) -> str:
    """Format the override that sets a path, quoted where it has characters of Hydra's grammar.

    >>> as_setting("dist.path", "a b.npy")
    "dist.path='a b.npy'"
    """
    return f"{key}={path}" if PLAIN_PATH.fullmatch(path) else f"{key}='{path}'"


def format_number(value: Any, spec: str) -> str:
    """Format a number by a format spec; None is a dash, anything else is itself."""
    if value is None:
        return NULL
    return format(value, spec) if type(value) in (int, float) else str(value)


def format_size(n_bytes: float) -> str:
    """Format a size in the unit that leaves one to three digits before the point.

    >>> format_size(1234567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


def parse_size(text: str, option: str = "size") -> int:
    """Return a size in bytes; raises ValueError if it is none.

    >>> parse_size("60MB"), parse_size("1.5 GiB")
    (60000000, 1610612736)
    """
    match = SIZE_TEXT.fullmatch(str(text).strip())
    units = {unit.lower(): factor for unit, factor in SIZE_UNITS.items()}
    if not match or match[2].lower() not in units or not Fraction(match[1]):
        raise ValueError(
            f"{option} takes a number and one of {', '.join(SIZE_UNITS)}, as in 60MB, got {text!r}"
        )
    return math.floor(Fraction(match[1]) * units[match[2].lower()])


Patterns = str | Sequence[str] | None


def as_list(patterns: Patterns) -> list[str]:
    """Return patterns as a list, also one alone or none."""
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def require_patterns(key: str, patterns: Patterns) -> None:
    """Raise ValueError unless patterns are text: YAML takes 0, true and nan for something else."""
    if patterns is None:
        return
    is_single = isinstance(patterns, str) or not isinstance(patterns, Sequence)
    for pattern in [patterns] if is_single else patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"dist.{key} takes names or patterns, got {pattern!r}: quote it twice, "
                f"dist.{key}=\"'{pattern}'\""
            )


def matches(name: str, patterns: Patterns) -> bool:
    """Return True when a name is one of some patterns or fits one."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in as_list(patterns))


def near_misses(pattern: str, names: list[str]) -> str:
    """Describe the names that a pattern which matches none may have meant."""
    bare = pattern.strip("*")
    holding = [name for name in names if bare.lower() in name.lower()]
    if holding and bare:
        return f"patterns match whole names in their case, and {holding[0]} holds '{bare}'"
    close = difflib.get_close_matches(bare, names, n=3, cutoff=0.3)
    return f"near misses are {', '.join(close)}" if close else "none comes close"
