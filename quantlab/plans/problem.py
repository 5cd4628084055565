"""The choice that a plan makes, from the table of a sweep and a request.

Formats are told apart by their `FormatSpec`; names are what people read, and type for ``--keep``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantlab.formats.format import FormatSpec, is_format_column
from quantlab.plans.options import (
    Assignment,
    Option,
    Original,
    Slot,
    read_originals,
    relative_error,
    slot_name,
)
from quantlab.plans.request import FIGURES, Request
from quantlab.plans.runtimes.runtime import Runtime, table_bits
from quantlab.records.record import Row
from quantlab.records.table import Aggregated
from quantlab.sources.patterns import matches
from quantlab.text import first_few, label

MESSAGE_TENSORS = 3  # names in an error message
FACTORS = ("dist", "tensor")  # levels of a table beside those of a format


@dataclass(frozen=True)
class Problem:
    """The choice that a plan makes: one option of each slot.

    `tensors` are all of the checkpoint in its order; those in no slot stay as they are stored.
    `refused` are the names of formats that the runtime does not have, `untaken` the tensors that
    it does not quantize, by the reason (a key of `Runtime.refuse_tensor`). `stand_ins` are tensors
    without the figure that noise is computed from, `without_format` those whose values are lost in
    every format. `failures` are runs without figures.
    """

    tensors: Sequence[Original]
    slots: Sequence[Slot]
    refused: Sequence[str] = ()
    untaken: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stand_ins: Sequence[str] = ()
    without_format: Sequence[str] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    runtime: Runtime | None = None

    @property
    def n_values(self) -> int:
        """Number of values of the checkpoint."""
        return sum(tensor.size for tensor in self.tensors)


def build_problem(sweep: Aggregated, request: Request) -> Problem:
    """List the options of each tensor; raises ValueError if the request cannot be met."""
    tensors, tried = read_originals(sweep), _measured_formats(sweep)
    measured = [tensor for tensor in tensors if tensor.key in tried]
    request.check_patterns([tensor.name for tensor in measured])
    drafts = [_draft(tensor, tried[tensor.key]) for tensor in measured]
    _require_two_formats(sweep, tensors, drafts)
    refused = _refused_formats(drafts, request.runtime)
    usable = [_usable(assignments, request) for assignments in drafts]
    _require_runtime_formats(request.runtime, drafts, usable)
    _require_figure(sweep, request, usable)
    slots = [
        [Option.of([Assignment(tensor, tensor.bits)]), *_options(assignments)]
        for tensor, assignments in zip(measured, usable, strict=True)
    ]
    return Problem(
        tensors=tensors,
        slots=list(_merge_slots([_keep_format(slot, request, refused) for slot in slots], request)),
        refused=refused,
        untaken=_untaken_tensors(tensors, request.runtime),
        stand_ins=[
            assignments[0].tensor.name
            for assignments in usable
            if assignments and not _has_figure(assignments, request.by)
        ],
        without_format=[
            slot_name(slot)
            for slot, assignments in zip(slots, usable, strict=True)
            if assignments and len(slot) == 1
        ],
        failures=sweep.failures,
        runtime=request.runtime,
    )


def _measured_formats(sweep: Aggregated) -> Mapping[tuple[str, str], Mapping[FormatSpec, Row]]:
    """Return the rows of each tensor by their formats, by the tensor's source and name."""
    others = [
        level for level in sweep.levels if level not in FACTORS and not is_format_column(level)
    ]
    if others:
        raise ValueError(
            f"{sweep.directory} varies {' and '.join(others)}, which is no part of a format: give "
            f"each {others[0]} a hydra.sweep.dir of its own"
        )
    tried: dict[tuple[str, str], dict[FormatSpec, Row]] = {}
    for row in sweep.rows:
        if row.get("bits_per_value") is not None:
            tried.setdefault((row["dist"], row["tensor"]), {})[FormatSpec.from_row(row)] = row
    return tried


def _draft(tensor: Original, rows: Mapping[FormatSpec, Row]) -> list[Assignment]:
    """Assign a tensor each format that was tried, without noise and of the size in the table."""
    return [Assignment(tensor, table_bits(row), 0.0, spec, row) for spec, row in rows.items()]


def _usable(drafts: Sequence[Assignment], request: Request) -> list[Assignment]:
    """Compute size and noise of the assignments that the runtime has.

    The SQNR stands in where no row has the figure that was asked for.
    """
    runtime = request.runtime
    if runtime:
        takes = not any(runtime.refuse_tensor(draft.tensor) for draft in drafts[:1])
        drafts = [
            replace(draft, bits=runtime.stored_bits(draft))
            for draft in drafts
            if takes and runtime.config(draft) is not None
        ]
    figure = request.by if _has_figure(drafts, request.by) else FIGURES[0]
    return [
        replace(
            draft,
            noise=request.weights.get(draft.tensor.name, 1.0) * relative_error(draft.row, figure),
        )
        for draft in drafts
        if draft.row
    ]


def _has_figure(assignments: Iterable[Assignment], figure: str) -> bool:
    return any(
        assignment.row and assignment.row.get(figure) is not None for assignment in assignments
    )


def _options(assignments: Iterable[Assignment]) -> Iterator[Option]:
    """Yield an option for each assignment with a finite noise."""
    for assignment in assignments:
        if math.isfinite(assignment.noise):
            yield Option.of([assignment], assignment.spec)


def _refused_formats(drafts: Iterable[Sequence[Assignment]], runtime: Runtime | None) -> list[str]:
    """Name the formats that the runtime has for no tensor."""
    supported: dict[FormatSpec | None, bool] = {}
    for draft in (draft for assignments in drafts for draft in assignments):
        has_format = runtime is None or runtime.config(draft) is not None
        supported[draft.spec] = supported.get(draft.spec, False) or has_format
    return [spec.name for spec, is_supported in supported.items() if spec and not is_supported]


