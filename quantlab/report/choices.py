"""The formats that were tried on each tensor: which meet the bar, which of them is the cheapest.

Rows of a table -> `find_choices` -> a `TensorChoice` a tensor, with a `FormatResult` a format;
`find_widths` has the same rows by mode, for the question how few bits a tensor needs, `stored_rows`
those of quantized files. `Findings` holds all three of a sweep. A row is judged by the bar of its
run, a format is told from others by its `FormatSpec`.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from statistics import median
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.floats import float_width
from quantlab.formats.format import PLAIN, FormatSpec, is_format_column
from quantlab.records.record import Row
from quantlab.records.rows import (
    Coded,
    Column,
    Indices,
    column_of,
    count_groups,
    first_rows,
    group_codes,
    group_indices,
    group_rows,
    select_rows,
)
from quantlab.report.bar import Bar, missed_column, missed_criteria, row_bars
from quantlab.text import as_text, printable

FORMAT_KEYS = ("mode", "n_bits", *PLAIN, "settings", "format")  # of a `FormatSpec`
INT8 = 8  # the width that the lab's question is about
Item = TypeVar("Item")
Key = TypeVar("Key")


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Group items by a key, groups in the order of their firsts.

    >>> group_by(["ab", "c", "de"], len)
    {2: ['ab', 'de'], 1: ['c']}
    """
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass(frozen=True)
class FormatResult:
    """One tensor in one format: its row of the table, judged by the bar of the row's run."""

    spec: FormatSpec
    row: Row

    @property
    def name(self) -> str:
        """The name of the format, to read."""
        return self.spec.name

    @property
    def bits(self) -> float:
        """All that is stored, in bits per value; infinite where an old version left it out."""
        bits = self.row.get("bits_per_value")
        return math.inf if bits is None else float(bits)

    @property
    def sqnr_db(self) -> float:
        """The SQNR in dB, infinite where it has no value."""
        return quality(self.row)

    @property
    def missed(self) -> list[str]:
        """The criteria of the bar that the figures do not meet."""
        return [*missed_criteria(self.row)]

    @property
    def meets(self) -> bool:
        """True if all criteria of the bar are met."""
        return not missed_criteria(self.row)

    @property
    def cost(self) -> tuple[float, float, str]:
        """The order of choice among equals before the bar: fewer bits, more SQNR, then by name."""
        return self.bits, -self.sqnr_db, self.name


@dataclass(frozen=True, eq=False)
class FormatResults(Sequence[FormatResult]):
    """Some of the `rows` of a table, each in its format.

    For all rows there are the places of their formats in `specs`, and `costs`: bits and SQNR.
    """

    rows: Sequence[Row]
    specs: Sequence[FormatSpec]
    spec_codes: Indices
    costs: NDArray[np.float64]
    indices: Indices

    @overload
    def __getitem__(self, n: int) -> FormatResult: ...
    @overload
    def __getitem__(self, n: slice) -> list[FormatResult]: ...
    def __getitem__(self, n: int | slice) -> FormatResult | list[FormatResult]:
        """Return one result, or some."""
        if isinstance(n, slice):
            return [self[place] for place in range(*n.indices(len(self)))]
        row = int(self.indices[n])
        return FormatResult(self.specs[self.spec_codes[row]], self.rows[row])

    def __len__(self) -> int:
        """Return the number of results."""
        return len(self.indices)

    def __eq__(self, other: object) -> bool:
        """Test whether results are those of another, in their order."""
        return isinstance(other, FormatResults) and [*self] == [*other]


@dataclass(frozen=True)
class TensorChoice:
    """The formats that were tried on one tensor, the cheapest first.

    `settings` are what else was swept that is no part of a format.
    """

    dist: str
    tensor: str
    settings: Mapping[str, Any]
    formats: FormatResults

    @property
    def name(self) -> str:
        """The tensor, and what else was swept."""
        return name_with_settings(self.tensor, self.settings)

    @property
    def source(self) -> str:
        """The source of the tensor, and what else was swept."""
        return name_with_settings(self.dist, self.settings)

    @cached_property
    def cheapest(self) -> FormatResult | None:
        """The cheapest format that meets the bar; None where none does."""
        return next((result for result in self.formats if result.meets), None)

    @cached_property
    def best(self) -> FormatResult:
        """The cheapest format that meets the bar, else the nearest to it.

        The nearest misses the fewest criteria, then has the highest SQNR.
        """
        return self.cheapest or min(
            self.formats,
            key=lambda result: (len(result.missed), -result.sqnr_db, result.bits, result.name),
        )

    @property
    def meets(self) -> bool:
        """True if some format meets the bar."""
        return self.cheapest is not None


