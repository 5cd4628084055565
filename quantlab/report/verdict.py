"""The verdict of a sweep: whether each tensor meets the bar, as a check says it and as a file.

A `Check` lists what fails it, a line each, and its last line sums up.
"""

import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.records import disk
from quantlab.records.collection import require_directory
from quantlab.records.manifest import read_artefact, read_artefact_hashes
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

NAME = "verdict.json"
SCHEMA = 1
FORMAT_FIGURES = {  # of the format, and their types
    "mode": "string",
    "n_bits": "Int64",
    "bits_per_value": "float64",
    "sqnr_db": "float64",
    "rel_err": "float64",
}
OUTPUT_FIGURES = ("kl", "top1_same", "accuracy", "accuracy_before", "sqnr_db", "cos_sim")
COVERAGE_KEYS = ("coverage", "coverage_bytes", "unpaired")  # of the row of a stored file
TYPES = {
    "dist": "string",
    "tensor": "string",
    "meets": "boolean",
    "missed": "string",
    "format": "string",
    **FORMAT_FIGURES,
}


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


def verdict(directory: str | Path) -> pd.DataFrame:
    """Load the verdict of a sweep from its verdict.json, one row a tensor.

    `format` is the cheapest that meets the bar, else the nearest, with its mode, `n_bits` and
    `bits_per_value` in bits, `sqnr_db` in dB, and `rel_err` as a share; `missed` are the criteria
    that it does not meet, missing where it meets all. Of a stored file there are the shares of its
    original's values (`coverage`) and of its own bytes (`coverage_bytes`) that were compared. What
    else the sweep varied stands beside the names. Raises ValueError if the directory holds no
    verdict, or one that is not as it was aggregated.
    """
    tensors = read_verdict(Path(directory))["tensors"]
    table = pd.DataFrame(
        [tensor | {"missed": "; ".join(tensor["missed"]) or None} for tensor in tensors],
        columns=list(dict.fromkeys(key for tensor in tensors for key in tensor)) or list(TYPES),
    )
    return table.astype(TYPES)


def verdict_json(check: Check) -> bytes:
    """Write verdict.json: the bars, whether all tensors meet theirs, each of them, failed runs.

    `bar` is null where runs have different bars; each tensor then has its own. Of stored files
    there is the `coverage` of each, of models the `answers`, each output.
    """
    bars, outputs = check.bars, check.outputs
    tensors = [_tensor_json(choice, own_bar=len(bars) > 1) for choice in check.choices]
    coverage = [
        {"file": file.name, **{key: file.rows[0][key] for key in COVERAGE_KEYS}}
        for file in check.files
        if file.rows[0].get("coverage") is not None
    ]
    return disk.to_json(
        {
            "schema": SCHEMA,
            "bar": _bar_json(bars[0]) if len(bars) == 1 else None,
            "meets": check.has_passed,
            **({"coverage": coverage} if coverage else {}),
            **({"answers": [_output_json(output) for output in outputs]} if outputs else {}),
            "tensors": tensors,
            "failures": dict(check.failures),
        }
    )


def read_verdict(directory: Path) -> dict[str, Any]:
    """Read verdict.json of a sweep; raises ValueError where there is none to read."""
    require_directory(directory)
    text = read_artefact(directory, NAME, read_artefact_hashes(directory))
    try:
        content = json.loads(text)
        if isinstance(content["meets"], bool) and isinstance(content["tensors"], list):
            return dict(content)
        raise KeyError("meets")
    except (ValueError, KeyError, TypeError, RecursionError):
        again = f"quantlab aggregate {directory} writes it again"
        raise ValueError(f"{directory / NAME} is no verdict: {again}") from None


def _bar_json(bar: Bar) -> dict[str, float | bool | None]:
    """Return the thresholds as they are written: 30 and 30.0 are one."""
    return {
        key: value if value is None or isinstance(value, bool) else float(value)
        for key, value in bar.thresholds().items()
    }


def _output_json(output: OutputChoice) -> dict[str, Any]:
    """Describe the fewest bits that keep the answers of an output, else the nearest format."""
    best = output.best
    return {
        "dist": output.dist,
        "output": output.output,
        **output.settings,
        "meets": output.meets,
        "missed": list(best.missed),
        "format": best.name,
        "bits_per_value": best.row["bits_per_value"],
        **{key: best.row[key] for key in OUTPUT_FIGURES},
    }


def _tensor_json(choice: TensorChoice, *, own_bar: bool) -> dict[str, Any]:
    best = choice.best
    return {
        "dist": choice.dist,
        "tensor": choice.tensor,
        **choice.settings,
        "meets": choice.meets,
        "missed": list(best.missed),
        "format": best.name,
        **{key: best.row.get(key) for key in FORMAT_FIGURES},
        **{key: best.row[key] for key in COVERAGE_KEYS[:2] if best.row.get(key) is not None},
        **({"bar": _bar_json(Bar.from_row(best.row))} if own_bar else {}),
    }
