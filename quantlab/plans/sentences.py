"""A plan in words and tables, for the terminal and the page alike."""

from collections.abc import Iterator, Sequence

from quantlab.plans.mixture import Plan, Planned, meets
from quantlab.records.older import UNKNOWN
from quantlab.report.numbers import percent
from quantlab.report.sentences import failure_sentences
from quantlab.report.texts import Texts
from quantlab.text import NULL, format_number, format_size, printable

FEW = 5  # tensors that one line names
NAMED = 3  # tensors that a sentence names
BITS, SQNR = ".4g", ".2f"
CLOSE = 1e-6  # a share that is not worth a sentence


def answer(plan: Plan, t: Texts) -> str:
    """Return the plan in one line: of few tensors each with its format."""
    measured = [each for each in plan.tensors if each.measured]
    if len(measured) <= FEW:
        said = [
            t("plan_as", tensor=printable(each.tensor.name), format=each.part.format)
            for each in measured
        ]
        return t("plan_few", each="; ".join(said), **_sums(plan))
    return t("plan_many", n=len(plan.counts), tensors=len(plan.tensors), **_sums(plan))


def _sums(plan: Plan) -> dict[str, str]:
    bits = plan.bits / max(plan.n_values, 1)
    return {"bits": format_number(bits, BITS), "size": format_size(plan.bits / 8)}


def sentences(plan: Plan, t: Texts) -> Iterator[str]:
    """Yield how the plan compares, and what it leaves open."""
    yield from _bar_sentences(plan, t) if plan.bar else _noise_sentences(plan, t)
    if plan.found.failures:
        yield t("failures", n=len(plan.found.failures))
        yield from failure_sentences(plan.found.failures, t)
    unknown = [each for each in plan.tensors if each.tensor.dtype == UNKNOWN]
    if unknown:
        yield t("plan_unknown", n=len(unknown), names=_names(unknown, t))
    left_out = [each for each in plan.tensors if not each.measured and each.part.bits]
    if left_out:
        size = format_size(sum(each.part.bits for each in left_out) / 8)
        yield t("plan_left_out", n=len(left_out), size=size, names=_names(left_out, t))
    if plan.found.refused:
        yield t("plan_refused", formats="; ".join(plan.found.refused))
    if plan.found.stand_ins:
        yield t("plan_stand_ins", n=len(plan.found.stand_ins))


def _noise_sentences(plan: Plan, t: Texts) -> Iterator[str]:
    if not plan.noise:
        lossy = any(each.part.row and each.part.row["max_err"] for each in plan.tensors)
        yield t("plan_weightless" if lossy else "plan_exact")
        return
    yield _uniform_text(plan, t)
    gap = f"{plan.gap:.0%}" if plan.gap > 0.1 else percent(plan.gap, t, 2)
    yield t("plan_gap", gap=gap) if plan.gap > CLOSE else t("plan_least")
    unit, size = ("MB", 8e6) if plan.bits >= 16e6 else ("kB", 8e3)
    share = 1 - plan.bound(plan.bits + size) / plan.noise
    if share > CLOSE:
        yield t("plan_more", unit=unit, share=percent(share, t))


def _uniform_text(plan: Plan, t: Texts) -> str:
    best = plan.best_uniform
    if best is None:
        return t("plan_uniform_none")
    bits = format_number(best.bits / max(plan.n_values, 1), BITS)
    ratio = f"{best.noise / plan.noise:.3g}"
    key = "plan_uniform_same" if ratio == "1" else "plan_uniform"
    return t(key, ratio=ratio, format=best.name, bits=bits)


def _bar_sentences(plan: Plan, t: Texts) -> Iterator[str]:
    if plan.unmet:
        names = ", ".join(map(printable, plan.unmet[:NAMED]))
        yield t("plan_unmet", n=len(plan.unmet), names=names + _more(plan.unmet, t))
    missing = [each for each in plan.tensors if plan.bar and not meets(each.part, plan.bar)]
    if missing:
        yield t("plan_kept", n=len(missing), names=_names(missing, t))
    uniform = plan.cheapest_uniform
    if uniform is None:
        yield t("plan_bar_uniform_none")
        return
    bits = format_number(uniform.bits / max(plan.n_values, 1), BITS)
    yield t("plan_bar_uniform", format=uniform.name, bits=bits)


def _names(planned: Sequence[Planned], t: Texts) -> str:
    names = [printable(each.tensor.name) for each in planned]
    return ", ".join(names[:NAMED]) + _more(names, t)


def _more(names: Sequence[str], t: Texts) -> str:
    more = len(names) - NAMED
    return f" {t('more_reasons', n=more)}" if more > 0 else ""


def count_heads(t: Texts) -> list[str]:
    """Return what stands over the columns of `count_rows`."""
    return [t(f"plan_{key}") for key in ("format", "tensors", "bits", "size", "noise")]


def count_rows(plan: Plan, t: Texts) -> list[tuple[str, ...]]:
    """Return for each format how many tensors take it, what they cost and add to the noise."""
    return [(name, *_count_cells(planned, plan, t)) for name, planned in plan.counts]


def _count_cells(planned: Sequence[Planned], plan: Plan, t: Texts) -> tuple[str, ...]:
    bits = sum(each.part.bits for each in planned)
    n_values = sum(each.tensor.size for each in planned)
    return (
        str(len(planned)),
        format_number(bits / max(n_values, 1), BITS),
        format_size(bits / 8),
        _share(sum(each.part.noise for each in planned), plan, t),
    )


def _share(noise: float, plan: Plan, t: Texts) -> str:
    return percent(noise / plan.noise if plan.noise else 0.0, t)


def tensor_heads(t: Texts) -> list[str]:
    """Return what stands over the columns of `tensor_rows`."""
    keys = ("tensor", "format", "bits", "size", "sqnr", "noise", "reason")
    return [t(f"plan_{key}") for key in keys]


def tensor_rows(plan: Plan, t: Texts) -> list[tuple[str, ...]]:
    """Return the tensors of a plan in the order of the checkpoint."""
    return [_tensor_row(each, plan, t) for each in plan.tensors]


def _tensor_row(each: Planned, plan: Plan, t: Texts) -> tuple[str, ...]:
    sqnr_db = each.part.row["sqnr_db"] if each.part.row else None
    return (
        printable(each.tensor.name),
        each.part.format,
        format_number(each.bits_per_value, BITS),
        format_size(each.part.bits / 8),
        t("exact") if sqnr_db is None else format_number(sqnr_db, SQNR),
        _share(each.part.noise, plan, t),
        each.tensor.reason or NULL,
    )