def name_with_settings(name: str, settings: Mapping[str, Any]) -> str:
    """Return a name, and what else was swept that is no part of a format."""
    listed = (f"{key}={as_text(value)}" for key, value in settings.items())
    return ", ".join(map(printable, [name, *listed]))


def tensor_levels(levels: Sequence[str]) -> list[str]:
    """List what tells tensors apart: source, name, and the levels that are no format."""
    names = ["dist", "tensor"]
    return names + [name for name in levels if name not in names and not is_format_column(name)]


def find_choices(rows: Sequence[Row], levels: Sequence[str]) -> list[TensorChoice]:
    """Group rows by tensor, in the order of the table; `levels` nest the table."""
    keys = tensor_levels(levels)
    codes, (specs, spec_codes) = group_codes(rows, keys), find_specs(rows)
    bits = np.nan_to_num(column_of(rows, "bits_per_value").floats(), nan=math.inf)
    ranks = {name: rank for rank, name in enumerate(sorted({spec.name for spec in specs}))}
    names = np.array([ranks[spec.name] for spec in specs], np.intp)[spec_codes]
    decibels = qualities(rows)
    order = np.lexsort((names, -decibels, bits, codes))  # as `FormatResult.cost`
    costs = np.stack([bits, decibels], axis=1)
    firsts = np.unique(codes, return_index=True)[1].tolist()
    ends = np.cumsum(np.bincount(codes)).tolist()
    choices = []
    for first, start, end in zip(firsts, [0, *ends], ends, strict=False):
        row, results = rows[first], FormatResults(rows, specs, spec_codes, costs, order[start:end])
        settings = {key: row[key] for key in keys[2:]}
        choices.append(TensorChoice(row["dist"], row["tensor"], settings, results))
    return choices


def find_specs(rows: Sequence[Row]) -> tuple[list[FormatSpec], Indices]:
    """List the formats of rows, and the place of each row's among them."""
    codes = group_codes(rows, FORMAT_KEYS)
    return [*map(FormatSpec.from_row, first_rows(rows, FORMAT_KEYS))], codes


