"""The sentences of a report: what was found, in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from math import floor, inf
from typing import Any

import numpy as np

from quantlab.formats.format import FormatSpec
from quantlab.records.record import Row
from quantlab.records.rows import column_of, select_rows
from quantlab.report.bar import Bar, is_lost_to_float32, missed_criteria, row_bars
from quantlab.report.choices import (
    INT8,
    Findings,
    StoredRows,
    TensorChoice,
    Widths,
    count_cheapest,
    find_shrinkage,
    group_by,
    is_plain,
    quality,
)
from quantlab.report.texts import Texts
from quantlab.text import NULL, format_number, format_size, label, printable

BITS_SPEC, SQNR_SPEC = ".4g", ".2f"
SENTENCE_FORMATS, SENTENCE_TYPES = 5, 6  # of a source and of a file, the most frequent
SENTENCE_ITEMS = 4  # names or reasons in one sentence; more nobody reads
LIMIT_UNITS = dict.fromkeys(("rel_err", "top1_same", "accuracy_drop"), "percent") | {
    "kl": "bits_text"
}
MOSTLY = 0.5  # share of the values that are not 0
SENTENCE_TENSORS = 3  # tensors of one kind that have a sentence, or a place in one


def verdict_sentences(findings: Findings, texts: Texts) -> list[str]:
    """List the sentences of quantized files, of the cheapest formats and of the fewest bits."""
    return [
        *stored_sentences(findings.stored, texts),
        *vanished_sentences(findings.rows, texts),
        *storage_sentences(findings.storage, findings.levels, texts),
        *sentences(findings.widths, findings.levels, texts),
    ]


def shrinkage_sentence(findings: Findings, texts: Texts) -> str | None:
    """Say how small the tensors of a file become in one format that meets the bar, if any does."""
    unknown = [*findings.failures, *findings.incomplete, *findings.unmeasured]
    shrinkage = find_shrinkage(findings.rows) if findings.source and not unknown else None
    if shrinkage is None or shrinkage.after >= shrinkage.before:
        return None
    return texts(
        "shrinkage",
        n=shrinkage.n_tensors,
        name=printable(findings.source),
        before=format_size(shrinkage.before / 8),
        after=format_size(shrinkage.after / 8),
        ratio=f"{shrinkage.before / shrinkage.after:.3g}",
        format=shrinkage.spec.name,
    )


def sentences(tensors: Sequence[Widths], levels: Sequence[str], texts: Texts) -> Iterator[str]:
    """Yield a sentence for each tensor and mode, or with many tensors one for each run."""
    if "tensor" not in levels:
        yield from (sentence(widths, texts) for widths in tensors)
        return
    runs = group_by(tensors, lambda widths: widths.run)
    yield from (_summary(widths, texts) for widths in runs.values())


def sentence(widths: Widths, texts: Texts) -> str:
    """Name the fewest bits that a tensor needs, and the figures."""
    row, tried = widths.decisive, [row["n_bits"] for row in widths.rows]
    words = {"name": widths.name, "bits": row["n_bits"], "tried": format_widths(tried, texts)}
    many = "" if len(tried) > 1 else "_only"
    if widths.bits is None:
        return texts(f"misses{many}", **words, missed=missed_text(row, widths.bar, texts))
    gaps = widths.gaps(widths.bar.criteria)
    text = texts(f"meets{many}", **words, figures=_figures(row, widths.bar, texts))
    return text + (texts("gap", widths=format_widths(gaps, texts)) if gaps else "")


def _summary(tensors: Sequence[Widths], texts: Texts) -> str:
    """Count the tensors of a run that meet the bar and each criterion, and name the worst."""
    worst, bar = tensors[0], tensors[0].bar
    n_met = {
        key: sum(bool(widths.fewest_bits([key])) for widths in tensors) for key in bar.criteria
    }
    counts = [f"{criterion_text(key, bar.criteria[key], texts)}: {n}" for key, n in n_met.items()]
    return texts(
        "summary",
        name=worst.run,
        met=sum(widths.bits is not None for widths in tensors),
        n=len(tensors),
        widest=max(row["n_bits"] for widths in tensors for row in widths.rows),
        counts=f" ({', '.join(counts)})" if len(counts) > 1 else "",
        worst=printable(worst.rows[0]["tensor"]),
        bits=worst.decisive["n_bits"],
        figures=_reasons(worst.decisive, bar, texts),
    )


def answers(tensors: Iterable[Widths], texts: Texts) -> Iterator[tuple[str, str]]:
    """Yield the questions that the catalogue has of a source, and what its 8-bit figures answer.

    They are of plain integers, without blocks or a chosen range. The answer is yes where some mode
    meets the bar whatever else was swept.
    """
    sources: dict[str, dict[str, list[Widths]]] = {}
    for widths in tensors:
        dist, mode = widths.rows[0]["dist"], widths.rows[0]["mode"]
        if f"question_{dist}" in texts and INT8 in widths.missed and _is_plain(widths.rows[0]):
            sources.setdefault(dist, {}).setdefault(mode, []).append(widths)
    for dist, modes in sources.items():
        runs = [widths for mode in modes.values() for widths in mode]
        meeting = [
            mode for mode in modes.values() if not any(widths.missed[INT8] for widths in mode)
        ]
        yes = [widths for mode in meeting for widths in mode]
        quoted = yes or [widths for widths in runs if widths.missed[INT8]]
        quotes = [
            f"{widths.name}: {_reasons(row, widths.bar, texts)}"
            for widths in quoted
            for row in widths.rows
            if row["n_bits"] == INT8
        ]
        reasons = "; ".join(texts.first_few(quotes, SENTENCE_ITEMS))
        yield texts(f"question_{dist}"), texts("yes" if yes else "no", reasons=reasons)


def _is_plain(row: Row) -> bool:
    return is_plain(FormatSpec.from_row(row))


def unmeasured_text(names: Sequence[str], texts: Texts) -> str:
    """Name the tensors that have no verdict, if any."""
    return texts("unmeasured", names=name_list(names, SENTENCE_ITEMS, texts)) if names else ""


def name_list(names: Iterable[str], limit: int, texts: Texts) -> str:
    """List at most `limit` names of tensors, then how many more there are."""
    return ", ".join(texts.first_few([*map(printable, names)], limit))


def _reasons(row: Row, bar: Bar, texts: Texts) -> str:
    return missed_text(row, bar, texts) if bar.missed(row) else _figures(row, bar, texts)


def bar_text(rows: Sequence[Row], texts: Texts) -> str:
    """Name the bar by which rows are judged; where there are several, a line each and whose."""
    bars = row_bars(rows)
    if len(bars) < 2:
        return texts("the_bar", criteria=criteria_text(bars[0], texts))
    sources = group_by(rows, lambda row: row["dist"]).values()
    has_mixed_source = any(len(row_bars(source)) > 1 for source in sources)
    lines = []
    for bar, judged in group_by(rows, Bar.from_row).items():
        names = [row["dist"] for row in judged]
        if has_mixed_source:
            names = [f"{row['dist']} in {FormatSpec.from_row(row).name}" for row in judged]
        listed = name_list(dict.fromkeys(names), SENTENCE_ITEMS, texts)
        lines.append(texts("the_bar_of", names=listed, criteria=criteria_text(bar, texts)))
    return "\n".join(lines)


def criteria_text(bar: Bar, texts: Texts) -> str:
    """List the criteria of a bar with their thresholds."""
    criteria = bar.criteria | bar.answer_criteria
    return "; ".join(criterion_text(key, limit, texts) for key, limit in criteria.items())


def criterion_heads(bars: Sequence[Bar], texts: Texts) -> list[str]:
    """Head a column for each criterion of some bar; several thresholds stand beside each other."""
    heads: dict[str, dict[str, None]] = {}
    for bar in bars:
        for key, limit in bar.criteria.items():
            heads.setdefault(key, {})[criterion_text(key, limit, texts)] = None
    return [" / ".join(limits) for limits in heads.values()]


def criterion_text(key: str, limit: Any, texts: Texts) -> str:
    """Return a criterion of the bar with its threshold."""
    return texts(f"criterion_{key}", threshold=limit_text(key, limit, texts))


def _figures(row: Row, bar: Bar, texts: Texts) -> str:
    parts = [_figure(f"is_{key}", key, row, texts) for key in bar.criteria or ("sqnr_db",)]
    return ", ".join([*parts, *_zeroed(row, texts)])


def missed_text(row: Row, bar: Bar, texts: Texts) -> str:
    """Name the criteria of the bar that a row misses, with its figures."""
    if is_lost_to_float32(row):
        return texts("missed_underflow")
    parts = [_figure(f"missed_{key}", key, row, texts, bar) for key in bar.missed(row)]
    return ", ".join([*parts, *_zeroed(row, texts)])


def _figure(text: str, key: str, row: Row, texts: Texts, bar: Bar | None = None) -> str:
    if key == "top_order":
        return texts(text, k=row["top_k"], rank=rank_text(row, texts) + _set_text(row, texts))
    if key == "sqnr_db" and row[key] is None and not row["max_err"]:
        return texts("is_exact")
    if bar is None:
        return texts(text, value=_value(key, row[key], texts))
    value, limit = row.get(key), bar.criteria[key]
    threshold = limit_text(key, limit, texts)
    if value is None:  # what has no figure and misses the bar has lost everything
        return texts(text, value=texts("none_rel_err"), threshold=threshold)
    return texts(
        text,
        value=_value(key, value, texts, distinguishing_digits(value, limit)),
        threshold=threshold,
    )


def distinguishing_digits(value: float, limit: float) -> int:
    """Count the digits that tell a figure from a threshold that it misses, 3 or more."""
    return next(n for n in range(3, 18) if f"{value:.{n}g}" != f"{limit:.{n}g}")


def _zeroed(row: Row, texts: Texts) -> list[str]:
    return [texts("zeroed", value=percent(row["zeroed"], texts))] if row["zeroed"] else []


def rank_text(row: Row, texts: Texts) -> str:
    """Describe the change of the top k, however ties are broken."""
    if row["top_order_kept"]:
        return texts("rank_in_order")
    parts = [
        texts(f"rank_{kind}", n=n) for kind in ("swapped", "merged") if (n := row[f"top_{kind}"])
    ]
    if row["top_worst"] < 1:
        parts.append(_kept_text(row["top_worst"], row["top_best"], texts))
    return ", ".join(parts)


def _kept_text(worst: float, best: float, texts: Texts) -> str:
    """Describe the share of the top k that stays, under the worst and the best tie-breaking."""
    if worst == best:
        return texts("rank_kept_all_ways", share=percent(worst, texts))
    return texts("rank_kept", worst=f"{100 * worst:.3g}", best=percent(best, texts))


def _set_text(row: Row, texts: Texts) -> str:
    """Say that the top k is still the same set, or that a tie at its edge decides what is in it."""
    if row["top_worst"] == 1:
        return texts("rank_set")
    return texts("rank_edge") if row["top_worst"] < row["top_best"] else ""


def limit_text(key: str, limit: Any, texts: Texts) -> str:
    """Return a threshold just as it was given: rounded, a figure may seem to meet it."""
    if key == "top_order":
        return ""
    unit = LIMIT_UNITS.get(key, "decibels")
    exact = Decimal(repr(limit)) * (100 if unit == "percent" else 1)
    return texts(unit, value=f"{exact.normalize():f}")


def _value(key: str, value: Any, texts: Texts, digits: int = 3) -> str:
    if value is None:
        return texts(f"none_{key}")
    if key == "rel_err":
        return percent(value, texts, digits)
    return texts("decibels", value=f"{value:.{max(digits, 4)}g}")


def grouped_by_reason(
    reasons: Mapping[str, str], texts: Texts, more: str = "and_more"
) -> list[tuple[str, str]]:
    """List each reason once, with whose it is: the first, and how many `more`."""
    groups = group_by(reasons, lambda name: reasons[name])
    return [(" ".join(texts.first_few(names, 1, more)), why) for why, names in groups.items()]


def failure_sentences(reasons: Mapping[str, str], texts: Texts) -> list[str]:
    """Write a sentence for each reason of failure, with the runs that it has."""
    return [texts("failed", who=who, why=why) for who, why in grouped_by_reason(reasons, texts)]


def underflow_sentences(counts: Mapping[str, int], texts: Texts) -> list[str]:
    """Name the tensors that lost values to 0 before they were quantized."""
    lossy = [texts("underflowed", name=label(name), n=n) for name, n in counts.items() if n]
    return texts.first_few(lossy, SENTENCE_TENSORS, "more_underflowed")


def vanished_sentences(rows: Sequence[Row], texts: Texts) -> Iterator[str]:
    """Name the tensors that meet the bar in a format in which most of their values became 0.

    The SQNR of such a tensor is that of its few largest values.
    """
    mostly = np.flatnonzero(column_of(rows, "zeroed").floats() > MOSTLY)
    vanished = [row for row in select_rows(rows, mostly) if not missed_criteria(row)]
    for name, lost in group_by(vanished, lambda row: FormatSpec.from_row(row).name).items():
        names = name_list(dict.fromkeys(row["tensor"] for row in lost), SENTENCE_TENSORS, texts)
        share = _share(max(row["zeroed"] for row in lost))
        yield texts("vanished", n=len(lost), format=printable(name), names=names, share=share)


def skipped_sentences(reasons: Mapping[str, str], texts: Texts) -> list[str]:
    """Give each reason why tensors were left out, with the first and the number of the others."""
    groups = grouped_by_reason(
        {label(name): why for name, why in reasons.items()}, texts, "and_more_tensors"
    )
    skipped = [texts("left_out", name=names, why=why) for names, why in groups]
    return texts.first_few(skipped, SENTENCE_TENSORS, "more_left_out")


def stored_sentences(files: Sequence[StoredRows], texts: Texts) -> Iterator[str]:
    """Yield a sentence a file, and then one for each thing that is wrong with one."""
    for file in files:
        yield texts(
            "stored",
            name=printable(file.name),
            n=len(file.rows),
            met=sum(not Bar.from_row(row).missed(row) for row in file.rows),
            bits=format_number(file.bits_per_value, BITS_SPEC),
            size=format_size(file.n_bytes),
            median=_decibels_or_exact(file.median_db, texts),
            worst=printable(file.rows[0]["tensor"]),
            dtype=file.rows[0]["stored_dtype"],
            least=_decibels_or_exact(quality(file.rows[0]), texts),
            types=", ".join(_stored_types(file, texts)),
        )
    yield from coverage_sentences(files, texts)
    yield from remark_sentences(files, texts)


def coverage_sentences(files: Sequence[StoredRows], texts: Texts) -> Iterator[str]:
    """Yield how much of each original and of each file was compared, and what was not."""
    for file in files:
        row = file.rows[0]
        if row.get("coverage") is None:
            continue
        key = "coverage" if row["unpaired"] is None else "coverage_unpaired"
        yield texts(
            key,
            name=printable(file.name),
            share=_share(row["coverage"]),
            bytes=_share(row["coverage_bytes"]),
            unpaired=printable(row["unpaired"] or ""),
        )


def _share(share: float) -> str:
    """Format a share in percent; what is not all is never 100 %."""
    return f"{floor(1000 * share) / 10:.4g}%"


def remark_sentences(files: Sequence[StoredRows], texts: Texts) -> Iterator[str]:
    """Yield each fault of a file once, with its tensors."""
    for file in files:
        remarks = {row["tensor"]: row["remark"] for row in file.rows if row.get("remark")}
        for who, why in grouped_by_reason(remarks, texts, "and_more_tensors"):
            yield texts("stored_remark", file=printable(file.name), who=printable(who), why=why)


def _stored_types(file: StoredRows, texts: Texts) -> list[str]:
    types = [texts("stored_type", dtype=dtype, n=n) for dtype, n in file.types[:SENTENCE_TYPES]]
    return types + _others("stored_others", file.types[SENTENCE_TYPES:], texts)


def _others(key: str, counts: Sequence[tuple[str, int]], texts: Texts) -> list[str]:
    """Sum up the counts that a sentence has no room for, if there are any."""
    return [texts(key, n=sum(n for _, n in counts))] if counts else []


def _decibels_or_exact(value: float, texts: Texts) -> str:
    return texts("exact") if value == inf else texts("decibels", value=f"{value:{SQNR_SPEC}}")


def storage_sentences(
    choices: Sequence[TensorChoice], levels: Sequence[str], texts: Texts
) -> Iterator[str]:
    """Yield the cheapest format: a sentence a tensor, or of many tensors a sentence a source."""
    if "tensor" not in levels:
        yield from (_cheapest_sentence(choice, texts) for choice in choices)
        return
    sources = group_by(choices, lambda choice: choice.source)
    yield from (_source_sentence(name, tensors, texts) for name, tensors in sources.items())


def _cheapest_sentence(choice: TensorChoice, texts: Texts) -> str:
    if choice.cheapest is None:
        return texts("cheapest_none", name=choice.name)
    bits = format_number(choice.cheapest.bits, BITS_SPEC)
    return texts("cheapest", name=choice.name, format=choice.cheapest.name, bits=bits)


def _source_sentence(name: str, choices: Sequence[TensorChoice], texts: Texts) -> str:
    formats = count_cheapest(choices)
    words = {"name": name, "n": len(choices)}
    if not formats:
        return texts("cheapest_many_none", **words)
    shown = formats[:SENTENCE_FORMATS]
    counts = [texts("cheapest_count", format=spec_name, n=n) for spec_name, n in shown]
    counts += _others("cheapest_others", formats[SENTENCE_FORMATS:], texts)
    n_met = sum(n for _, n in formats)
    return texts("cheapest_many", **words, met=n_met, counts="; ".join(counts))


def percent(share: float | None, texts: Texts, digits: int = 3) -> str:
    """Return a share as a percentage."""
    return NULL if share is None else texts("percent", value=f"{100 * share:.{digits}g}")


def format_widths(tried: Sequence[int], texts: Texts) -> str:
    """List widths, those that follow each other by their ends."""
    steps = {after - before for before, after in pairwise(tried)}
    if len(tried) > 2 and steps == {1}:
        return texts("range", first=tried[0], last=tried[-1])
    return ", ".join(map(str, tried))
