"""Figures as text, in the terminal and in the report alike."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from quantlab.report.texts import Texts
from quantlab.text import NULL, format_number

MEASURED = {  # the figures that a terminal shows, as it shows them
    "mae": ".2e",
    "max_err": ".2e",
    "rel_err": ".1%",
    "cos_sim": ".7f",
    "n_codes": "d",
    "sqnr_db": ".2f",
    "zeroed": ".1%",
}
RATIOS = {key: MEASURED[key] for key in ("sqnr_db", "rel_err", "zeroed", "cos_sim", "n_codes")}


def percent(share: float | None, t: Texts, digits: int = 3) -> str:
    """Return a share as a percentage."""
    return NULL if share is None else t("percent", value=f"{100 * share:.{digits}g}")


def format_figure(value: Any, spec: str, t: Texts) -> str:
    """Return a figure as text; the spec ``%`` is a share."""
    return percent(value, t) if spec == "%" else format_number(value, spec)


def format_widths(tried: Sequence[int], t: Texts) -> str:
    """List widths, those that follow each other by their ends."""
    steps = {after - before for before, after in pairwise(tried)}
    if len(tried) > 2 and steps == {1}:
        return t("range", first=tried[0], last=tried[-1])
    return ", ".join(map(str, tried))


def ratio_cells(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures that do not depend on the unit of a tensor, a cell each."""
    return [format_number(figures[key], spec) for key, spec in RATIOS.items()]
