"""The choice that a plan makes, from the table of a sweep and a request.

A request is a budget or the bars of the rows, a runtime, weights and demands on tensors. Formats
are told apart by their `FormatSpec`; names are what people read, and type for ``--keep``.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from quantlab.formats.format import FormatSpec
from quantlab.plans.options import (
    NOISE,
    Assignment,
    Option,
    Original,
    Sensitivity,
    Slot,
    parse_weights,
    read_originals,
    read_sensitivity,
    relative_error,
    slot_name,
)
from quantlab.plans.runtimes import find_runtime
from quantlab.plans.runtimes.runtime import Runtime, table_bits
from quantlab.records.answers import ANSWER_KL, with_answer_kl
from quantlab.records.record import Row
from quantlab.records.table import Aggregated
from quantlab.report.choices import find_choices, tensor_levels
from quantlab.report.sentences import SENTENCE_TENSORS
from quantlab.text import as_list, first_few, format_size, label, matches, near_misses, parse_size

NOISE_FIGURES = {"sqnr_db": "sqnr_db", "out_sqnr_db": "out_sqnr_db", "kl": ANSWER_KL}
SQNR, KL = "sqnr_db", "kl"  # as a request names what noise is computed from
NOT_STORED = (NOISE, "plan")  # modes that are no format for one tensor
# A plan prints its bits per value, which must suffice for the same plan again.
BITS_ROUNDING = Fraction(2.0**-52)


@dataclass(frozen=True)
class Request:
    """One of `bits` per value, a `size` in bytes, a `kl` and the `bar` of each row; the demands.

    `kl` is what the answers of a model are predicted to lose at most, in bits. `by` is the figure
    that noise is computed from, `weights` the alpha of tensors, 1 if not given, and `sensitivity`
    where that comes from if it was measured; `runtime` must have each format; `keep` are pairs of a
    pattern of names and a format, of which the last that matches counts; `same` are patterns whose
    tensors take one format together.
    `dashes` stand before the names of these arguments where a person types them: errors name them.
    """

    bits: float | None = None
    size: int | None = None
    bar: bool = False
    kl: float | None = None
    by: str = SQNR
    weights: Mapping[str, float] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    runtime: Runtime | None = None
    keep: Sequence[tuple[str, str]] = ()
    same: Sequence[str] = ()
    dashes: str = ""

    @classmethod
    def parse(
        cls, options: Mapping[str, Any], names: Collection[str] = (), dashes: str = ""
    ) -> "Request":
        """Check the arguments of `quantlab.plan`; `names` are those of the tensors measured.

        Raises ValueError unless exactly one of `bits`, `size`, `kl` and `bar` is given, and for
        anything that is not what its argument takes.
        """
        bits, size, kl, by = (options.get(key) for key in ("bits", "size", "kl", "by"))
        bar = bool(options.get("bar"))
        if [bits is None, size is None, kl is None, not bar].count(False) != 1:
            names_text = ", ".join(f"{dashes}{name}" for name in ("bits", "size", "kl"))
            raise ValueError(f"a plan takes one of {names_text} and {dashes}bar")
        weights = options.get("weights") or {}
        sensitivity = None
        if isinstance(weights, str | Path) and Path(weights).is_dir():
            sensitivity = read_sensitivity(Path(weights), names)
            weights = sensitivity.alphas
        recipe = options.get("recipe")
        return cls(
            bits=None if bits is None else parse_bits(bits, f"{dashes}bits"),
            size=None if size is None else parse_size(size, f"{dashes}size"),
            bar=bar,
            kl=None if kl is None else _parse_positive(kl, f"{dashes}kl", "KL in bits"),
            by=_check_figure(by, kl is not None, sensitivity is not None, dashes),
            weights=parse_weights(weights, names),
            sensitivity=sensitivity,
            runtime=find_runtime(recipe, f"{dashes}recipe") if recipe else None,
            keep=_check_keep(options.get("keep") or ()),
            same=tuple(as_list(options.get("same"))),
            dashes=dashes,
        )

    def budget(self, n_values: int) -> int:
        """Return the budget in bits for a checkpoint of so many values."""
        if self.bits is None:
            return 8 * (self.size or 0)
        return int(Fraction(self.bits) * n_values * (1 + BITS_ROUNDING))

    def budget_text(self, n_values: int) -> str:
        """Return the budget as it was asked for, and as bits per value or as a size."""
        if self.bits is None:
            bits = self.budget(n_values) / max(n_values, 1)
            return f"{format_size(self.size or 0)} ({bits:.6g} bits per value)"
        return f"{self.bits:.15g} bits per value ({format_size(self.budget(n_values) / 8)})"

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise ValueError, with near misses, if a pattern matches none of the names."""
        keep = [("keep", pattern) for pattern, _ in self.keep]
        for option, pattern in [*keep, *(("same", pattern) for pattern in self.same)]:
            if not any(matches(name, pattern) for name in names):
                raise ValueError(
                    f"{self.dashes}{option} {pattern} matches none of the {len(names)} tensors "
                    f"measured: {near_misses(pattern, list(names))}"
                )


