"""The difference between two sweeps of one checkpoint: figures that became better or worse."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from quantlab.formats.format import FILE, FormatSpec
from quantlab.records.record import Row
from quantlab.records.table import Aggregated
from quantlab.report.answers import answer_text, find_outputs
from quantlab.report.bar import ANSWER_CRITERIA, Bar, answer_figure, row_bars
from quantlab.report.choices import TensorChoice, find_choices, tensor_levels
from quantlab.report.sentences import failure_sentences, rank_text
from quantlab.report.tables import MAX_ROWS, MEASURED, Table, metric_text
from quantlab.report.terminal import first_rows, render
from quantlab.report.texts import Texts
from quantlab.text import NULL, label

NAME_CHARS, FORMAT_CHARS = 40, 24
MISSING_TENSORS = 5  # that are named


@dataclass(frozen=True)
class TensorChange:
    """One tensor in both sweeps, in one format or, where each side has one, in that."""

    name: str
    before: Row
    after: Row
    formats: tuple[str, str]

    @cached_property
    def bar(self) -> Bar:
        """The bar of the second sweep."""
        return Bar.from_row(self.after)

    @cached_property
    def criteria(self) -> Mapping[str, Any]:
        """The criteria of the bar that are compared."""
        return self.bar.criteria

    @cached_property
    def worse_by(self) -> Mapping[str, float]:
        """The loss in dB by criterion of the bar, negative where a figure became better.

        A relative error counts as 20 log10 of its ratio, an order that was lost as infinite.
        """
        return {key: _worse(key, self.before, self.after) for key in self.criteria}

    @property
    def greatest(self) -> float:
        """The greatest loss of a figure, in dB."""
        return max(self.worse_by.values(), default=0.0)

    def is_worse(self, tolerance: float) -> bool:
        """Test for a figure that became worse by more than a tolerance in dB."""
        return self.greatest > tolerance

    def is_better(self, tolerance: float) -> bool:
        """Test for a figure that became better by more than a tolerance, with none worse."""
        return not self.is_worse(tolerance) and min(self.worse_by.values(), default=0) < -tolerance

    def figure_text(self, key: str, row: Row, texts: Texts) -> str:
        """Format the figure that a criterion compares."""
        return (
            rank_text(row, texts)
            if key == "top_order"
            else metric_text(row, key, MEASURED[key], texts)
        )


@dataclass(frozen=True)
class AnswerChange(TensorChange):
    """One output of a model in both sweeps.

    A KL, a share of first answers that changed and a fall of accuracy count as 10 log10 of their
    ratio, as a KL grows with the power of the noise.
    """

    @cached_property
    def criteria(self) -> Mapping[str, Any]:
        """The criteria of the bar that are compared: those of which there are figures."""
        rows = self.before, self.after
        return {
            key: limit
            for key, limit in self.bar.answer_criteria.items()
            if all(answer_figure(row, key) is not None for row in rows)
        }

    def figure_text(self, key: str, row: Row, texts: Texts) -> str:
        """Format the figure that a criterion compares."""
        return answer_text(row, key, texts)


@dataclass(frozen=True)
class Diff:
    """The changes from one sweep to another, those that became worse first.

    `cheapest` maps a tensor to its cheapest format that meets the bar in each, where there is a
    choice and they differ; None is none. `missing` are tensors that the second sweep does not have,
    `failures` its runs that failed, by the reason; `only` counts the rows of each that have no
    partner.
    """

    changes: list[TensorChange]
    cheapest: Mapping[str, tuple[str | None, str | None]]
    only: tuple[int, int]
    missing: Sequence[str]
    failures: Mapping[str, str]

    def is_worse(self, tolerance: float) -> bool:
        """Test for a figure that is gone or became worse by more than a tolerance in dB."""
        gone = self.missing or self.failures
        return bool(gone) or any(change.is_worse(tolerance) for change in self.changes)


def diff(
    before: Aggregated,
    after: Aggregated,
    answers_before: Sequence[Row] = (),
    answers_after: Sequence[Row] = (),
) -> Diff:
    """Compare two sweeps, and rows of their answers by the criteria of the second that judge any.

    Raises ValueError where they are not of one checkpoint, or have no answers to compare.
    """
    _require_same_tensors(before, after)
    levels = list(dict.fromkeys([*before.levels, *after.levels]))
    has_sources = any(len({row["dist"] for row in sweep.rows}) > 1 for sweep in (before, after))
    choices_before, choices_after = (
        _choices_by_name(sweep, levels, has_sources) for sweep in (before, after)
    )
    common = {
        name: (choice, choices_after[name])
        for name, choice in choices_before.items()
        if name in choices_after
    }
    pairs = [(name, *pair) for name, choices in common.items() for pair in _pairs(*choices)]
    if not pairs:
        raise ValueError(
            f"{before.directory} and {after.directory} have no format in common, and more than one "
            "a tensor: compare sweeps of the same formats, or of one format each"
        )
    changes = [
        TensorChange(name, then, now, (_stored_as(then), _stored_as(now)))
        for name, then, now in pairs
    ]
    changes += _answer_changes(after, answers_before, answers_after)
    changes.sort(key=lambda change: -change.greatest)
    only = len(before.rows) - len(pairs), len(after.rows) - len(pairs)
    missing = [name for name in choices_before if name not in choices_after]
    return Diff(changes, _changed_cheapest(common), only, missing, after.failures)


def _answer_changes(
    after: Aggregated, rows_before: Sequence[Row], rows_after: Sequence[Row]
) -> list[AnswerChange]:
    """Pair answers by output and format; none where no criterion judges them."""
    criteria = dict.fromkeys(key for bar in row_bars(after.rows) for key in bar.answer_criteria)
    if not criteria:
        return []
    results_before, results_after = (_results_by_name(rows) for rows in (rows_before, rows_after))
    changes = [
        AnswerChange(name, row, results_after[name, form], (form, form))
        for (name, form), row in results_before.items()
        if (name, form) in results_after
    ]
    for key in criteria:
        if not any(key in change.criteria for change in changes):
            raise ValueError(
                f"report.bar.{key} compares the answers of a model, and the sweeps have none of "
                f"one output and format: sweep both with model=..., or give report.bar.{key}=null"
            )
    return changes


def _results_by_name(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """Map outputs and formats to their rows."""
    return {
        (output.name, result.name): result.row
        for output in find_outputs(rows)
        for result in output.formats
    }


def _choices_by_name(
    sweep: Aggregated, levels: Sequence[str], has_sources: bool
) -> dict[str, TensorChoice]:
    """Find the choices of a sweep; `levels` are those of both, of which its rows may lack some."""
    absent = dict.fromkeys(tensor_levels(levels))
    choices = {}
    for choice in find_choices([{**absent, **row} for row in sweep.rows], levels):
        is_named = has_sources and choice.dist != choice.tensor
        choices[f"{choice.dist}, {choice.name}" if is_named else choice.name] = choice
    return choices


def _portable_spec(row: Row) -> FormatSpec:
    """Make the spec of a row's format in which a file is known by its name, wherever it is."""
    spec = FormatSpec.from_row(row)
    if not row.get("stored_file"):
        return spec
    settings = dict(spec.settings) | {FILE: row["stored_file"]}
    return replace(spec, settings=tuple(sorted(settings.items())))


