"""The choice that a plan makes, from the table of a sweep and a request.

Formats are told apart by their `FormatSpec`; names are what people read, and type for ``--keep``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantlab.formats.format import FormatSpec
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
from quantlab.report.choices import find_choices, tensor_levels
from quantlab.text import first_few, label, matches

MESSAGE_TENSORS = 3  # names in an error message


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
    tensors, runtime = read_originals(sweep), request.runtime
    rows = [row for row in sweep.rows if row.get("bits_per_value") is not None]
    drafts = _draft_assignments(sweep, rows, tensors)
    request.check_patterns([assignments[0].tensor.name for assignments in drafts])
    specs = dict.fromkeys(map(FormatSpec.from_row, rows))
    if len(specs) < 2:
        raise ValueError(_one_format_message(sweep, tensors, drafts))
    supported = {
        draft.spec
        for assignments in drafts
        for draft in assignments
        if runtime is None or runtime.config(draft) is not None
    }
    refused = [spec.name for spec in specs if spec not in supported]
    usable = [_usable_assignments(assignments, request) for assignments in drafts]
    if runtime and not any(usable):  # its recipe would be empty
        raise ValueError(_no_recipe_message(runtime, drafts, refused if not supported else ()))
    has_figure = [_has_figure(assignments, request.by) for assignments in usable]
    if request.by != FIGURES[0] and not any(has_figure):
        raise ValueError(
            f"{sweep.directory} has no {request.by}: sweep with metrics.imatrix=FILE, the "
            "importance matrix of the checkpoint"
        )
    slots = [
        [Option.of([Assignment(draft.tensor, draft.tensor.bits)]), *_finite_options(assignments)]
        for (draft, *_), assignments in zip(drafts, usable, strict=True)
    ]
    triples = list(zip(slots, usable, has_figure, strict=True))
    return Problem(
        tensors=tensors,
        slots=list(_merge_slots([_keep_format(slot, request, refused) for slot in slots], request)),
        refused=refused,
        untaken=_untaken_tensors(tensors, runtime),
        stand_ins=[slot_name(slot) for slot, parts, has_it in triples if parts and not has_it],
        without_format=[slot_name(slot) for slot, parts, _ in triples if parts and len(slot) == 1],
        failures=sweep.failures,
        runtime=runtime,
    )


def _draft_assignments(
    sweep: Aggregated, rows: Sequence[Row], tensors: Sequence[Original]
) -> list[list[Assignment]]:
    """Assign each measured tensor the formats it was tried in, the cheapest first, without noise.

    Raises ValueError if anything was swept that is no part of a format.
    """
    _, _, *others = tensor_levels(sweep.levels)
    if others:
        raise ValueError(
            f"{sweep.directory} varies {' and '.join(others)}, which is no part of a format: give "
            f"each {others[0]} a hydra.sweep.dir of its own"
        )
    choices = {(choice.dist, choice.tensor): choice for choice in find_choices(rows, sweep.levels)}
    return [
        [
            Assignment(tensor, table_bits(result.row), result=result)
            for result in choices[tensor.key].formats
        ]
        for tensor in tensors
        if tensor.key in choices
    ]


def _usable_assignments(drafts: Sequence[Assignment], request: Request) -> list[Assignment]:
    """Compute size and noise of the assignments of one tensor that the runtime has.

    The SQNR stands in where no row has the figure that was asked for.
    """
    runtime, tensor = request.runtime, drafts[0].tensor
    if runtime:
        is_taken = runtime.refuse_tensor(tensor) is None
        drafts = [
            replace(draft, bits=runtime.stored_bits(draft))
            for draft in drafts
            if is_taken and runtime.config(draft) is not None
        ]
    figure = request.by if _has_figure(drafts, request.by) else FIGURES[0]
    alpha = request.weights.get(tensor.name, 1.0)
    return [
        replace(draft, noise=alpha * relative_error(draft.row, figure))
        for draft in drafts
        if draft.row
    ]


def _has_figure(assignments: Iterable[Assignment], figure: str) -> bool:
    return any(part.row and part.row.get(figure) is not None for part in assignments)


def _finite_options(assignments: Iterable[Assignment]) -> list[Option]:
    return [Option.of([part], part.spec) for part in assignments if math.isfinite(part.noise)]


def _untaken_tensors(tensors: Iterable[Original], runtime: Runtime | None) -> dict[str, list[str]]:
    """Group the tensors that a runtime does not quantize by the reason."""
    groups: dict[str, list[str]] = {}
    for tensor in tensors:
        reason = runtime.refuse_tensor(tensor) if runtime else None
        if reason:
            groups.setdefault(reason, []).append(tensor.name)
    return groups


def _one_format_message(
    sweep: Aggregated, tensors: Sequence[Original], drafts: Sequence[Sequence[Assignment]]
) -> str:
    """Name the format, and the range of sizes that there is with it."""
    name = drafts[0][0].format if drafts else "none"
    n_values = max(sum(tensor.size for tensor in tensors), 1)
    stored = sum(tensor.bits for tensor in tensors)
    savings = [max(draft.tensor.bits - draft.bits, 0) for (draft, *_) in drafts]
    return (
        f"{sweep.directory} has one format, {name}: a plan takes two or more (with this one it has "
        f"from {(stored - sum(savings)) / n_values:.4g} to {stored / n_values:.4g} bits per value)"
    )


def _no_recipe_message(
    runtime: Runtime, drafts: Sequence[Sequence[Assignment]], refused: Sequence[str]
) -> str:
    """Say that a runtime has none of the formats, else that it takes no tensor in any."""
    if refused:
        return (
            f"{runtime.name} has none of the formats tried ({'; '.join(refused)}): "
            f"sweep {runtime.hint}"
        )
    names = [f"'{label(assignments[0].tensor.name)}'" for assignments in drafts]
    return (
        f"{runtime.name} quantizes none of the {len(drafts)} tensors measured "
        f"({', '.join(first_few(names, MESSAGE_TENSORS, 'and {} more'.format))}) in a format "
        f"tried: sweep {runtime.scope}"
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
