"""One tensor looked at closely: its errors, the codes it uses, its largest values."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from markupsafe import Markup

from quantlab import plots
from quantlab.record import Record
from quantlab.tensor import label
from quantlab.texts import Texts
from quantlab.verdict import percent, quality


class Place(NamedTuple):
    """One of the k largest values; `after` is its place in the top that came back, if any."""

    element: int
    x: str
    x_hat: str
    after: int | None
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
        places=list(places(tensor["top"])),
    )


def _flushed(measured: Mapping[str, Any], half: str, t: Texts) -> str:
    """Say which values came back as 0: the round trip is monotone, so they are those near it."""
    if not measured["zeroed"]:
        return t("flushed_none")
    return t("flushed", share=percent(measured["zeroed"], t), half=half)


def places(top: Mapping[str, Any]) -> Iterator[Place]:
    """Yield the largest values of a record, marking neighbours that became one value."""
    after = {index: place for place, index in enumerate(top["indices_after"], 1)}
    merges = [
        a != b and c == d
        for (a, b), (c, d) in zip(pairwise(top["x"]), pairwise(top["x_hat"]), strict=True)
    ]
    for n, (index, x, x_hat) in enumerate(zip(top["indices"], top["x"], top["x_hat"], strict=True)):
        merged = any(merges[max(n - 1, 0) : n + 1])
        yield Place(index, f"{x:.6g}", f"{x_hat:.6g}", after.get(index), merged)