def _pairs(before: TensorChoice, after: TensorChoice) -> list[tuple[Row, Row]]:
    """Pair the rows of one tensor that are compared: of equal formats, or each the only one."""
    rows_before, rows_after = (
        {_portable_spec(result.row): result.row for result in choice.formats}
        for choice in (before, after)
    )
    pairs = [(rows_before[spec], rows_after[spec]) for spec in rows_before if spec in rows_after]
    if not pairs and len(rows_before) == len(rows_after) == 1:
        return list(zip(rows_before.values(), rows_after.values(), strict=True))
    return pairs


def _changed_cheapest(
    choices: Mapping[str, tuple[TensorChoice, TensorChoice]],
) -> dict[str, tuple[str | None, str | None]]:
    """Name the cheapest formats that meet the bar of tensors with a choice, where they differ."""
    changed = {}
    for name, pair in choices.items():
        before, after = map(_cheapest_spec, pair)
        if before != after and all(len(choice.formats) > 1 for choice in pair):
            changed[name] = before.name if before else None, after.name if after else None
    return changed


def _cheapest_spec(choice: TensorChoice) -> FormatSpec | None:
    return _portable_spec(choice.cheapest.row) if choice.cheapest else None


def _stored_as(row: Row) -> str:
    """Name the format of a row; of a file the type that it stores the tensor in."""
    if row.get("stored_file"):
        return str(row["stored_dtype"])
    return FormatSpec.from_row(row).name


def _worse(key: str, before: Row, after: Row) -> float:
    if key == "top_order":
        lost = before["top_order_kept"] - after["top_order_kept"]
        return lost * math.inf if lost else 0.0
    of_answers = key in ANSWER_CRITERIA
    loss_before, loss_after = (
        _answer_loss_db(key, row) if of_answers else _loss_db(key, row) for row in (before, after)
    )
    # Of two infinite losses the difference is NaN.
    return 0.0 if loss_before == loss_after else loss_after - loss_before


