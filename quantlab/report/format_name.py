"""What a storage format is called: its mode, its width, and each choice that is not the default."""

from collections.abc import Iterable, Sequence

from quantlab.records.record import Row
from quantlab.text import NULL, as_text

FORMAT = ("mode", "n_bits", "block", "block_size", "scale_dtype", "range")  # what a format is
GROUPS = ("mode", "block", "range")  # whose further settings, like range.p, belong to a format
DEFAULTS = {"block": "tensor", "scale_dtype": "float32", "range": "absmax"}
WIDE = {"symmetric": "sym", "asymmetric": "asym", "log": "log"}  # modes of any width, in short


def is_of_format(level: str) -> bool:
    """Return whether a level of the table is part of the format."""
    return level in FORMAT or level.partition(".")[0] in GROUPS


def is_plain(row: Row) -> bool:
    """Return whether a row is of the lab's integers: one float32 scale over the whole range."""
    return row["mode"] in ("symmetric", "asymmetric") and not _choices(row)


def has_formats(rows: Iterable[Row]) -> bool:
    """Return whether any row is of more than a plain integer, and says what it costs in bits."""
    return any(row.get("bits_per_value") is not None and not is_plain(row) for row in rows)


def format_name(row: Row, levels: Sequence[str] = ()) -> str:
    """Return the short name of a row's format, its width included and defaults left out.

    Of `levels` those are added that are further settings of the format.

    >>> format_name({"mode": "nf4", "n_bits": 4, "block": "group", "block_size": 64})
    'nf4, group 64'
    >>> format_name({"mode": "symmetric", "n_bits": 4, "block": "channel", "range": "mse"})
    'sym 4 bits, channel, mse'
    """
    mode = row["mode"]
    element = f"{WIDE[mode]} {row['n_bits']} bits" if mode in WIDE else mode
    if row.get("stored_file"):
        element, levels = row["stored_file"], [key for key in levels if key != "mode.path"]
    own = [key for key in levels if _is_setting(key) and has_setting(row, key)]
    settings = [f"{key}={as_text(row[key])}" for key in own]
    return ", ".join([element, *_choices(row).values(), *settings])


def has_setting(row: Row, level: str) -> bool:
    """Return whether a row has a level; the further settings of another format are null."""
    return row[level] is not None or not is_of_format(level)


def varied_choices(row: Row, levels: Sequence[str]) -> list[str]:
    """Return how a row's format differs from the default in what `levels` vary, mode apart."""
    varied = {"block" if level == "block_size" else level for level in levels}
    return [choice for key, choice in _choices(row).items() if key in varied]


def with_format(rows: Sequence[Row], levels: Sequence[str]) -> tuple[Sequence[Row], list[str]]:
    """Return rows and levels in which a format is one column, its name."""
    kept = [level for level in levels if not is_of_format(level)]
    named = [{**row, "format": format_name(row, levels)} for row in rows]
    return named, [kept[0], "format", *kept[1:]]


def level_text(row: Row, level: str) -> str:
    """Return the value of a level as text; what a format does not have is a dash."""
    return NULL if row[level] is None and level in FORMAT else as_text(row[level])


def _choices(row: Row) -> dict[str, str]:
    """Return what was chosen beside mode and width, where not the default; of a preset nothing."""
    if "/" in row["mode"]:
        return {}
    chosen = {key: row.get(key) or default for key, default in DEFAULTS.items()}
    size = f" {row['block_size']}" if chosen["block"] == "group" and row.get("block_size") else ""
    return {
        key: each + (size if key == "block" else "")
        for key, each in chosen.items()
        if each != DEFAULTS[key]
    }


def _is_setting(level: str) -> bool:
    return level not in FORMAT and is_of_format(level)
