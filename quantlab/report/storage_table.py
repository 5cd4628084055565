"""What was found of formats, in words: the sentences, the table and the picture's description."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quantlab.report.storage import Choices, Offer, TensorFormats, choices, front, medians
from quantlab.report.texts import Texts
from quantlab.text import NULL, format_number

BITS, SQNR = ".4g", ".2f"
FORMATS = 5  # of a source that a sentence names


class StorageRow(NamedTuple):
    """A tensor, the cheapest format that meets the bar, what it costs and gives."""

    name: str
    format: str
    bits: str
    sqnr: str


def storage_table(found: Sequence[TensorFormats], t: Texts) -> list[StorageRow]:
    """Return a row a tensor, those that need most first."""
    return [StorageRow(each.name, *_cells(each.cheapest, t)) for each in found]


def _cells(offer: Offer | None, t: Texts) -> tuple[str, str, str]:
    if offer is None:
        return t("storage_none"), NULL, NULL
    return offer.name, format_number(offer.bits, BITS), _sqnr(offer, t)


def _sqnr(offer: Offer, t: Texts) -> str:
    return t("exact") if offer.is_exact else format_number(offer.sqnr_db, SQNR)


def storage_heads(t: Texts) -> list[str]:
    """Return what stands over the columns of the table."""
    return [t(f"storage_{key}") for key in ("tensor", "format", "bits", "sqnr")]


def storage_sentences(
    found: Sequence[TensorFormats], levels: Sequence[str], t: Texts
) -> Iterator[str]:
    """Yield the cheapest format: a sentence a tensor, or of many tensors a sentence a source."""
    if "tensor" in levels:
        yield from (_summary(each, t) for each in choices(found))
    else:
        yield from (_sentence(each, t) for each in found)


def _sentence(each: TensorFormats, t: Texts) -> str:
    if each.cheapest is None:
        return t("cheapest_none", name=each.name)
    bits = format_number(each.cheapest.bits, BITS)
    return t("cheapest", name=each.name, format=each.cheapest.name, bits=bits)


def _summary(source: Choices, t: Texts) -> str:
    words = {"name": source.source, "n": source.tensors}
    if not source.met:
        return t("cheapest_many_none", **words)
    counts = [t("cheapest_count", format=name, n=n) for name, n in source.counts[:FORMATS]]
    more = sum(n for _, n in source.counts[FORMATS:])
    counts += [t("cheapest_others", n=more)] if more else []
    return t("cheapest_many", **words, met=source.met, counts="; ".join(counts))


def storage_trend(found: Sequence[TensorFormats], t: Texts) -> str:
    """Return in words what the picture shows: the front."""
    points = [
        t(
            "storage_alt_point",
            name=each.name,
            sqnr=f"{each.sqnr_db:.1f}",
            bits=f"{each.bits:{BITS}}",
        )
        for each in front(medians(found))
        if not each.is_exact
    ]
    return t("storage_alt", front="; ".join(points))
