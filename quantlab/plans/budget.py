"""Sizes as people write them."""

import math
import re
from fractions import Fraction

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGT", 1)
}
SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]+)")


def parse_size(text: str) -> int:
    """Return a size in bytes; raises ValueError where it is none.

    >>> parse_size("60MB"), parse_size("1.5 GiB")
    (60000000, 1610612736)
    """
    match = SIZE.fullmatch(text.strip())
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    if not match or match[2].lower() not in units or not Fraction(match[1]):
        raise ValueError(
            f"--size takes a number and one of {', '.join(UNITS)}, as in 60MB, got {text!r}"
        )
    return math.floor(Fraction(match[1]) * units[match[2].lower()])


def require_bits(bits: float) -> float:
    """Return bits per value; raises ValueError unless they are a number above 0."""
    if not 0 < bits < math.inf:
        raise ValueError(f"--bits takes a number of bits per value above 0, got {bits:g}")
    return bits