def _untaken_tensors(tensors: Iterable[Original], runtime: Runtime | None) -> dict[str, list[str]]:
    """Group the tensors that a runtime does not quantize by the reason."""
    groups: dict[str, list[str]] = {}
    for tensor in tensors:
        reason = runtime.refuse_tensor(tensor) if runtime else None
        if reason:
            groups.setdefault(reason, []).append(tensor.name)
    return groups


def _require_two_formats(
    sweep: Aggregated, tensors: Sequence[Original], drafts: Sequence[Sequence[Assignment]]
) -> None:
    """Raise ValueError, with the range of sizes, if fewer than two formats were tried."""
    specs = {draft.spec for assignments in drafts for draft in assignments}
    if len(specs) > 1:
        return
    name = next((spec.name for spec in specs if spec), "none")
    n_values = max(sum(tensor.size for tensor in tensors), 1)
    stored = sum(tensor.bits for tensor in tensors)
    saved = [
        [0, *(draft.tensor.bits - draft.bits for draft in assignments)] for assignments in drafts
    ]
    least, most = ((stored - sum(map(end, saved))) / n_values for end in (max, min))
    raise ValueError(
        f"{sweep.directory} has one format, {name}: a plan takes two or "
        f"more (with this one it has from {least:.4g} to {most:.4g} bits per value)"
    )


def _require_runtime_formats(
    runtime: Runtime | None,
    drafts: Sequence[Sequence[Assignment]],
    usable: Sequence[Sequence[Assignment]],
) -> None:
    """Raise ValueError if no tensor has a format of the runtime: its recipe would be empty."""
    if runtime is None or any(usable):
        return
    if all(runtime.config(draft) is None for assignments in drafts for draft in assignments):
        names = dict.fromkeys(draft.format for assignments in drafts for draft in assignments)
        raise ValueError(
            f"{runtime.name} has none of the formats tried ({'; '.join(names)}): "
            f"sweep {runtime.hint}"
        )
    tensors = first_few(
        [f"'{label(assignments[0].tensor.name)}'" for assignments in drafts],
        MESSAGE_TENSORS,
        "and {} more".format,
    )
    raise ValueError(
        f"{runtime.name} quantizes none of the {len(drafts)} tensors measured "
        f"({', '.join(tensors)}) in a format tried: sweep {runtime.scope}"
    )


def _require_figure(
    sweep: Aggregated, request: Request, usable: Sequence[Sequence[Assignment]]
) -> None:
    """Raise ValueError if no tensor has the figure that noise is computed from."""
    has_figure = any(_has_figure(assignments, request.by) for assignments in usable)
    if request.by != FIGURES[0] and not has_figure:
        raise ValueError(
            f"{sweep.directory} has no {request.by}: sweep with metrics.imatrix=FILE, the "
            "importance matrix of the checkpoint"
        )


def format_names(sweep: Aggregated) -> set[str]:
    """Return the names of formats in lower case, dtypes of tensors that stay included."""
    names = {str(row["format"]) for row in sweep.rows} | {str(row["dtype"]) for row in sweep.rows}
    stored = {str(row["stored_dtype"]) for row in sweep.rows if row.get("stored_dtype")}
    return {name.lower() for name in names | stored}


def _option_names(option: Option) -> list[str]:
    """Return the names of an option in lower case: its format, and the type that is stored."""
    rows = [assignment.row for assignment in option.assignments if assignment.row]
    stored = [str(row["stored_dtype"]) for row in rows if row.get("stored_dtype")]
    return [name.lower() for name in (option.format, *stored)]


def _keep_format(slot: Slot, request: Request, refused: Sequence[str]) -> Slot:
    """Return the options that the last matching pattern of ``keep`` leaves."""
    demands = [pair for pair in request.keep if matches(slot_name(slot), pair[0])]
    if not demands:
        return slot
    pattern, name = demands[-1]
    options = [option for option in slot if name.lower() in _option_names(option)]
    if options:
        return options
    demand = f"{request.dashes}keep {pattern}={name}"
    if request.runtime and name.lower() in [other.lower() for other in refused]:
        raise ValueError(f"{demand}: {request.runtime.name} has no {name}")
    formats = "; ".join(dict.fromkeys(option.format for option in slot))
    raise ValueError(f"{demand}: '{label(slot_name(slot))}' has no such format, only {formats}")


def _merge_slots(slots: Iterable[Slot], request: Request) -> Iterator[Slot]:
    """Yield slots, with one for all tensors that match a pattern of ``same``."""
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        patterns = [pattern for pattern in request.same if matches(slot_name(slot), pattern)]
        if len(patterns) > 1:
            first, second = (f"{request.dashes}same {pattern}" for pattern in patterns[:2])
            raise ValueError(
                f"'{label(slot_name(slot))}' fits {first} and {second}: name it in one"
            )
        groups.setdefault(patterns[0] if patterns else f"\0{len(groups)}", []).append(slot)
    for pattern, group in groups.items():
        yield _merge_group(group, f"{request.dashes}same {pattern}") if group[1:] else group[0]


def _merge_group(group: Sequence[Slot], demand: str) -> Slot:
    """Return the options of tensors that take one format; to stay as stored is one for all."""
    by_spec = [{option.spec: option for option in slot} for slot in group]
    shared = [spec for spec in by_spec[0] if all(spec in options for options in by_spec)]
    if not shared:
        raise ValueError(f"the tensors of {demand} have no format in common")
    return [
        Option.of([part for options in by_spec for part in options[spec].assignments], spec)
        for spec in shared
    ]
