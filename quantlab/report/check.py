"""The check of a sweep: what fails it, a line each, and the last line sums up."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property

from quantlab.report.answers import (
    OutputChoice,
    answer_sentences,
    missed_answers_text,
    unjudged_criteria,
)
from quantlab.report.bar import Bar
from quantlab.report.choices import StoredRows, TensorChoice
from quantlab.report.sentences import (
    coverage_sentences,
    criteria_text,
    failure_sentences,
    missed_text,
)
from quantlab.report.texts import Texts


@dataclass(frozen=True)
class Check:
    """A sweep as a check sees it.

    A run that failed fails the check: its tensors have no figures. So do tensors that could not be
    measured, a stored file of whose original too little was compared, and an output whose answers
    no format keeps. A criterion that no answer has the figure of cannot pass either.
    """

    choices: Sequence[TensorChoice]
    bars: Sequence[Bar]
    failures: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[StoredRows] = ()
    incomplete: Mapping[str, str] = field(default_factory=dict)
    unmeasured: Sequence[str] = ()
    outputs: Sequence[OutputChoice] = ()

    @cached_property
    def uncovered(self) -> list[StoredRows]:
        """The stored files of whose originals too little was compared."""
        return [
            file for file in self.files if not Bar.from_row(file.rows[0]).is_covered(file.rows[0])
        ]

    @cached_property
    def missing(self) -> list[TensorChoice]:
        """The tensors that meet the bar in no format."""
        return [choice for choice in self.choices if not choice.meets]

    @cached_property
    def changed(self) -> list[OutputChoice]:
        """The outputs whose answers meet the bar in no format."""
        return [output for output in self.outputs if not output.meets]

    @cached_property
    def unjudged(self) -> list[str]:
        """The criteria of the bar of which no answer has the figure."""
        return list(unjudged_criteria(self.outputs, self.bars))

    @property
    def has_passed(self) -> bool:
        """True if nothing fails the check."""
        gaps = self.failures, self.incomplete, self.unmeasured, self.uncovered, self.unjudged
        return not any((*gaps, self.missing, self.changed))

    def lines(self, texts: Texts) -> list[str]:
        """List what fails the check, or how it passed; the last line sums up."""
        criteria = " / ".join(criteria_text(bar, texts) for bar in self.bars)
        if self.has_passed:
            judged = [output for output in self.outputs if output.is_judged]
            passed = texts("check_passed", n=len(self.choices), criteria=criteria)
            return [
                *coverage_sentences(self.files, texts),
                *answer_sentences(judged, texts),
                passed,
            ]
        return [
            *failure_sentences(self.failures, texts),
            *dict.fromkeys(self.incomplete.values()),
            *coverage_sentences(self.uncovered, texts),
            *(_tensor_text(choice, texts) for choice in self.missing),
            *(_output_text(output, texts) for output in self.changed),
            *(texts("check_unjudged", criterion=key) for key in self.unjudged),
            texts("check_failed", reasons="; ".join(self._sums(criteria, texts))),
        ]

    def _sums(self, criteria: str, texts: Texts) -> list[str]:
        """Count the tensors that miss the bar, if any do, and what else fails the check."""
        counts: dict[str, Sized] = {
            "check_uncovered": self.uncovered,
            "check_answers": self.changed,
            "check_unjudged_sum": self.unjudged,
            "check_failures": self.failures,
            "check_unmeasured": self.unmeasured,
        }
        sums = [texts(key, n=len(items)) for key, items in counts.items() if items]
        words = {"n": len(self.choices), "criteria": criteria}
        if self.missing:
            return [texts("check_missing", **words, missing=len(self.missing)), *sums]
        return [*sums, texts("check_none_missing", **words)] if self.choices else sums


def _tensor_text(choice: TensorChoice, texts: Texts) -> str:
    row = choice.best.row
    missed = missed_text(row, Bar.from_row(row), texts)
    return texts("check_missed", name=choice.name, format=choice.best.name, missed=missed)


def _output_text(output: OutputChoice, texts: Texts) -> str:
    missed = missed_answers_text(output.best, texts)
    return texts("check_missed", name=output.name, format=output.best.name, missed=missed)
