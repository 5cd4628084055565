"""Error against storage: which format of those tried is the cheapest that meets the bar."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

from quantlab.records.record import Row, group_rows
from quantlab.report.bar import Bar
from quantlab.report.format_name import format_name, has_formats
from quantlab.report.tensor_verdict import tensor_levels
from quantlab.report.verdict import quality
from quantlab.text import as_text, printable


class Offer(NamedTuple):
    """What a format costs in bits a value, and the SQNR that it gives; inf where nothing is lost.

    Offers sort as one would choose: the cheaper first, then the better, then by name.
    """

    bits: float
    loss: float  # the SQNR with its sign changed
    name: str

    @property
    def sqnr_db(self) -> float:
        """The SQNR in dB."""
        return -self.loss

    @property
    def is_exact(self) -> bool:
        """Whether nothing is lost, and the SQNR has no value."""
        return math.isinf(self.loss)


@dataclass(frozen=True)
class TensorFormats:
    """The formats tried on one tensor.

    `name` says which tensor, and what else was swept that is no part of the format; `source` the
    same of where it comes from. `offers` are sorted, `meeting` are those that meet the bar.
    """

    name: str
    source: str
    offers: list[Offer]
    meeting: list[Offer]

    @cached_property
    def cheapest(self) -> Offer | None:
        """The cheapest format that meets the bar; None where none does."""
        return self.meeting[0] if self.meeting else None


def tensor_formats(rows: Sequence[Row], levels: Sequence[str], bar: Bar) -> list[TensorFormats]:
    """Return the formats of each tensor, the most expensive first; `levels` nest the table.

    There is nothing to choose, and so nothing to return, where no tensor has two formats beyond a
    width of plain integers. A row that does not say what it costs is of an older version.
    """
    known = [row for row in rows if row.get("bits_per_value") is not None]
    apart = tensor_levels(levels)
    groups = [[known[n] for n in group] for group in group_rows(known, apart)]
    if not any(len(group) > 1 and has_formats(group) for group in groups):
        return []
    found = [_of_tensor(group, levels, apart, bar) for group in groups]
    return sorted(found, key=lambda each: -each.cheapest.bits if each.cheapest else -math.inf)


def _of_tensor(
    rows: Sequence[Row], levels: Sequence[str], apart: Sequence[str], bar: Bar
) -> TensorFormats:
    first = rows[0]
    settings = [f"{key}={as_text(first[key])}" for key in apart if key not in ("dist", "tensor")]
    name, source = (
        ", ".join(map(printable, [first[key], *settings])) for key in ("tensor", "dist")
    )
    offers = {n: _offer(row, levels) for n, row in enumerate(rows)}
    meeting = [offer for n, offer in offers.items() if not bar.missed(rows[n])]
    return TensorFormats(name, source, sorted(offers.values()), sorted(meeting))


def _offer(row: Row, levels: Sequence[str]) -> Offer:
    return Offer(row["bits_per_value"], -quality(row), format_name(row, levels))


def medians(found: Sequence[TensorFormats]) -> list[Offer]:
    """Return the median offer of each format over the tensors that have it; of one its own."""
    by_name: dict[str, list[Offer]] = {}
    for each in found:
        for offer in each.offers:
            by_name.setdefault(offer.name, []).append(offer)
    return sorted(
        Offer(median(one.bits for one in same), median(one.loss for one in same), name)
        for name, same in by_name.items()
    )


def front(offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers that no other beats in bits and SQNR, the cheapest first; of equals one.

    >>> [each.name for each in front([Offer(4, -20, "a"), Offer(5, -19, "b"), Offer(6, -30, "c")])]
    ['a', 'c']
    """
    kept: list[Offer] = []
    for offer in sorted(offers):
        if not kept or offer.loss < kept[-1].loss:
            kept.append(offer)
    return kept


class Choices(NamedTuple):
    """Of a source: its tensors, those with a format that meets the bar, how often each is it."""

    source: str
    tensors: int
    met: int
    counts: list[tuple[str, int]]


def choices(found: Sequence[TensorFormats]) -> Iterator[Choices]:
    """Yield what was chosen of each source, the format that was chosen most often first."""
    sources: dict[str, list[TensorFormats]] = {}
    for each in found:
        sources.setdefault(each.source, []).append(each)
    for source, tensors in sources.items():
        names = [each.cheapest.name for each in tensors if each.cheapest]
        yield Choices(source, len(tensors), len(names), Counter(sorted(names)).most_common())
