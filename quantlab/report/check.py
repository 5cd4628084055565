"""Whether a sweep meets the bar, as a pipeline asks it."""

from collections.abc import Iterator

from quantlab.records.table import Aggregated
from quantlab.report.bar import Bar
from quantlab.report.sentences import criterion_text, failure_sentences, missed_text
from quantlab.report.tensor_verdict import TensorVerdict, tensor_verdicts
from quantlab.report.texts import Texts


def check(found: Aggregated, bar: Bar, t: Texts) -> tuple[bool, list[str]]:
    """Return whether every tensor meets the bar in some format, and what to print.

    A run that failed fails the check: its tensors have no figures. The last line sums up.
    """
    judged = tensor_verdicts(found.rows, found.levels, bar)
    failing = [each for each in judged if not each.meets]
    criteria = "; ".join(criterion_text(key, asked, t) for key, asked in bar.criteria.items())
    lines = [*failure_sentences(found.failures, t), *_misses(failing, bar, t)]
    words = {"n": len(judged), "criteria": criteria}
    if failing or found.failures:
        failed = [t("failures", n=len(found.failures))] if found.failures else []
        text = t("check_failed", **words, missing=len(failing))
        return False, [*lines, "; ".join([text, *failed])]
    return True, [t("check_passed", **words)]


def _misses(failing: list[TensorVerdict], bar: Bar, t: Texts) -> Iterator[str]:
    for each in failing:
        why = missed_text(each.row, bar, t)
        yield t("check_missed", name=each.name, format=each.format, missed=why)
