"""The bar: the figures that a tensor must reach in a format, and the settings of a report.

Each run is recorded with its bar, and each row of the table is judged by the bar of its run; what
is said later, as in ``quantlab report DIR report.bar.sqnr_db=25``, changes the bar of every row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from quantlab.records import disk
from quantlab.records.record import BAR_PREFIX, LATER_CRITERIA, Row
from quantlab.records.rows import Coded, Rows, column_of, first_rows, group_codes
from quantlab.report.texts import Texts

if TYPE_CHECKING:
    from omegaconf import DictConfig

MISSED = "/missed"  # of the rows of a table that is being aggregated: a `missed_column`
ANSWER_CRITERIA = ("kl", "top1_same", "accuracy_drop")
CONFIG_FILES = ("multirun.yaml", ".hydra/config.yaml")  # of a sweep, and of a run alone


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Criteria that figures must meet, all of them; None leaves a criterion out.

    `top_order`: the k largest values keep their order, however new ties are broken. `rel_err`: the
    mean relative error is at most this share. `sqnr_db`: the SQNR is at least this, in dB. A figure
    that does not exist meets them where nothing was lost; a tensor whose values were all too small
    for float32 meets none. `worst_row_sqnr_db`: the SQNR of the worst row is at least this, in dB.
    `coverage` is no figure of a tensor: at least this share of the values
    of an original must have been compared with a stored file.

    Three judge what a model answers with all weights stored, each output where it has the figure.
    `kl`: at most so many bits. `top1_same`: at least this share of the first answers stay.
    `accuracy_drop`: at most this share of them is right no more.
    """

    top_order: bool | None = True
    rel_err: float | None = 0.01
    sqnr_db: float | None = 30.0
    worst_row_sqnr_db: float | None = None
    coverage: float | None = None
    kl: float | None = None
    top1_same: float | None = None
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if a threshold makes no sense, or there is no criterion."""
        if not isinstance(self.top_order, bool | None):
            raise ValueError(
                f"report.bar.top_order must be true, false or null, got {self.top_order!r}"
            )
        _require_within("rel_err", self.rel_err, 1)
        _require_within("sqnr_db", self.sqnr_db, math.inf)
        _require_within("worst_row_sqnr_db", self.worst_row_sqnr_db, math.inf)
        _require_within("coverage", self.coverage, 1)
        _require_within("kl", self.kl, math.inf)
        _require_within("top1_same", self.top1_same, 1)
        _require_within("accuracy_drop", self.accuracy_drop, 1)
        if not self.criteria and not self.answer_criteria:
            raise ValueError("report.bar asks nothing: give at least one of its keys a value")

    @classmethod
    def of(cls, criteria: Any) -> "Bar":
        """Make a bar of the criteria in a config; those that it does not name are left out.

        Raises ValueError if it is no mapping of criteria.
        """
        require_criteria(criteria)
        return cls(**{key: criteria.get(key) for key in CRITERIA})

    @classmethod
    def from_row(cls, row: Row) -> "Bar":
        """Make the bar of the run that a row is from; the default bar if the row has none."""
        return _bar_of(*map(row.get, BAR_COLUMNS))

    def columns(self) -> dict[str, Any]:
        """Return the columns of results.csv that say the bar of a row."""
        return {f"{BAR_PREFIX}{key}": limit for key, limit in self.thresholds().items()}

    def thresholds(self) -> dict[str, Any]:
        """Return every threshold; of later criteria those that are set."""
        limits = asdict(self).items()
        return {key: v for key, v in limits if v is not None or key not in LATER_CRITERIA}

    @cached_property
    def criteria(self) -> dict[str, Any]:
        """The criteria that figures of a tensor must meet, with their thresholds."""
        return {
            key: limit
            for key, limit in asdict(self).items()
            if limit not in (None, False) and key not in ("coverage", *ANSWER_CRITERIA)
        }

    @cached_property
    def answer_criteria(self) -> dict[str, float]:
        """The criteria that answers of a model must meet, with their thresholds."""
        limits = {key: getattr(self, key) for key in ANSWER_CRITERIA}
        return {key: limit for key, limit in limits.items() if limit is not None}

    def is_covered(self, row: Row) -> bool:
        """Test whether enough of the original was compared, in the run that a row is from."""
        share = row.get("coverage")
        return share is None or self.coverage is None or share >= self.coverage

    def missed(self, row: Row) -> list[str]:
        """List the criteria that the figures of a row do not meet."""
        if is_lost_to_float32(row):
            return list(self.criteria)
        return [key for key, limit in self.criteria.items() if not _meets(key, limit, row)]

    def missed_answers(self, row: Row) -> list[str]:
        """List the criteria that the figures of an output do not meet, of those that it has."""
        return [
            key
            for key, limit in self.answer_criteria.items()
            if (value := answer_figure(row, key)) is not None
            and (value < limit if key == "top1_same" else value > limit)
        ]


CRITERIA = tuple(field.name for field in fields(Bar))
BAR_COLUMNS = tuple(f"{BAR_PREFIX}{key}" for key in CRITERIA)


def missed_criteria(row: Row) -> tuple[str, ...]:
    """List the criteria of its bar that a row misses, of a judged table as it is written there."""
    missed: tuple[str, ...] | None = row.get(MISSED)
    return tuple(Bar.from_row(row).missed(row)) if missed is None else missed


def answer_figure(row: Row, key: str) -> float | None:
    """Return the figure of an output that a criterion judges; None where it does not exist."""
    if key != "accuracy_drop":
        return cast("float | None", row[key])
    return None if row["accuracy"] is None else row["accuracy_before"] - row["accuracy"]


@lru_cache(maxsize=1024, typed=True)  # 30 and 30.0 are written as they came
def _bar_of(*criteria: Any) -> Bar:
    if all(value is None for value in criteria):
        return Bar()
    return Bar(**dict(zip(CRITERIA, criteria, strict=True)))


def require_criteria(criteria: Any) -> None:
    """Raise ValueError unless this is a mapping whose keys are criteria of a bar."""
    if not isinstance(criteria, Mapping) or not criteria.keys() <= set(CRITERIA):
        raise ValueError(f"report.bar takes {', '.join(CRITERIA)}, got {criteria!r}")


def is_lost_to_float32(row: Row) -> bool:
    """Test whether a tensor had values and all of them became 0 as float32."""
    return bool(row.get("underflowed")) and row.get("x_min") == row.get("x_max") == 0


def _meets(key: str, limit: Any, row: Row) -> bool:
    if key == "top_order":
        return row["top_order_kept"]
    if row.get(key) is None:
        return row["max_err"] == 0
    return row[key] <= limit if key == "rel_err" else row[key] >= limit


def _require_within(key: str, limit: float | None, most: float) -> None:
    if limit is None:
        return
    number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if not number or not 0 < limit <= most or limit == math.inf:
        range_text = "" if most == math.inf else f", up to {most} (0.05 is 5 %),"
        raise ValueError(
            f"report.bar.{key} must be a number above 0{range_text} or null, got {limit!r}"
        )


def missed_column(rows: Sequence[Row]) -> Coded:
    """Make a column of the criteria that each row misses, as a tuple: `Bar.missed` of all rows."""
    if isinstance(rows, Rows) and isinstance(known := rows.columns.get(MISSED), Coded):
        return known
    codes = group_codes(rows, BAR_COLUMNS)
    bars = [*map(Bar.from_row, first_rows(rows, BAR_COLUMNS))]
    lost, misses = _lost_rows(rows), np.zeros(len(rows), np.intp)
    keys = [key for key in CRITERIA if any(key in bar.criteria for bar in bars)]
    for number, key in enumerate(keys):
        limits = np.array([bar.criteria.get(key, math.nan) for bar in bars], np.float64)[codes]
        missed = (lost | _miss_limits(key, limits, rows)) & ~np.isnan(limits)
        misses |= missed.astype(np.intp) << number
    numbers = range(len(keys))
    sets = [tuple(keys[n] for n in numbers if mask >> n & 1) for mask in range(2 ** len(keys))]
    return Coded(misses, sets)


def _lost_rows(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Test which rows are of tensors that `is_lost_to_float32`."""
    underflowed, lo, hi = (
        column_of(rows, key).floats() for key in ("underflowed", "x_min", "x_max")
    )
    return (underflowed > 0) & (lo == 0) & (hi == 0)


