"""One tensor looked at closely: its errors, the codes it uses, its largest values."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from quantlab.report import plots
from quantlab.report.numbers import percent
from quantlab.report.texts import Texts
from quantlab.stats.rank import SHOWN


class Place(NamedTuple):
    """One of the k largest values, or the next where it came back as the last of them did.

    `after` says which place it has now, `merged` that a value which differed came back equal.
    """

    element: int
    x: str
    x_hat: str
    after: str
    merged: bool


class TensorDetail(NamedTuple):
    """One tensor looked at closely."""

    heading: str
    picture: Markup
    sentences: list[str]
    caption: str
    places: list[Place]


def tensor_detail(
    name: str, n_bits: int | None, tensor: plots.Entry, drawn: bytes, t: Texts
) -> TensorDetail:
    """Return what to say of a tensor beside its picture."""
    measured, found = tensor["measured"], plots.finding([tensor["measured"]], t)
    half = f"{tensor['error_histogram']['upper']:.3g}" if plots.has_one_step(tensor) else None
    codes = {"n_codes": measured["n_codes"], "all": 2**n_bits} if n_bits and tensor["codes"] else {}
    sentences = [
        t("errors" if half else "errors_any", finding=found, half=half),
        *([_codes_sentence(codes, measured, n_bits, t)] if codes else ()),
        _zeroed_sentence(measured, half, t),
        *([t("clipped", value=percent(measured["clipped"], t))] if measured["clipped"] else ()),
    ]
    alt = ("closer_alt" if half else "closer_alt_any") if codes else "closer_alt_errors"
    caption, listed = _top(tensor, t)
    return TensorDetail(
        heading=t("in_bits", name=name, bits=n_bits) if n_bits else name,
        picture=Markup(plots.inline(drawn, t(alt, finding=found, half=half, **codes))),
        sentences=sentences,
        caption=caption,
        places=listed,
    )


def _codes_sentence(
    codes: Mapping[str, int], measured: Mapping[str, Any], n_bits: int | None, t: Texts
) -> str:
    entropy = f"{measured['code_entropy']:.2f}"
    return t("codes_used", **codes, entropy=entropy, bits=n_bits)


def _top(tensor: plots.Entry, t: Texts) -> tuple[str, list[Place]]:
    """Return the largest values before and after, and what to write above them.

    With many scales any other value may come in among them: the ranks are those among themselves.
    """
    k, top = tensor["rank"]["top_k"], tensor["top"]
    caption = t("top_caption" if k <= SHOWN else "top_caption_long", k=k, shown=SHOWN)
    if tensor["params"]["scale"] is None:
        caption = f"{caption} {t('top_among')}"
        top = {key: each[: min(k, SHOWN)] for key, each in top.items()}
    return caption, list(places(top, k, t))


def _zeroed_sentence(measured: Mapping[str, Any], half: str | None, t: Texts) -> str:
    """Say how many values came back as 0, and of one step, whose map is monotone, which."""
    if not measured["zeroed"]:
        return t("flushed_none")
    return t("flushed" if half else "flushed_any", share=percent(measured["zeroed"], t), half=half)


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
        if n < min(k, SHOWN) or (n == k and merged):
            rank = "–".join(map(str, dict.fromkeys([first, min(last, k)])))
            rank = t("top_or_out", places=rank) if last > k else rank
            yield Place(index, f"{before:.6g}", f"{after:.6g}", rank, merged)
