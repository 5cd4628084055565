"""What a person demands of some tensors: ``--keep`` a format, and take ``--same`` one together."""

from collections.abc import Iterator, Mapping, Sequence

from quantlab.plans.options import Option, Slot, option
from quantlab.plans.runtimes.runtime import Runtime
from quantlab.sources.patterns import matches, near_misses
from quantlab.text import label


def parse_keep(text: str, formats: Sequence[str]) -> tuple[str, str]:
    """Return the pattern and the format of ``PATTERN=FORMAT``; both may hold an equals sign.

    It is split where what follows is one of `formats`, else at the last sign.
    """
    splits = [(text[:n], text[n + 1 :]) for n, each in enumerate(text) if each == "="]
    splits = [(pattern, kept) for pattern, kept in splits if pattern and kept]
    if not splits:
        raise ValueError(f"--keep takes PATTERN=FORMAT, as in 'output.weight=q8_0', got {text!r}")
    known = [pair for pair in splits if pair[1].lower() in formats]
    return known[0] if known else splits[-1]


def require_patterns(
    keep: Sequence[tuple[str, str]], same: Sequence[str], names: list[str]
) -> None:
    """Raise ValueError, with near misses, where a pattern matches no tensor."""
    flags = [("--keep", pattern) for pattern, _ in keep]
    for flag, pattern in [*flags, *(("--same", pattern) for pattern in same)]:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(
                f"{flag} {pattern} matches none of the {len(names)} tensors measured: "
                f"{near_misses(pattern, names)}"
            )


def kept(
    slot: Slot,
    keep: Sequence[tuple[str, str]],
    runtime: Runtime | None,
    refused: Sequence[str],
) -> Slot:
    """Return a slot with the options that the last fitting ``--keep`` leaves it."""
    fitting = [pair for pair in keep if matches(slot.name, pair[0])]
    if not fitting:
        return slot
    pattern, wanted = fitting[-1]
    options = tuple(each for each in slot.options if wanted.lower() in option_names(each))
    if options:
        return Slot(slot.tensors, options)
    if runtime and wanted.lower() in [each.lower() for each in refused]:
        raise ValueError(f"--keep {pattern}={wanted}: {runtime.name} has no {wanted}")
    formats = "; ".join(each.format for each in slot.options)
    raise ValueError(
        f"--keep {pattern}={wanted}: '{label(slot.name)}' has no such format, only {formats}"
    )


def option_names(each: Option) -> list[str]:
    """Return what a format may be called, in lower case: its name, or the type that is stored."""
    rows = [part.row for part in each.parts if part.row]
    stored = [str(row["stored_dtype"]) for row in rows if row.get("stored_dtype")]
    return [name.lower() for name in (each.format, *stored)]


def merged(slots: Sequence[Slot], patterns: Sequence[str]) -> Iterator[Slot]:
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
    by_name: list[Mapping[str | None, Option]] = [
        {_shared_name(each): each for each in slot.options} for slot in group
    ]
    shared = [name for name in by_name[0] if all(name in each for each in by_name)]
    if not shared:
        raise ValueError(f"the tensors of --same {pattern} have no format in common")
    tensors = tuple(tensor for slot in group for tensor in slot.tensors)
    parts = ([part for each in by_name for part in each[name].parts] for name in shared)
    return Slot(tensors, tuple(option(*each) for each in parts))


def _shared_name(each: Option) -> str | None:
    """Return the name of a format; to stay as they are is one for tensors of all dtypes."""
    return each.format if each.parts[0].row else None
