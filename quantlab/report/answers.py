"""The answers of a model with its weights stored: which formats keep them, in tables and sentences.

Rows of answers.csv -> `find_outputs` -> an `OutputChoice` an output, with an `OutputResult` a
format. A row is judged by the bar of its run, and by those of its criteria of which it has figures.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quantlab.formats.format import is_format_column
from quantlab.records.record import BAR_PREFIX, Row
from quantlab.records.rows import group_rows
from quantlab.report.bar import Bar, answer_figure
from quantlab.report.choices import group_by, name_with_settings, pareto_front
from quantlab.report.sentences import (
    BITS_SPEC,
    SQNR_SPEC,
    distinguishing_digits,
    limit_text,
    percent,
)
from quantlab.report.tables import Graded, Table, grade_ratio
from quantlab.report.texts import Texts
from quantlab.text import NULL, as_text, format_number, printable

KL_SPEC, COSINE_SPEC, PROBABILITY_SPEC = ".3g", ".6f", ".2f"
FIGURE_SPECS = {"sqnr_db": SQNR_SPEC, "cos_sim": COSINE_SPEC}
FORMAT_CHANGES = 3  # first answers that changed, of one format


@dataclass(frozen=True)
class OutputResult:
    """One output in one format with all weights stored: its row, judged by the bar of its run.

    `alone` are its rows with one tensor stored at a time, where the sweep has them.
    """

    row: Row
    alone: Sequence[Row] = ()

    @property
    def name(self) -> str:
        """The name of the format, to read."""
        return str(self.row["format"])

    @property
    def bits(self) -> float:
        """All that is stored, in bits per value."""
        return float(self.row["bits_per_value"])

    @property
    def bar(self) -> Bar:
        """The bar of the run."""
        return Bar.from_row(self.row)

    @property
    def is_judged(self) -> bool:
        """True if the bar has a criterion of which there is a figure."""
        return any(answer_figure(self.row, key) is not None for key in self.bar.answer_criteria)

    @cached_property
    def missed(self) -> list[str]:
        """The criteria of the bar that the answers do not meet."""
        return self.bar.missed_answers(self.row)

    @property
    def predicted_kl(self) -> float | None:
        """The KL that a plan predicts, else that of each tensor alone, added up; None without."""
        if self.row.get("predicted_kl") is not None or not self.alone:
            return self.row.get("predicted_kl")
        kl = [row["kl"] for row in self.alone]
        return None if None in kl else math.fsum(kl)

    @property
    def loss(self) -> tuple[float, float]:
        """The order of what is lost: the KL in bits, and the SQNR in dB of mere values."""
        kl, sqnr_db = self.row["kl"], self.row["sqnr_db"]
        return (0.0 if kl is None else kl), (-math.inf if sqnr_db is None else -sqnr_db)


@dataclass(frozen=True)
class OutputChoice:
    """The formats in which one output of a model was answered, the fewest bits first.

    `settings` are what else was swept that is no part of a format.
    """

    dist: str
    output: str
    settings: Mapping[str, Any]
    formats: Sequence[OutputResult]

    @property
    def name(self) -> str:
        """The output, and what else was swept."""
        return name_with_settings(self.output, self.settings)

    @property
    def is_judged(self) -> bool:
        """True if some format is judged by a criterion of its bar."""
        return any(result.is_judged for result in self.formats)

    @cached_property
    def best(self) -> OutputResult:
        """The fewest bits that meet the bar, else the nearest; without a bar what loses least."""
        if self.meets and self.is_judged:
            return next(result for result in self.formats if result.is_judged and not result.missed)
        return min(self.formats, key=lambda result: (len(result.missed), *result.loss, result.bits))

    @property
    def meets(self) -> bool:
        """True if some format meets its bar, or there is none to meet."""
        judged = [result for result in self.formats if result.is_judged]
        return not judged or any(not result.missed for result in judged)


def find_outputs(rows: Sequence[Row]) -> list[OutputChoice]:
    """Group rows of answers by output, in their order.

    What else was swept stands in their columns before that of the tensor, the parts of a divided
    source too: each part was answered with its own tensors alone.
    """
    if not rows:
        return []
    whole = [row for row in rows if not row["tensor"]]
    alone = [row for row in rows if row["tensor"]]
    columns = list(rows[0])
    swept = [key for key in columns[: columns.index("tensor")] if not key.startswith(BAR_PREFIX)]
    keys = [key for key in swept if key != "mode" and not is_format_column(key)]
    varied = [key for key in keys if len({as_text(row[key]) for row in whole}) > 1]
    rows_alone = group_by(alone, lambda row: _identify(row, keys))
    choices = []
    for group in group_rows(whole, [*keys, "output"]):
        results = [
            OutputResult(whole[n], rows_alone.get(_identify(whole[n], keys), ())) for n in group
        ]
        results.sort(key=lambda result: (result.bits, result.loss, result.name))
        first = whole[group[0]]
        settings = {key: first[key] for key in varied}
        choices.append(OutputChoice(first["dist"], first["output"], settings, results))
    return choices


def _identify(row: Row, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(as_text(row[key]) for key in (*keys, "output", "format"))


def answer_table(choices: Sequence[OutputChoice], texts: Texts) -> Table:
    """Lay out a row an output and format, the fewest bits first; only figures that exist."""
    results = [(choice, result) for choice in choices for result in choice.formats]
    rows = [result.row for _, result in results]
    has_outputs = len(choices) > 1
    heads = [texts("diff_format"), *([texts("answers_output")] if has_outputs else ())]
    columns = {"bits": "storage_bits"}
    if any(row["kl"] is not None for row in rows):
        columns |= {key: f"answers_{key}" for key in ("kl", "kl_p99", "top1_same", "order")}
    if any(row["accuracy"] is not None for row in rows):
        columns["accuracy_drop"] = "answers_accuracy"
    if any(row["kl"] is None for row in rows):
        columns |= {"sqnr_db": "storage_sqnr", "cos_sim": "answers_cosine"}
    cells = [
        [
            printable(result.name),
            *([choice.name] if has_outputs else ()),
            *(_cell(result, key, texts) for key in columns),
        ]
        for choice, result in results
    ]
    return Table([*heads, *map(texts, columns.values())], cells, (1, 2) if has_outputs else (1,))


def _cell(result: OutputResult, key: str, texts: Texts) -> str:
    text = _figure_text(result.row, key, texts)
    if key not in result.bar.answer_criteria or answer_figure(result.row, key) is None:
        return text
    return Graded(text, "missed" if key in result.missed else "met")


def _figure_text(row: Row, key: str, texts: Texts) -> str:
    """Format a figure of the table; one that does not exist is a dash."""
    if key == "bits":
        return format_number(row["bits_per_value"], BITS_SPEC)
    if key == "top1_same" and row["top1_same"] is not None:
        low, high = f"{100 * row['top1_low']:.3g}", percent(row["top1_high"], texts)
        return texts("answers_interval", share=percent(row["top1_same"], texts), low=low, high=high)
    if key == "order":
        return percent(row["top_same_order"], texts)
    if key == "accuracy_drop" and row["accuracy"] is not None:
        return " → ".join(percent(row[name], texts) for name in ("accuracy_before", "accuracy"))
    if key == "sqnr_db" and row["sqnr_db"] is None and row["cos_sim"] is not None:
        return texts("exact")
    return format_number(row.get(key), FIGURE_SPECS.get(key, KL_SPEC))


def answer_sentences(choices: Sequence[OutputChoice], texts: Texts) -> list[str]:
    """Write for each output how many bits keep its answers, then what makes figures doubtful."""
    return [
        *(_output_sentence(choice, texts) for choice in choices),
        *dict.fromkeys(
            texts("answers_remark", name=choice.name, why=result.row["remark"])
            for choice in choices
            for result in choice.formats
            if result.row["remark"]
        ),
    ]


def _output_sentence(choice: OutputChoice, texts: Texts) -> str:
    """Quote the fewest bits that meet the bar; without a bar both ends, least loss first."""
    words = {"name": choice.name, "n": choice.best.row["rows"]}
    if not choice.is_judged:
        ends = dict.fromkeys([choice.best.row["format"], choice.formats[0].row["format"]])
        quoted = {result.row["format"]: result for result in choice.formats}
        parts = [_quote(quoted[name], texts) for name in ends]
        key = "answers_ends" if len(parts) > 1 else "answers_lost"
        return texts(key, **words, parts="; ".join(parts))
    if choice.meets:
        return texts("answers_meet", **words, part=_quote(choice.best, texts))
    words |= _format_words(choice.best)
    return texts("answers_miss", **words, missed=missed_answers_text(choice.best, texts))


def _quote(result: OutputResult, texts: Texts) -> str:
    """Describe how a format changes the answers."""
    row = result.row
    if row["kl"] is None:
        sqnr = _figure_text(row, "sqnr_db", texts)
        sqnr = sqnr if row["sqnr_db"] is None else texts("decibels", value=sqnr)
        cosine = format_number(row["cos_sim"], COSINE_SPEC)
        return texts("answers_values", **_format_words(result), sqnr=sqnr, cosine=cosine)
    ends = {"share": 1 - row["top1_same"], "low": 1 - row["top1_high"], "high": 1 - row["top1_low"]}
    shares = {key: percent(share, texts, 2) for key, share in ends.items()}
    kl = format_number(row["kl"], KL_SPEC)
    quote = texts("answers_changed", **_format_words(result), **shares, kl=kl)
    if row["accuracy"] is None:
        return quote
    accuracy = _figure_text(row, "accuracy_drop", texts)
    return f"{quote}, {texts('answers_accuracy')} {accuracy}"


def _format_words(result: OutputResult) -> dict[str, str]:
    return {"format": printable(result.name), "bits": format_number(result.bits, BITS_SPEC)}


def answer_text(row: Row, key: str, texts: Texts) -> str:
    """Format the figure of an output that a criterion judges."""
    figure = answer_figure(row, key)
    return format_number(figure, KL_SPEC) if key == "kl" else percent(figure, texts)


def missed_answers_text(result: OutputResult, texts: Texts) -> str:
    """Name the criteria of the bar that an output misses, with its figures."""
    parts = []
    for key in result.missed:
        figure, limit = answer_figure(result.row, key) or 0.0, result.bar.answer_criteria[key]
        digits = distinguishing_digits(figure, limit)
        value = (
            texts("bits_text", value=f"{figure:.{digits}g}")
            if key == "kl"
            else percent(figure, texts, digits)
        )
        parts.append(texts(f"missed_{key}", value=value, threshold=limit_text(key, limit, texts)))
    return ", ".join(parts)


def kl_points(choice: OutputChoice) -> list[tuple[float, float, str]]:
    """List the bits per value, the KL in bits and the name of each format that loses anything."""
    return [
        (result.bits, result.row["kl"], printable(result.name))
        for result in choice.formats
        if result.row["kl"]
    ]


def kl_front(choice: OutputChoice) -> list[tuple[float, float, str]]:
    """Choose the points that no other beats in bits and KL, the fewest bits first."""
    return pareto_front(kl_points(choice), lambda point: point[:2])


def describe_front(choice: OutputChoice, texts: Texts) -> str:
    """Describe the picture of an output in words."""
    points = [
        texts("kl_alt_point", name=name, kl=f"{kl:{KL_SPEC}}", bits=format_number(bits, BITS_SPEC))
        for bits, kl, name in kl_front(choice)
    ]
    return texts("kl_alt", name=choice.name, front="; ".join(points))


def change_table(choices: Sequence[OutputChoice], texts: Texts) -> Table:
    """Lay out the first answers that changed, of each format those that were surest."""
    results = [(choice, result) for choice in choices for result in choice.formats]
    has_outputs = len(choices) > 1
    has_rows = any(result.row["rows"] != result.row["samples"] for _, result in results)
    columns = ["sample", *(["row"] if has_rows else ()), "change", "probability"]
    heads = ["diff_format", *(["answers_output"] if has_outputs else ())]
    heads += [f"answers_{column}" for column in columns]
    cells = [
        [
            printable(result.name),
            *([choice.name] if has_outputs else ()),
            *(_change_cell(change, column) for column in columns),
        ]
        for choice, result in results
        for change in result.row["changes"][:FORMAT_CHANGES]
    ]
    return Table([*map(texts, heads)], cells, (1, 2) if has_outputs else (1,))


def _change_cell(change: Mapping[str, Any], column: str) -> str:
    if column == "change":
        return f"{change['before']} → {change['after']}"
    if column == "probability":
        return f"{change['p_before']:{PROBABILITY_SPEC}} → {change['p_after']:{PROBABILITY_SPEC}}"
    return str(change[column])


def additivity_table(choices: Sequence[OutputChoice], texts: Texts) -> Table:
    """Lay out the KL that was predicted beside that of all tensors at once.

    A plan has its prediction; another format that of each tensor alone, added up.
    """
    heads = [
        texts(key)
        for key in ("diff_format", "answers_predicted", "answers_measured", "answers_ratio")
    ]
    rows = [
        [
            printable(result.name) if len(choices) == 1 else f"{result.name}, {choice.name}",
            *_additivity_cells(result),
        ]
        for choice in choices
        for result in choice.formats
        if result.predicted_kl is not None and result.row["kl"] is not None
    ]
    return Table(heads, rows)


def _additivity_cells(result: OutputResult) -> list[str]:
    predicted, measured = result.predicted_kl, result.row["kl"]
    figures = [f"{kl:{KL_SPEC}}" for kl in (predicted, measured)]
    if not predicted or not measured:
        return [*figures, NULL]
    ratio = measured / predicted
    return [*figures, Graded(f"×{ratio:.2f}", grade_ratio(math.log(ratio)))]


def unjudged_criteria(choices: Sequence[OutputChoice], bars: Iterable[Bar]) -> Iterator[str]:
    """Yield the criteria of bars that judge answers of which no output has the figure."""
    rows = [result.row for choice in choices for result in choice.formats]
    for key in dict.fromkeys(key for bar in bars for key in bar.answer_criteria):
        if all(answer_figure(row, key) is None for row in rows):
            yield key
