"""One run of a sweep, as its directory has it."""

from typing import NamedTuple

from quantlab.records.record import Record


class Run(NamedTuple):
    """One run directory, relative to its sweep; `record` and its hash are None where unreadable."""

    directory: str
    sha256: str | None
    record: Record | None
    error: str | None