def _miss_limits(key: str, limits: NDArray[np.float64], rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Test which rows do not meet a criterion, as `_meets` tests one."""
    if key == "top_order":
        return ~(column_of(rows, "top_order_kept").floats() > 0)
    figures = column_of(rows, key).floats()
    is_worse = figures > limits if key == "rel_err" else figures < limits
    is_lossy = column_of(rows, "max_err").floats() != 0
    return np.where(np.isnan(figures), is_lossy, is_worse)


def row_bars(rows: Sequence[Row]) -> list[Bar]:
    """List the bars by which rows are judged, each once; without rows there is the default."""
    return list(dict.fromkeys(map(Bar.from_row, first_rows(rows, BAR_COLUMNS)))) or [Bar()]


class ReportSettings(NamedTuple):
    """Criteria that change the bar of every row, and the words of a report."""

    criteria: Mapping[str, Any]
    texts: Texts

    def judged(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows with the columns of the bar by which they are judged.

        Raises ValueError if a bar makes no sense.
        """
        return [{**row, **self._bar_columns(row)} for row in rows]

    def judged_table(self, rows: Rows) -> Rows:
        """Return the rows of a table with the columns of their bars, as `judged` does."""
        codes = group_codes(rows, BAR_COLUMNS)
        bars = [self._bar_columns(row) for row in first_rows(rows, BAR_COLUMNS)]
        return rows.with_columns(Rows.of(bars).take(codes).columns)

    def _bar_columns(self, row: Row) -> dict[str, Any]:
        return replace(Bar.from_row(row), **self.criteria).columns()


def run_settings(cfg: "DictConfig") -> tuple[Bar, Texts]:
    """Read bar and words from the config of a run; raises ValueError where they make no sense."""
    from omegaconf import DictConfig, OmegaConf  # a notebook measures without it

    report = OmegaConf.select(cfg, "report", default=OmegaConf.create())
    if not isinstance(report, DictConfig):
        raise ValueError(f"report takes lang and bar, got {report!r}")
    values = cast("dict[str, Any]", OmegaConf.to_container(report, resolve=True))
    return Bar.of(values["bar"]) if "bar" in values else Bar(), Texts(values.get("lang", "en"))


def read_settings(directory: Path, settings: Sequence[str] = ()) -> ReportSettings:
    """Read the language of a sweep or run, and the settings that change its bar and language.

    Settings are overrides such as ``report.bar.sqnr_db=25``. Raises ValueError where they make no
    sense, OmegaConf's errors where a key is unknown.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.create({"report": {"lang": "en", "bar": asdict(Bar())}})
    OmegaConf.set_struct(config, True)
    for name in CONFIG_FILES:
        path = directory / name
        if path.exists():
            with disk.reading_config(path):
                report = disk.read_yaml(path).get("report") or {}
                config.report.lang = report.get("lang", config.report.lang)
    config.merge_with_dotlist(list(settings))
    _, texts = run_settings(config)
    given = OmegaConf.to_container(OmegaConf.from_dotlist(list(settings)))
    criteria = cast("dict[str, Any]", given).get("report", {}).get("bar", {})
    require_criteria(criteria)
    return ReportSettings(criteria, texts)


def typed_settings(directory: Path) -> list[str]:
    """List the settings of the report in the command of a sweep: they hold for all of its runs."""
    from omegaconf import OmegaConf

    path = directory / CONFIG_FILES[0]
    command = disk.read_yaml(path) if path.exists() else OmegaConf.create()
    typed: Any = OmegaConf.to_container(command)  # to read an override with ${...} would resolve it
    with disk.reading_config(path):
        overrides = typed.get("hydra", {}).get("overrides", {}).get("task", [])
        return [text for text in overrides if text.startswith("report.")]