def _loss_db(key: str, row: Row) -> float:
    """Convert a figure to dB, more of them for a greater error."""
    if row.get(key) is None:
        return math.inf if row["max_err"] else -math.inf
    if key.endswith("sqnr_db"):
        return -float(row[key])
    return 20 * math.log10(row[key]) if row[key] else -math.inf


def _answer_loss_db(key: str, row: Row) -> float:
    """Convert a figure of answers to dB, as the power of the noise; without a loss it is -inf."""
    figure = answer_figure(row, key) or 0.0
    loss = 1 - figure if key == "top1_same" else figure
    return 10 * math.log10(loss) if loss > 0 else -math.inf


def _require_same_tensors(before: Aggregated, after: Aggregated) -> None:
    """Raise ValueError unless the sweeps share tensors, of the same values."""
    hashes_before, hashes_after = (_hashes(sweep.tensors) for sweep in (before, after))
    common = [name for name in hashes_before if name in hashes_after]
    if not common:
        raise ValueError(
            f"{before.directory} and {after.directory} have no tensor in common: a diff is of two "
            "sweeps of one checkpoint"
        )
    for name in common:
        if hashes_before[name].isdisjoint(hashes_after[name]):
            raise ValueError(
                f"'{label(name)}' has other values in {after.directory} than in "
                f"{before.directory}: a diff is of two sweeps of one checkpoint"
            )


def _hashes(tensors: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    hashes: dict[str, set[str]] = {}
    for tensor in tensors:
        if tensor["sha256"]:
            hashes.setdefault(tensor["name"], set()).add(tensor["sha256"])
    return hashes


def require_tolerance(tolerance: float) -> float:
    """Return a tolerance in dB; raises ValueError unless it is a number from 0 up."""
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance takes a number of dB from 0 up, got {tolerance:g}")
    return tolerance


def diff_summary(result: Diff, tolerance: float, texts: Texts) -> str:
    """Return the changes beyond a tolerance in dB as a table, then the counts."""
    worse = [change for change in result.changes if change.is_worse(tolerance)]
    better = [change for change in result.changes if change.is_better(tolerance)]
    better.reverse()
    before, after = result.only
    counts = texts(
        "diff_counts",
        n=len(result.changes),
        worse=len(worse),
        better=len(better),
        tolerance=f"{tolerance:g}",
    )
    sentences = [
        *_cheapest_sentences(result, texts),
        *_missing_sentences(result, texts),
        *([texts("diff_only", before=before, after=after)] if before or after else ()),
        counts,
    ]
    return render(*_table([*worse, *better], texts), "\n".join(sentences))


def _table(changed: Sequence[TensorChange], texts: Texts) -> Iterator[Table | str]:
    if not changed:
        return
    keys = list(dict.fromkeys(key for change in changed for key in change.criteria))
    heads = [texts("storage_tensor"), texts("diff_format"), *(_head(key, texts) for key in keys)]
    rows = [_cells(change, keys, texts) for change in changed]
    yield from first_rows(Table(heads, rows), texts, "diff_more")


def _head(key: str, texts: Texts) -> str:
    return texts("head_top_k") if key == "top_order" else key


def _cells(change: TensorChange, keys: Sequence[str], texts: Texts) -> tuple[str, ...]:
    formats = dict.fromkeys(label(name, FORMAT_CHARS) for name in change.formats)
    return (
        label(change.name, NAME_CHARS),
        " → ".join(formats),
        *(_figures(change, key, texts) if key in change.criteria else NULL for key in keys),
    )


def _figures(change: TensorChange, key: str, texts: Texts) -> str:
    """Return a figure before and after; one that stayed the same once."""
    cells = [change.figure_text(key, row, texts) for row in (change.before, change.after)]
    return " → ".join(dict.fromkeys(cells))


def _cheapest_sentences(result: Diff, texts: Texts) -> list[str]:
    sentences = [
        texts(
            "diff_cheapest",
            name=label(name),
            before=before or texts("diff_none"),
            after=after or texts("diff_none"),
        )
        for name, (before, after) in result.cheapest.items()
    ]
    return texts.first_few(sentences, MAX_ROWS, "diff_more")


def _missing_sentences(result: Diff, texts: Texts) -> Iterator[str]:
    yield from failure_sentences(result.failures, texts)
    if result.missing:
        names = texts.first_few([*map(label, result.missing)], MISSING_TENSORS)
        yield texts("diff_missing", names=", ".join(names))
