"""The bar: what figures a width must reach for a tensor to be stored in it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from quantlab.records.record import Row

COLUMN = "bar_"  # what the columns of a row's bar begin with


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What is asked of the figures; a criterion that is None asks nothing.

    `top_order`: the k largest values keep their order, however new ties are broken. `rel_err`: the
    mean relative error is at most this share. `sqnr_db`: the SQNR is at least this, in dB. All of
    them must hold; a figure that does not exist holds where nothing was lost.
    """

    top_order: bool | None = True
    rel_err: float | None = 0.01
    sqnr_db: float | None = 30.0

    def __post_init__(self) -> None:
        """Raise ValueError when a threshold makes no sense, or nothing is asked."""
        if not isinstance(self.top_order, bool | None):
            raise ValueError(
                f"report.bar.top_order must be true, false or null, got {self.top_order!r}"
            )
        _require_within("rel_err", self.rel_err, 1)
        _require_within("sqnr_db", self.sqnr_db, math.inf)
        if not self.criteria:
            raise ValueError("report.bar asks nothing: give at least one of its keys a value")

    @classmethod
    def of(cls, asked: Any) -> "Bar":
        """Return the bar that a config asks for, which asks nothing that it does not name.

        Raises ValueError when it is none.
        """
        known = [each.name for each in fields(cls)]
        if not isinstance(asked, Mapping) or not asked.keys() <= set(known):
            raise ValueError(f"report.bar takes {', '.join(known)}, got {asked!r}")
        return cls(**{key: asked.get(key) for key in known})

    @classmethod
    def from_row(cls, row: Row) -> "Bar":
        """Make the bar of the run that a row is from; the default bar if the row has none."""
        criteria = {field.name: row.get(f"{COLUMN}{field.name}") for field in fields(cls)}
        return cls(**criteria) if any(value is not None for value in criteria.values()) else cls()

    @cached_property
    def criteria(self) -> dict[str, Any]:
        """What is asked, with the threshold."""
        return {key: asked for key, asked in asdict(self).items() if asked not in (None, False)}

    def missed(self, row: Row) -> list[str]:
        """Return the criteria that the figures of a row do not meet."""
        return [key for key, asked in self.criteria.items() if not _meets(key, asked, row)]


def _meets(key: str, asked: Any, row: Row) -> bool:
    if key == "top_order":
        return row["top_order_kept"]
    if row[key] is None:
        return row["max_err"] == 0
    return row[key] <= asked if key == "rel_err" else row[key] >= asked


def _require_within(key: str, asked: float | None, most: float) -> None:
    if asked is None:
        return
    number = isinstance(asked, int | float) and not isinstance(asked, bool)
    if not number or not 0 < asked <= most or asked == math.inf:
        limit = "" if most == math.inf else f", up to {most} (0.05 is 5 %),"
        raise ValueError(f"report.bar.{key} must be a number above 0{limit} or null, got {asked!r}")
