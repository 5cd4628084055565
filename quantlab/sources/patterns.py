"""Shell-style patterns that choose tensors by name."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

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
