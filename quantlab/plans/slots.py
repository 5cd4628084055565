"""What may be chosen for each tensor, from the table of a sweep and what a person asks for."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from quantlab.plans.options import Option, Part, Slot, option, relative_error
from quantlab.plans.originals import Original, originals
from quantlab.plans.runtimes.runtime import Runtime, bits_of
from quantlab.records.aggregated import Aggregated
from quantlab.records.row import Row
from quantlab.report.format_name import format_name
from quantlab.report.tensor_verdict import tensor_levels
from quantlab.sources.patterns import matches, near_misses
from quantlab.sources.tensor import label

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
    as they have no figure of the kind that was asked for.
    """

    tensors: list[Original]
    slots: list[Slot]
    refused: list[str]
    stand_ins: list[str]


def find_slots(found: Aggregated, asked: Request) -> Slots:
    """Return what may be chosen; raises ValueError where it cannot be as asked."""
    tensors, formats = originals(found), _formats(found)
    measured = [each for each in tensors if each.key in formats]
    _require_patterns(asked, [each.name for each in measured])
    refused = _refused(formats.values(), asked.runtime)
    single, stand_ins = [], []
    for tensor in measured:
        usable = _usable(tensor, formats[tensor.key], asked.runtime)
        by = _figure(usable.values(), asked.by)
        stand_ins += [tensor.name] if by != asked.by else []
        slot = Slot((tensor,), tuple(_options(tensor, usable, by, asked)))
        single.append(_kept(slot, asked, refused))
    if asked.by == OUTPUT and len(stand_ins) == len(single):
        raise ValueError(
            f"{found.directory} has no {OUTPUT}: sweep with metrics.imatrix=FILE, the importance "
            "matrix of the checkpoint"
        )
    _require_choice(found, formats.values(), single, asked.runtime, refused)
    return Slots(tensors, list(_merged(single, asked.same)), refused, stand_ins)


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


def _kept(slot: Slot, asked: Request, refused: Sequence[str]) -> Slot:
    """Return a slot with the options that the last fitting of ``--keep`` leaves it."""
    fitting = [pair for pair in asked.keep if matches(slot.name, pair[0])]
    if not fitting:
        return slot
    pattern, wanted = fitting[-1]
    options = tuple(each for each in slot.options if wanted.lower() in _names(each))
    if options:
        return Slot(slot.tensors, options)
    if asked.runtime and wanted.lower() in [each.lower() for each in refused]:
        raise ValueError(f"--keep {pattern}={wanted}: {asked.runtime.name} has no {wanted}")
    names = "; ".join(each.format for each in slot.options)
    raise ValueError(
        f"--keep {pattern}={wanted}: '{label(slot.name)}' has no such format, only {names}"
    )


def _names(each: Option) -> list[str]:
    """Return what a format may be called, in lower case: by its name or the type that is stored."""
    rows = [part.row for part in each.parts if part.row]
    stored = [str(row["stored_dtype"]) for row in rows if row.get("stored_dtype")]
    return [name.lower() for name in (each.format, *stored)]


def _merged(slots: Sequence[Slot], patterns: Sequence[str]) -> Iterator[Slot]:
    """Yield slots, those whose tensors take one format together as one."""
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        fitting = [pattern for pattern in patterns if matches(slot.name, pattern)]
        if len(fitting) > 1:
            raise ValueError(
                f"'{label(slot.name)}' fits --same {fitting[0]} and --same {fitting[1]}: name it "
                "in one"
            )
        groups.setdefault(fitting[0] if fitting else f"\0{len(groups)}", []).append(slot)
    for pattern, group in groups.items():
        yield _merge(group, pattern) if len(group) > 1 else group[0]


def _merge(group: Sequence[Slot], pattern: str) -> Slot:
    by_name = [{_shared_name(each): each for each in slot.options} for slot in group]
    shared = [name for name in by_name[0] if all(name in each for each in by_name)]
    if not shared:
        raise ValueError(f"the tensors of --same {pattern} have no format in common")
    tensors = tuple(tensor for slot in group for tensor in slot.tensors)
    parts = ([part for each in by_name for part in each[name].parts] for name in shared)
    return Slot(tensors, tuple(option(*each) for each in parts))


def _shared_name(each: Option) -> str | None:
    """Return the name of a format; to stay as they are is one for tensors of all dtypes."""
    return each.format if each.parts[0].row else None


def _require_patterns(asked: Request, names: Sequence[str]) -> None:
    flags = [("--keep", pattern) for pattern, _ in asked.keep]
    for flag, pattern in [*flags, *(("--same", pattern) for pattern in asked.same)]:
        if not any(matches(name, pattern) for name in names):
            near = near_misses(pattern, list(names))
            raise ValueError(
                f"{flag} {pattern} matches none of the {len(names)} tensors measured: {near}"
            )


def _require_choice(
    found: Aggregated,
    formats: Iterable[Formats],
    slots: Sequence[Slot],
    runtime: Runtime | None,
    refused: Sequence[str],
) -> None:
    """Raise ValueError where there are not two formats to choose from."""
    tried = list(dict.fromkeys(name for each in formats for name in each))
    if len(tried) < 2:
        n_values = sum(slot.tensors[0].size for slot in slots)
        least, most = (
            sum(end(each.bits for each in slot.options) for slot in slots) / max(n_values, 1)
            for end in (min, max)
        )
        raise ValueError(
            f"{found.directory} has one format, {tried[0] if tried else 'none'}: a plan takes two "
            f"or more (plans of it have {least:.4g} to {most:.4g} bits per value)"
        )
    if runtime and len(refused) == len(tried):
        raise ValueError(
            f"{runtime.name} has none of the formats tried ({'; '.join(tried)}): sweep "
            f"{runtime.hint}"
        )
