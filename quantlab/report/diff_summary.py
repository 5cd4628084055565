"""What became better or worse between two sweeps, as text."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from quantlab.report.console import render, table
from quantlab.report.diff import Change, Diff
from quantlab.report.numbers import MEASURED
from quantlab.report.sentences import failure_sentences, rank_text
from quantlab.report.texts import Texts
from quantlab.text import format_number, label

LONGEST = 60  # rows; beyond them a terminal is the wrong place
FORMAT = 24  # characters
NAMED = 5  # tensors that are missing


def diff_summary(found: Diff, tolerance: float, t: Texts) -> str:
    """Return the changes beyond a tolerance in dB as a table, then the counts."""
    worse = [each for each in found.changes if each.is_worse(tolerance)]
    better = [each for each in found.changes if each.is_better(tolerance)]
    better.reverse()
    counts = t(
        "diff_counts",
        n=len(found.changes),
        worse=len(worse),
        better=len(better),
        tolerance=f"{tolerance:g}",
    )
    lines = [*_cheapest(found, t), *_gone(found, t), *_only(found, t), counts]
    changed = [*worse, *better]
    rest = [t("diff_more", n=len(changed) - LONGEST)] if len(changed) > LONGEST else []
    return render(*_table(changed[:LONGEST], t), *rest, "\n".join(lines))


def _table(changed: Sequence[Change], t: Texts) -> Iterator[Table]:
    if not changed:
        return
    keys = list(changed[0].bar.criteria)
    heads = [t("storage_tensor"), t("diff_format"), *(_head(key, t) for key in keys)]
    yield table(heads, [_cells(each, keys, t) for each in changed])


def _head(key: str, t: Texts) -> str:
    return t("head_top_k") if key == "top_order" else key


def _cells(each: Change, keys: Sequence[str], t: Texts) -> tuple[str, ...]:
    formats = dict.fromkeys(label(name, FORMAT) for name in each.formats)
    return label(each.name, 40), " → ".join(formats), *(_figures(each, key, t) for key in keys)


def _figures(each: Change, key: str, t: Texts) -> str:
    """Return a figure before and after; one that stayed the same once."""
    if key == "top_order":
        said = [rank_text(row, t) for row in (each.before, each.after)]
    else:
        said = [format_number(row[key], MEASURED[key]) for row in (each.before, each.after)]
        exact = [row[key] is None and not row["max_err"] for row in (each.before, each.after)]
        said = [t("exact") if lost else text for lost, text in zip(exact, said, strict=True)]
    return " → ".join(dict.fromkeys(said))


def _cheapest(found: Diff, t: Texts) -> Iterator[str]:
    changed = list(found.cheapest.items())
    for name, formats in changed[:LONGEST]:
        then, now = (each or t("diff_none") for each in formats)
        yield t("diff_cheapest", name=label(name), before=then, after=now)
    if len(changed) > LONGEST:
        yield t("diff_more", n=len(changed) - LONGEST)


def _gone(found: Diff, t: Texts) -> Iterator[str]:
    yield from failure_sentences(found.failures, t)
    if found.missing:
        names = ", ".join(map(label, found.missing[:NAMED]))
        more = len(found.missing) - NAMED
        yield t("diff_missing", names=names + (f" {t('more_reasons', n=more)}" if more > 0 else ""))


def _only(found: Diff, t: Texts) -> Iterator[str]:
    if any(found.only):
        before, after = found.only
        yield t("diff_only", before=before, after=after)