def qualities(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Return the `quality` of each row."""
    return np.nan_to_num(column_of(rows, "sqnr_db").floats(), nan=math.inf)


def is_plain(spec: FormatSpec) -> bool:
    """Test whether a format is of the lab's integers, whatever becomes of their zero point."""
    return replace(spec, settings=()).is_plain


def has_formats(rows: Sequence[Row]) -> bool:
    """Test whether any row is of more than a plain integer, and has its cost in bits."""
    specs, codes = find_specs(rows)
    is_known = ~np.isnan(column_of(rows, "bits_per_value").floats())
    return not all(is_plain(specs[code]) for code in np.unique(codes[is_known]).tolist())


def storage_choices(rows: Sequence[Row], levels: Sequence[str]) -> list[TensorChoice]:
    """Find the choices among formats of known cost, the most expensive tensor first.

    The list is empty where no tensor has two formats beyond a width of plain integers.
    """
    known = np.flatnonzero(~np.isnan(column_of(rows, "bits_per_value").floats()))
    choices = find_choices(select_rows(rows, known), levels)
    if not any(
        len(choice.formats) > 1 and any(not is_plain(result.spec) for result in choice.formats)
        for choice in choices
    ):
        return []
    return sorted(
        choices, key=lambda choice: -choice.cheapest.bits if choice.cheapest else -math.inf
    )


class Shrinkage(NamedTuple):
    """The format of fewest bits in which all tensors meet the bar, and their bits without it."""

    spec: FormatSpec
    n_tensors: int
    before: int
    after: float


def find_shrinkage(rows: Sequence[Row]) -> Shrinkage | None:
    """Find how small the tensors of a file become in a format, None if none meets the bar."""
    tensors = first_rows(rows, ["tensor"])
    if not all("float" in row["dtype"] for row in tensors):
        return None
    bits = column_of(rows, "n_elements").floats() * column_of(rows, "bits_per_value").floats()
    missed = missed_column(rows)
    is_met = np.array([not criteria for criteria in missed.distinct])[missed.codes]
    names, (specs, codes) = group_codes(rows, ["tensor"]), find_specs(rows)
    sizes = [
        (math.fsum(bits[group]), spec)
        for spec, group in zip(specs, group_indices(codes), strict=True)
        if len(group) == len(np.unique(names[group])) == len(tensors)
        and is_met[group].all()
        and np.isfinite(bits[group]).all()
        and Bar.from_row(rows[group[0]]).is_covered(rows[group[0]])
    ]
    if not sizes:
        return None
    after, spec = min(sizes, key=lambda size: (size[0], size[1].name))
    before = sum(row["n_elements"] * float_width(row["dtype"]) for row in tensors)
    return Shrinkage(spec, len(tensors), before, after)


def pareto_front(items: Iterable[Item], cost: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """Choose the items that no other beats in both costs, the first cost rising; of equals one.

    Items of infinite second cost are left out; an infinite gain, -inf, is the end of a front.

    >>> pareto_front([(4, 20), (5, 21), (6, 10)], cost=lambda item: item)
    [(4, 20), (6, 10)]
    """
    front, least = [], math.inf
    for item in sorted(items, key=cost):
        if cost(item)[1] < least:
            front.append(item)
            least = cost(item)[1]
    return front


class FormatPoint(NamedTuple):
    """A format in bits per value and SQNR in dB, the medians over its tensors."""

    bits: float
    sqnr_db: float
    name: str

    @property
    def is_exact(self) -> bool:
        """True if nothing is lost, and the SQNR has no value."""
        return math.isinf(self.sqnr_db)


def format_points(choices: Sequence[TensorChoice]) -> list[FormatPoint]:
    """Compute the medians of each format over the tensors that have it, the cheapest first."""
    numbers: dict[FormatSpec, int] = {}
    codes, costs = [np.zeros(0, np.intp)], [np.zeros((0, 2))]
    for results in (choice.formats for choice in choices):
        places = [numbers.setdefault(spec, len(numbers)) for spec in results.specs]
        codes.append(np.array(places, np.intp)[results.spec_codes[results.indices]])
        costs.append(results.costs[results.indices])
    of_all = np.concatenate(costs)
    points = []
    for spec, group in zip(numbers, group_indices(np.concatenate(codes)), strict=False):
        if group:
            bits, sqnr_db = np.median(of_all[group], axis=0).tolist()
            points.append(FormatPoint(bits, sqnr_db, spec.name))
    return sorted(points, key=lambda point: (point.bits, -point.sqnr_db, point.name))


def storage_front(points: Sequence[FormatPoint]) -> list[FormatPoint]:
    """Choose the points that no other beats in bits and SQNR, the cheapest first."""
    return pareto_front(points, lambda point: (point.bits, -point.sqnr_db))


def count_cheapest(choices: Iterable[TensorChoice]) -> list[tuple[str, int]]:
    """Count how often each format is the cheapest that meets the bar, the most frequent first."""
    cheapest = [choice.cheapest.spec for choice in choices if choice.cheapest]
    counts = Counter(sorted(cheapest, key=lambda spec: spec.name)).most_common()
    return [(spec.name, n) for spec, n in counts]


@dataclass(frozen=True)
class Widths:
    """One tensor in one mode; `rows` are its widths, the narrowest first.

    `levels` nest the table; `run` names the source and the mode, and what else was swept.
    """

    rows: Sequence[Row]
    levels: Sequence[str]
    run: str

    @cached_property
    def name(self) -> str:
        """The tensor and the mode, and what else was swept."""
        return row_name(self.rows[0], self.levels)

    @cached_property
    def bar(self) -> Bar:
        """The bar of the run."""
        return Bar.from_row(self.rows[0])

    @cached_property
    def missed(self) -> dict[int, frozenset[str]]:
        """The criteria of the bar that each width misses, the narrowest first."""
        return {row["n_bits"]: _as_set(missed_criteria(row)) for row in self.rows}

    @cached_property
    def bits(self) -> int | None:
        """The fewest bits tried that meet the bar; None where none does."""
        return self.fewest_bits(self.bar.criteria)

    def fewest_bits(self, criteria: Collection[str]) -> int | None:
        """Find the fewest bits tried that meet these criteria of the bar."""
        return next((n for n, missed in self.missed.items() if missed.isdisjoint(criteria)), None)

    def gaps(self, criteria: Collection[str]) -> list[int]:
        """List the widths that miss some of these criteria, though fewer bits meet them."""
        fewest = self.fewest_bits(criteria) or math.inf
        wider = {n: missed for n, missed in self.missed.items() if n > fewest}
        return [n for n, missed in wider.items() if not missed.isdisjoint(criteria)]

    @property
    def decisive(self) -> Row:
        """The row to quote: of the fewest bits that meet the bar, else of the widest."""
        return self.row_at(self.bits) or self.rows[-1]

    def row_at(self, n_bits: int | None) -> Row | None:
        """Find the row of a width; None if it was not tried."""
        return next((row for row in self.rows if row["n_bits"] == n_bits), None)


@cache
def _as_set(criteria: tuple[str, ...]) -> frozenset[str]:
    """Return a set that all rows share which miss the same."""
    return frozenset(criteria)


def find_widths(rows: Sequence[Row], levels: Sequence[str]) -> list[Widths]:
    """Group rows by tensor and mode, those that need most bits first; `levels` nest the table.

    Rows of files, which have widths of their own, are left out.
    """
    rows = select_rows(rows, np.flatnonzero(~np.isnan(column_of(rows, "n_bits").floats())))
    if not rows:
        return []
    n_bits, apart = column_of(rows, "n_bits").floats(), [key for key in levels if key != "n_bits"]
    codes, runs = group_codes(rows, apart), _run_names(rows, levels)
    order = np.lexsort((n_bits, codes))
    ends = np.cumsum(np.bincount(codes))
    starts = np.concatenate([[0], ends[:-1]])
    missed = missed_column(rows)
    is_met = np.array([not criteria for criteria in missed.distinct])[missed.codes[order]]
    fewest = np.minimum.reduceat(np.where(is_met, n_bits[order], math.inf), starts)
    widths = [
        Widths([rows[n] for n in order[start:end].tolist()], levels, runs[order[start]])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    ranked = np.lexsort((qualities(rows)[order[ends - 1]], -fewest))
    return [widths[n] for n in ranked.tolist()]


def _run_names(rows: Sequence[Row], levels: Sequence[str]) -> Column:
    """Name the run of each row: the source, the mode, and what else was swept."""
    keys = [key for key in levels if key not in ("n_bits", "tensor")]
    keys = ["dist", "mode", "block", "block_size", *keys]
    names = [row_name(row, levels, run=True) for row in first_rows(rows, keys)]
    return Coded(group_codes(rows, keys), names)


def row_name(row: Row, levels: Sequence[str], *, run: bool = False) -> str:
    """Name the tensor, or with `run` the source, and the mode; then what else was swept."""
    varied = {*levels, "block"} if "block_size" in levels else {*levels}
    varied |= {"block_size"} if "block" in varied else set()
    plain: dict[str, Any] = {key: PLAIN[key] for key in PLAIN if key not in varied}
    spec = replace(FormatSpec.from_row(row), settings=(), **plain).with_element(row["mode"])
    rest = [level for level in levels if level not in ("dist", "tensor", "mode", "n_bits", *PLAIN)]
    settings = [
        f"{level}={as_text(row[level])}"
        for level in rest
        if row[level] is not None or not is_format_column(level)  # another format's are null
    ]
    return ", ".join(map(printable, [row["dist" if run else "tensor"], spec.name, *settings]))


def quality(figures: Row) -> float:
    """Return the SQNR to rank by, in dB, infinite where it has no value."""
    return math.inf if figures["sqnr_db"] is None else float(figures["sqnr_db"])


@dataclass(frozen=True)
class StoredRows:
    """The tensors of one quantized file beside one original, the worst first."""

    name: str
    rows: Sequence[Row]

    @property
    def n_bytes(self) -> float:
        """The size of what is stored."""
        return sum(row["bits_per_value"] * row["n_elements"] for row in self.rows) / 8

    @property
    def bits_per_value(self) -> float:
        """The average over all values."""
        return 8 * self.n_bytes / sum(row["n_elements"] for row in self.rows)

    @property
    def median_db(self) -> float:
        """The median SQNR of the tensors that lost anything; inf where none did."""
        lossy = [row["sqnr_db"] for row in self.rows if row["sqnr_db"] is not None]
        return median(lossy) if lossy else math.inf

    @cached_property
    def types(self) -> list[tuple[str, int]]:
        """The types that it stores, the most frequent first, and of how many tensors."""
        return Counter(row["stored_dtype"] for row in self.rows).most_common()


def stored_rows(rows: Sequence[Row], levels: Sequence[str]) -> list[StoredRows]:
    """Group rows by quantized file, in the order of the table; rows of no file are left out.

    What else was swept makes runs of their own, and is part of the name.
    """
    of_files = select_rows(rows, _indices_of_files(rows))
    if not of_files:
        return []
    apart = [level for level in levels if level not in ("tensor", "mode.path")]
    groups = group_rows(of_files, [*apart, "stored_file"])
    files = ([of_files[n] for n in group] for group in groups)
    varied = [level for level in apart if count_groups(of_files, [level]) > 1]
    return [
        StoredRows(_file_name(rows_of_file[0], varied), sorted(rows_of_file, key=quality))
        for rows_of_file in files
    ]


def _indices_of_files(rows: Sequence[Row]) -> Indices:
    files = column_of(rows, "stored_file")
    return np.flatnonzero([bool(files[n]) for n in range(len(rows))])


def _file_name(row: Row, varied: Sequence[str]) -> str:
    return ", ".join([row["stored_file"], *(f"{key}={as_text(row[key])}" for key in varied)])


class TensorEntry(NamedTuple):
    """A row of the table, and what the record says of its tensor."""

    row: Row
    tensor: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """The content of the report of a sweep.

    `rows` and `levels` are those of its table, each row with its bar, `answers` the rows of
    answers.csv likewise; `details` are looked at closely, `histogram` is the lab's; `failures` and
    `skipped` map a run or a tensor to the reason, `incomplete` a run of which some tensors could
    not be measured; all that could not are `unmeasured`; `provenance` maps a text's key to what
    stands beside it; `own_metrics` are columns that functions of one's own compute; `source`
    is the path of the file that all runs measured, empty where there are several or none.
    """

    rows: Sequence[Row]
    levels: Sequence[str]
    details: Sequence[TensorEntry]
    histogram: Sequence[TensorEntry]
    failures: Mapping[str, str]
    skipped: Mapping[str, str]
    unmeasured: Sequence[str]
    provenance: Mapping[str, str] = field(default_factory=dict)
    incomplete: Mapping[str, str] = field(default_factory=dict)
    answers: Sequence[Row] = ()
    own_metrics: Sequence[str] = ()
    source: str = ""

    @property
    def underflows(self) -> dict[str, int]:
        """Counts of values that became 0 as float32, by tensor; of several of a name, the most."""
        counts: dict[str, int] = {}
        for row in first_rows(self.rows, ["tensor", "underflowed"]):
            count = row.get("underflowed") or 0
            counts[row["tensor"]] = max(count, counts.get(row["tensor"], 0))
        return counts

    @cached_property
    def stored(self) -> list[StoredRows]:
        """The tensors of each quantized file; none where there is no such file."""
        return stored_rows(self.rows, self.levels)

    @cached_property
    def bars(self) -> list[Bar]:
        """The bars by which rows are judged; more than one if runs differ in theirs."""
        return row_bars(self.rows)

    @cached_property
    def widths(self) -> list[Widths]:
        """The widths tried on each tensor and mode, those that need most bits first."""
        return find_widths(self.rows, self.levels)

    @cached_property
    def n_bits(self) -> list[int]:
        """The widths of rows, the narrowest first; rows of files have none."""
        widths = {row["n_bits"] for row in first_rows(self.rows, ["n_bits"])}
        return sorted(widths - {None})

    @cached_property
    def choices(self) -> list[TensorChoice]:
        """The formats tried on each tensor, in the order of the table."""
        return find_choices(self.rows, self.levels)

    @cached_property
    def storage(self) -> list[TensorChoice]:
        """The formats tried on each tensor; none where there are but plain integers."""
        return storage_choices(self.rows, self.levels)
