"""Quantized files beside their originals: a sentence a file, tensors side by side."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from statistics import median

from quantlab.records.record import Row, group_rows
from quantlab.report.bar import Bar
from quantlab.report.choices import quality
from quantlab.report.sentences import grouped_by_reason
from quantlab.report.texts import Texts
from quantlab.text import NULL, as_text, format_number, format_size, printable

TYPES = 6  # of a file that a sentence names
BITS, SQNR = ".4g", ".2f"


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
        return median(lossy) if lossy else inf

    @cached_property
    def types(self) -> list[tuple[str, int]]:
        """The types that it stores, the most frequent first, and of how many tensors."""
        return Counter(row["stored_dtype"] for row in self.rows).most_common()


def stored_rows(rows: Sequence[Row], levels: Sequence[str]) -> list[StoredRows]:
    """Return the tensors of each quantized file; none where there is no such file.

    What else was swept makes runs of their own, and is part of the name.
    """
    of_files = [row for row in rows if row.get("stored_file")]
    apart = [level for level in levels if level not in ("tensor", "mode.path")]
    groups = group_rows(of_files, [*apart, "stored_file"])
    files = ([of_files[n] for n in group] for group in groups)
    varied = [level for level in apart if len({as_text(row[level]) for row in of_files}) > 1]
    return [
        StoredRows(_name(rows_of_file[0], varied), sorted(rows_of_file, key=quality))
        for rows_of_file in files
    ]


def _name(row: Row, varied: Sequence[str]) -> str:
    return ", ".join([row["stored_file"], *(f"{key}={as_text(row[key])}" for key in varied)])


def stored_sentences(files: Sequence[StoredRows], texts: Texts) -> Iterator[str]:
    """Yield a sentence a file, and then one for each thing that is wrong with one."""
    for file in files:
        yield texts(
            "stored",
            name=printable(file.name),
            n=len(file.rows),
            met=sum(not Bar.from_row(row).missed(row) for row in file.rows),
            bits=format_number(file.bits_per_value, BITS),
            size=format_size(file.n_bytes),
            median=_decibels(file.median_db, texts),
            worst=printable(file.rows[0]["tensor"]),
            dtype=file.rows[0]["stored_dtype"],
            least=_decibels(quality(file.rows[0]), texts),
            types=_types(file, texts),
        )
    yield from remark_sentences(files, texts)


def remark_sentences(files: Sequence[StoredRows], texts: Texts) -> Iterator[str]:
    """Yield each fault of a file once, with its tensors."""
    for file in files:
        remarks = {row["tensor"]: row["remark"] for row in file.rows if row.get("remark")}
        for who, why in grouped_by_reason(remarks, texts, "and_more_tensors"):
            yield texts("stored_remark", file=printable(file.name), who=printable(who), why=why)


def _types(file: StoredRows, texts: Texts) -> str:
    types = [texts("stored_type", dtype=dtype, n=n) for dtype, n in file.types[:TYPES]]
    more = sum(n for _, n in file.types[TYPES:])
    return ", ".join([*types, *([texts("stored_others", n=more)] if more else ())])


def _decibels(value: float, texts: Texts) -> str:
    return texts("exact") if value == inf else texts("decibels", value=f"{value:{SQNR}}")


def side_by_side(files: Sequence[StoredRows], texts: Texts) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of all tensors, a type, its bits and SQNR for each file.

    Those come first that differ most from file to file; of one file those that lost most.
    """
    tensors: dict[str, dict[int, Row]] = {}
    for n, file in enumerate(files):
        for row in file.rows:
            tensors.setdefault(row["tensor"], {})[n] = row
    weighted = any(row.get("out_sqnr_db") is not None for file in files for row in file.rows)
    heads = [texts("storage_tensor")]
    for file in files:
        columns = [texts("stored_as"), texts("storage_bits"), texts("storage_sqnr")]
        columns += [texts("stored_out")] if weighted else []
        heads += [f"{printable(file.name)}: {column}" for column in columns]
    ordered = sorted(tensors, key=lambda name: _difference(list(tensors[name].values())))
    rows = []
    for name in ordered:
        of_files = (_cells(tensors[name].get(n), weighted, texts) for n in range(len(files)))
        rows.append([printable(name), *(cell for cells in of_files for cell in cells)])
    return heads, rows


def _difference(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the sort key: the greatest difference in SQNR first, then the least SQNR."""
    decibels = [min(quality(row), 999.0) for row in rows]
    return min(decibels) - max(decibels), min(decibels)


def _cells(row: Row | None, weighted: bool, texts: Texts) -> list[str]:
    if row is None:
        return [NULL] * (4 if weighted else 3)
    out = [format_number(row.get("out_sqnr_db"), SQNR)] if weighted else []
    sqnr = texts("exact") if row["sqnr_db"] is None else format_number(row["sqnr_db"], SQNR)
    return [row["stored_dtype"], format_number(row["bits_per_value"], BITS), sqnr, *out]
