"""Tables and text laid out for a terminal."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100  # columns
NUMBER = re.compile(r"[-+\d.,]+(e[-+]\d+)?%?|–|inf|.+ → .+")
Cell = str | Text


def render(*parts: Table | str) -> str:
    """Return tables, at most `WIDTH` columns wide, and text, a blank line between.

    Only a terminal is given colours.
    """
    console = Console(width=WIDTH, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        for number, part in enumerate(part for part in parts if part):
            if number:
                console.print()
            console.print(part, soft_wrap=isinstance(part, str))
    return re.sub(r" +$", "", captured.get().rstrip("\n"), flags=re.MULTILINE)


def table(heads: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> Table:
    """Align words to the left and numbers to the right; only words may be broken."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, head in enumerate(heads):
        cells = [row[column] for row in rows]
        numeric = all(NUMBER.fullmatch(str(each)) for each in cells)
        made.add_column(
            head,
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="ellipsis" if numeric else "fold",
        )
    for row in rows:
        made.add_row(*row)
    return made
