"""What may be chosen for each tensor, from the table of a sweep and what a person asks for."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from quantlab.plans.constraints import kept, merged, require_patterns
from quantlab.plans.options import Option, Part, Slot, option, relative_error
from quantlab.plans.originals import Original, originals
from quantlab.plans.runtimes.runtime import Runtime, bits_of
from quantlab.records.record import Row
from quantlab.records.table import Aggregated
from quantlab.report.format_name import format_name
from quantlab.report.tensor_verdict import tensor_levels

SQNR, OUTPUT = "sqnr_db", "out_sqnr_db"
Formats = Mapping[str, Row]  # the rows of one tensor by the names of their formats


@dataclass(frozen=True)
class Request:
    """What is asked of a plan beside its budget.

    `by` is the figure whose noise counts, `weights` the alpha of tensors, 1 where not given;
    `runtime` is what must have each format; `keep` are pairs of a pattern of names and a format, of
    which the last that matches counts; `same` are patterns whose tensors take one format together.
    """

    by: str = SQNR
    weights: Mapping[str, float] = field(default_factory=dict)
    runtime: Runtime | None = None
    keep: Sequence[tuple[str, str]] = ()
    same: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise ValueError where noise is by no figure there is."""
        if self.by not in (SQNR, OUTPUT):
            raise ValueError(f"--by takes {SQNR} or {OUTPUT}, got {self.by!r}")


@dataclass(frozen=True)
class Slots:
    """The choice there is.

    `tensors` are all of the checkpoint in its order; those in no slot stay as they are. `refused`
    are the formats that the runtime has not; `stand_ins` the tensors for which the SQNR stands in,
    as they have no figure of the kind that was asked for; `lost` are those of which nothing
    is left in any format, and `failures` are runs without figures.
    """

    tensors: list[Original]
    slots: list[Slot]
    refused: list[str]
    stand_ins: list[str]
    lost: Sequence[str] = ()
    failures: Mapping[str, str] = field(default_factory=dict)


def find_slots(found: Aggregated, asked: Request) -> Slots:
    """Return what may be chosen; raises ValueError where it cannot be as asked."""
    tensors, formats = originals(found), _formats(found)
    measured = [each for each in tensors if each.key in formats]
    require_patterns(asked.keep, asked.same, [each.name for each in measured])
    refused = _refused(formats.values(), asked.runtime)
    single, stand_ins, lost, has_figure = [], [], [], False
    for tensor in measured:
        usable = _usable(tensor, formats[tensor.key], asked.runtime)
        by = _figure(usable.values(), asked.by)
        stand_ins += [tensor.name] if by != asked.by else []
        has_figure |= bool(usable) and by == asked.by
        slot = Slot((tensor,), tuple(_options(tensor, usable, by, asked)))
        lost += [tensor.name] if usable and len(slot.options) == 1 else []
        single.append(kept(slot, asked.keep, asked.runtime, refused))
    if asked.by == OUTPUT and not has_figure:
        raise ValueError(
            f"{found.directory} has no {OUTPUT}: sweep with metrics.imatrix=FILE, the importance "
            "matrix of the checkpoint"
        )
    _require_choice(found, formats.values(), tensors, single)
    _require_known(formats.values(), asked.runtime, refused)
    slots = list(merged(single, asked.same))
    return Slots(tensors, slots, refused, stand_ins, lost, found.failures)


def _formats(found: Aggregated) -> Mapping[tuple[str, str], Formats]:
    """Return the rows of each tensor by their formats, by the tensor's source and name."""
    others = tensor_levels(found.levels)[2:]
    if others:
        raise ValueError(
            f"{found.directory} varies {' and '.join(others)}, which is no part of a format: a "
            "plan takes a sweep of formats alone"
        )
    formats: dict[tuple[str, str], dict[str, Row]] = {}
    for row in found.rows:
        if row.get("bits_per_value") is not None:
            of_tensor = formats.setdefault((row["dist"], row["tensor"]), {})
            of_tensor[format_name(row, found.levels)] = row
    return formats


def _refused(formats: Iterable[Formats], runtime: Runtime | None) -> list[str]:
    """Return the formats of which the runtime has none, each once."""
    if not runtime:
        return []
    has: dict[str, bool] = {}
    for each in formats:
        for name, row in each.items():
            has[name] = has.get(name, False) or runtime.settings(row) is not None
    return [name for name, known in has.items() if not known]


def _usable(tensor: Original, formats: Formats, runtime: Runtime | None) -> Formats:
    if not runtime:
        return formats
    if not runtime.takes(tensor):
        return {}
    return {name: row for name, row in formats.items() if runtime.settings(row) is not None}


def _figure(rows: Iterable[Row], by: str) -> str:
    """Return the figure whose noise counts: the SQNR stands in where no row has another."""
    rows = list(rows)
    return by if not rows or any(row.get(by) is not None for row in rows) else SQNR


def _options(tensor: Original, formats: Formats, by: str, asked: Request) -> Iterator[Option]:
    alpha = asked.weights.get(tensor.name, 1.0)
    size = asked.runtime.bits if asked.runtime else bits_of
    yield option(Part(tensor.bits, 0.0, tensor.dtype, None))
    for name, row in formats.items():
        error = relative_error(row, by)
        if math.isfinite(error):
            yield option(Part(size(row), alpha * error, name, row))


def _require_choice(
    found: Aggregated,
    formats: Iterable[Formats],
    tensors: Sequence[Original],
    slots: Sequence[Slot],
) -> None:
    """Raise ValueError, with the range there is, where there are not two formats."""
    tried = _names(formats)
    if len(tried) > 1:
        return
    n_values = max(sum(each.size for each in tensors), 1)
    fixed = sum(each.bits for each in tensors) - sum(slot.tensors[0].bits for slot in slots)
    least, most = (
        (fixed + sum(end(each.bits for each in slot.options) for slot in slots)) / n_values
        for end in (min, max)
    )
    raise ValueError(
        f"{found.directory} has one format, {tried[0] if tried else 'none'}: a plan takes two or "
        f"more (with this one it has from {least:.4g} to {most:.4g} bits per value)"
    )


def _require_known(
    formats: Iterable[Formats], runtime: Runtime | None, refused: Sequence[str]
) -> None:
    """Raise ValueError where a runtime has none of the formats."""
    tried = _names(formats)
    if runtime and len(refused) == len(tried):
        raise ValueError(
            f"{runtime.name} has none of the formats tried ({'; '.join(tried)}): sweep "
            f"{runtime.hint}"
        )


def _names(formats: Iterable[Formats]) -> list[str]:
    return list(dict.fromkeys(name for each in formats for name in each))
