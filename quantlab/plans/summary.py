"""What a person reads in the terminal of a plan."""

from collections.abc import Sequence
from pathlib import Path

from quantlab.plans.mixture import Plan
from quantlab.plans.sentences import answer, count_heads, count_rows, sentences
from quantlab.report.console import render, table
from quantlab.report.texts import Texts
from quantlab.text import label

LONGEST = 40  # formats
FORMAT = 40  # characters


def plan_summary(plan: Plan, files: Sequence[Path], usage: str | None, t: Texts) -> str:
    """Return the plan in one line, its formats, how it compares, and where its files are."""
    rows = [(label(row[0], FORMAT), *row[1:]) for row in count_rows(plan, t)[:LONGEST]]
    return render(
        answer(plan, t),
        table(count_heads(t), rows),
        "\n".join(sentences(plan, t)),
        "\n".join(map(str, files)),
        usage or "",
    )
