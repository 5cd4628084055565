"""One tensor looked at closely: its errors, the codes it uses, its largest values."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from quantlab import plots
from quantlab.record import Record
from quantlab.tensor import label
from quantlab.texts import Texts
from quantlab.verdict import percent, quality


class Place(NamedTuple):
    """One of the k largest values, or the next where it came back as the last of them did.

    `after` says which place it has now, `merged` that a value which differed came back equal.
    """

    element: int
    x: str
    x_hat: str
    after: str
    merged: bool


class Card(NamedTuple):
    """One tensor looked at closely."""

    heading: str
    picture: Markup
    said: list[str]
    top_k: int
    places: list[Place]


def worst_first(one: Record) -> float:
    """Return what to sort runs by: the SQNR of the tensor that suffers most."""
    _, tensor = plots.worst(one["tensors"])
    return quality(tensor["measured"]["sqnr_db"])


def card(one: Record, drawn: bytes, t: Texts) -> Card:
    """Return what to say beside the picture of the tensor that suffers most in a run."""
    tensor_name, tensor = plots.worst(one["tensors"])
    measured, half = tensor["measured"], f"{tensor['error_histogram']['upper']:.3g}"
    codes = {"n_codes": measured["n_codes"], "all": 2 ** one["n_bits"]}
    finding = t(f"finding_{plots.finding([measured])}", ratio=f"{measured['bound_ratio']:.1f}")
    said = [
        t("codes_used", **codes, entropy=f"{measured['code_entropy']:.2f}", bits=one["n_bits"]),
        _flushed(measured, half, t),
        *([t("clipped", value=percent(measured["clipped"], t))] if measured["clipped"] else ()),
    ]
    return Card(
        heading=t("in_bits", name=f"{label(tensor_name)}, {one['mode']}", bits=one["n_bits"]),
        picture=Markup(plots.inline(drawn, t("closer_alt", finding=finding, half=half, **codes))),
        said=said,
        top_k=tensor["rank"]["top_k"],
        places=list(places(tensor["top"], tensor["rank"]["top_k"], t)),
    )


def _flushed(measured: Mapping[str, Any], half: str, t: Texts) -> str:
    """Say which values came back as 0: the round trip is monotone, so they are those near it."""
    if not measured["zeroed"]:
        return t("flushed_none")
    return t("flushed", share=percent(measured["zeroed"], t), half=half)


def places(top: Mapping[str, Any], k: int, t: Texts) -> Iterator[Place]:
    """Yield the k largest values of a record, the next where it merged with them.

    Equal values share their places: a sort puts either first, or leaves it out of the k.
    """
    x, x_hat = top["x"], top["x_hat"]
    for n, (index, before, after) in enumerate(zip(top["indices"], x, x_hat, strict=True)):
        first = sum(other > after for other in x_hat) + 1
        last = sum(other >= after for other in x_hat)
        merged = any(
            other != before and back == after for other, back in zip(x, x_hat, strict=True)
        )
        if n < k or merged:
            said = "–".join(map(str, dict.fromkeys([first, min(last, k)])))
            said = t("top_or_out", places=said) if last > k else said
            yield Place(index, f"{before:.6g}", f"{after:.6g}", said, merged)