@dataclass(frozen=True)
class Problem:
    """The choice that a plan makes: one option of each slot.

    `tensors` are all of the checkpoint in its order; those in no slot stay as they are stored.
    `refused` are the names of formats that the runtime does not have. `stand_ins` are tensors
    without the figure that noise is computed from, `without_format` those whose values are lost in
    every format. `failures` are runs without figures, `incomplete` those that lack some.
    """

    tensors: Sequence[Original]
    slots: Sequence[Slot]
    refused: Sequence[str] = ()
    stand_ins: Sequence[str] = ()
    without_format: Sequence[str] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    incomplete: Mapping[str, str] = field(default_factory=dict)
    runtime: Runtime | None = None
    by: str = SQNR
    sensitivity: Sensitivity | None = None

    @property
    def minimised(self) -> str:
        """The figure that a plan minimises: with alphas from noise a KL that the SQNR predicts."""
        return KL if self.sensitivity else self.by

    @property
    def n_values(self) -> int:
        """Number of values of the checkpoint."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def untaken(self) -> dict[str, list[str]]:
        """Tensors that the runtime does not quantize, by the reason of `Runtime.refuse_tensor`."""
        groups: dict[str, list[str]] = {}
        for tensor in self.tensors:
            if self.runtime and (reason := self.runtime.refuse_tensor(tensor)):
                groups.setdefault(reason, []).append(tensor.name)
        return groups

    def describe_fixed(self) -> str:
        """Describe the tensors that stay as they are stored under a runtime; empty without one."""
        stored = [slot[0] for slot in self.slots if [option.spec for option in slot] == [None]]
        names = [label(part.tensor.name) for option in stored for part in option.assignments]
        n_tensors = sum(len(slot[0].assignments) for slot in self.slots)
        if not self.runtime or not names:
            return ""
        listed = ", ".join(first_few(names, SENTENCE_TENSORS))
        return (
            f"; {self.runtime.name} quantizes {n_tensors - len(names)} of the {n_tensors} tensors "
            f"measured, not {listed}"
        )


def build_problem(sweep: Aggregated, request: Request) -> Problem:
    """List the options of each tensor; raises ValueError if the request cannot be met.

    Rows of noise, and of another plan, are no option.
    """
    tensors, runtime, by = read_originals(sweep), request.runtime, request.by
    sweep = with_answer_kl(sweep) if by == KL else sweep
    rows = [
        row
        for row in sweep.rows
        if row.get("bits_per_value") is not None and row["mode"] not in NOT_STORED
    ]
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
    if by != SQNR and not any(_has_figure(assignments, by) for assignments in usable):
        raise ValueError(
            f"{sweep.directory} has no {by}: sweep with metrics.imatrix=FILE, the "
            "importance matrix of the checkpoint, or metrics.inputs=FILE, the inputs of its layers"
        )
    slots = [
        [Option.of([Assignment(draft.tensor, draft.tensor.bits)]), *_finite_options(assignments)]
        for (draft, *_), assignments in zip(drafts, usable, strict=True)
    ]
    named = [(slot_name(slot), slot, parts) for slot, parts in zip(slots, usable, strict=True)]
    return Problem(
        tensors=tensors,
        slots=list(_merge_slots([_keep_format(slot, request, refused) for slot in slots], request)),
        refused=refused,
        stand_ins=[name for name, _, parts in named if parts and _lacks_figure(parts, by)],
        without_format=[name for name, slot, parts in named if parts and len(slot) == 1],
        failures=sweep.failures,
        incomplete=sweep.incomplete,
        runtime=runtime,
        by=by,
        sensitivity=request.sensitivity,
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
    figure = NOISE_FIGURES[request.by]
    if request.by != KL and not _has_figure(drafts, request.by):
        figure = SQNR
    alpha = request.weights.get(tensor.name, 1.0)
    return [
        replace(draft, noise=alpha * relative_error(draft.row, figure))
        for draft in drafts
        if draft.row
    ]


def _has_figure(assignments: Iterable[Assignment], figure: str) -> bool:
    key = NOISE_FIGURES[figure]
    return any(part.row and part.row.get(key) is not None for part in assignments)


def _lacks_figure(assignments: Sequence[Assignment], figure: str) -> bool:
    """Test whether the SQNR stands in for a figure."""
    return figure not in (SQNR, KL) and not _has_figure(assignments, figure)


def _finite_options(assignments: Iterable[Assignment]) -> list[Option]:
    return [Option.of([part], part.spec) for part in assignments if math.isfinite(part.noise)]


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
        listed = "; ".join(first_few(refused, SENTENCE_TENSORS))
        return f"{runtime.name} has none of the formats tried ({listed}): sweep {runtime.hint}"
    names = [f"'{label(assignments[0].tensor.name)}'" for assignments in drafts]
    return (
        f"{runtime.name} quantizes none of the {len(drafts)} tensors measured "
        f"({', '.join(first_few(names, SENTENCE_TENSORS))}) in a format "
        f"tried: sweep {runtime.scope}"
    )


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


def parse_bits(value: float | str, option: str = "bits") -> float:
    """Return bits per value; raises ValueError unless they are a number above 0.

    >>> parse_bits("4.64")
    4.64
    """
    return _parse_positive(value, option, "number of bits per value")


def _parse_positive(value: float | str, option: str, quantity: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{option} takes a {quantity} above 0, got {value!r}")
    return number


def _check_figure(by: str | None, of_kl: bool, of_noise: bool, dashes: str) -> str:
    """Return the figure that noise is computed from; raises ValueError where it is another.

    A budget in KL takes that of each format, or that which alphas of noise predict from the SQNR.
    """
    figures = [SQNR] if of_noise else [KL] if of_kl else list(NOISE_FIGURES)
    if by and by not in figures:
        why = f" with {dashes}weights of noise" if of_noise else ""
        raise ValueError(f"{dashes}by takes {' or '.join(figures)}{why}, got {by!r}")
    return by or figures[0]


def _check_keep(keep: Any) -> Sequence[tuple[str, str]]:
    """Return pairs of patterns and formats, from a mapping too; raises ValueError."""
    pairs = tuple(keep.items()) if isinstance(keep, Mapping) else keep
    for pair in pairs:
        if not isinstance(pair, tuple) or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"keep takes a mapping from patterns to formats, got {keep!r}")
    return pairs
