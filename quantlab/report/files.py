"""Files of tensors: what one is and has lost, in about ten lines, and two tensor by tensor.

The noise between two files is that of the second beside the first, whatever each stores: the SQNR
of a tensor is 10 log10(sum x^2 / sum (x - y)^2) over its values x in the first and y in the second.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import median
from typing import Any

from tqdm import tqdm

from quantlab.report.choices import group_by
from quantlab.report.tables import MAX_ROWS, Table
from quantlab.report.terminal import lay_out, render
from quantlab.sources.kinds.decoding import StoredTensor
from quantlab.sources.pairing import Bound, StoredFile
from quantlab.sources.readers import DecodedFile, open_stored, without_values
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure
from quantlab.stats.parallel import usable_cores
from quantlab.text import as_setting, count, first_few, format_number, format_size, label, printable

NAMED_TENSORS = 5  # of a list, in a sentence
NAME_CHARS, TYPE_CHARS = 40, 24
HEADS = ("tensor", "stored as", "bits per value", "values", "SQNR, dB")
MAX_TYPES = 6  # that have a line of their own
WORST_TENSORS = 3
SUMMARY_HEADS = ("stored as", "tensors", "of the values", "bits per value")
LOSS_HEADS = ("SQNR, dB: median", "least")


@dataclass(frozen=True)
class StoredPair:
    """A tensor in two files: its types, bits per value, and what the second changes.

    `sqnr_db` is None where the values are equal, or where there is no signal and `max_err` is above
    0. `zeroed` is the share of values that are 0 in the second file alone.
    """

    name: str
    n_elements: int
    dtypes: tuple[str, str]
    bits_per_value: tuple[float, float]
    sqnr_db: float | None
    max_err: float
    zeroed: float
    remark: str | None

    @property
    def is_equal(self) -> bool:
        """True where all values are equal."""
        return not self.max_err


@dataclass(frozen=True)
class FileDiff:
    """Two files, as the user calls them; `pairs` are worst first.

    `failed` are tensors that cannot be compared, by the reason; `only` those that one file has
    alone. `n_bytes` are of all tensors of real numbers, `formats` those of ``conf/dist/file``.
    """

    paths: tuple[str, str]
    pairs: list[StoredPair]
    failed: dict[str, str]
    only: tuple[list[str], list[str]]
    n_bytes: tuple[int, int]
    formats: tuple[str, str]

    @property
    def is_equal(self) -> bool:
        """True where both files hold the same tensors, with the same values."""
        return self.is_whole and all(pair.is_equal for pair in self.pairs)

    @property
    def is_whole(self) -> bool:
        """True where each tensor of one file was compared with one of the other."""
        return not (self.failed or any(self.only))

    def to_json(self) -> str:
        """Return all of it as JSON, numbers unrounded."""
        return json.dumps({**asdict(self), "equal": self.is_equal}, indent=2)


def diff_files(before: str, after: str) -> FileDiff:
    """Compare two files of one model; raises ValueError where no tensor pairs."""
    original, stored = DecodedFile(before, select="all"), open_stored(after)
    bound = Bound(stored, original)
    pairs, failed = [], {}
    tensors = {tensor.name: tensor for tensor in original.tensors()}
    for name, tensor in tqdm(tensors.items(), unit="tensor", delay=1, disable=None, leave=False):
        if name in bound.pairs:
            try:
                pairs.append(_compare(tensor, bound, original.stored))
            except ValueError as reason:
                failed[name] = str(reason)
    if not pairs and not failed:
        raise ValueError(f"{before} and {after} have no tensor in common: name files of one model")
    unpaired = [name for name in original.stored.tensors if name not in bound.pairs]
    pairs.sort(key=lambda pair: (pair.is_equal, pair.sqnr_db or 0.0))
    n_bytes = tuple(
        sum(tensor.bits for tensor in file.tensors.values()) // 8
        for file in (original.stored, stored)
    )
    only = unpaired, [*bound.unmatched()]
    formats = original.stored.format, stored.format
    return FileDiff((before, after), pairs, failed, only, (n_bytes[0], n_bytes[1]), formats)


def _compare(tensor: Tensor, bound: Bound, original: StoredFile) -> StoredPair:
    opened = bound.open(tensor)
    result = measure(tensor, opened, threads=usable_cores())
    before, measured = original.tensors[tensor.name], result["measured"]
    return StoredPair(
        tensor.name,
        tensor.size,
        (before.dtype, opened.dtype),
        (before.bits / tensor.size, opened.bits / tensor.size),
        measured["sqnr_db"],
        measured["max_err"],
        measured["zeroed"] or 0.0,
        opened.remark,
    )


def file_diff_summary(diff: FileDiff, *, whole: bool = False) -> str:
    """Return one sentence where the values are equal, else a table and what it comes to.

    With `whole` no name is cut and no line broken.
    """
    if diff.is_equal:
        return _equal_sentence(diff)
    rows = [_cells(pair, whole) for pair in diff.pairs if not pair.is_equal]
    more = f"and {len(rows) - MAX_ROWS} more" if len(rows) > MAX_ROWS else ""
    table = lay_out(Table(HEADS, rows[:MAX_ROWS], words=(1, 2)), whole=whole) if rows else ""
    return "\n\n".join(filter(None, [table, more, "\n".join(_sentences(diff))]))


def _equal_sentence(diff: FileDiff) -> str:
    n_values = sum(pair.n_elements for pair in diff.pairs)
    retyped = sum(len(set(pair.dtypes)) > 1 for pair in diff.pairs)
    types = f"{count(retyped, 'tensor')} in another type" if retyped else "in the same types"
    before, after = diff.paths
    return (
        f"{before} and {after} hold the same values: {count(len(diff.pairs), 'tensor')}, "
        f"{count(n_values, 'value')}, {types}"
    )


def _cells(pair: StoredPair, whole: bool) -> tuple[str, ...]:
    dtypes = (
        printable(dtype) if whole else label(dtype, TYPE_CHARS)
        for dtype in dict.fromkeys(pair.dtypes)
    )
    bits = (format_number(bits, ".4g") for bits in dict.fromkeys(pair.bits_per_value))
    sqnr = format_number(pair.sqnr_db, ".2f")
    name = printable(pair.name) if whole else label(pair.name, NAME_CHARS)
    return name, " → ".join(dtypes), " → ".join(bits), f"{pair.n_elements:,}", sqnr


def _sentences(diff: FileDiff) -> Iterator[str]:
    yield _total_sentence(diff)
    remarked = [pair for pair in diff.pairs if pair.remark]
    for remark, pairs in group_by(remarked, lambda pair: pair.remark).items():
        yield f"{_list_names([pair.name for pair in pairs])}: {remark}"
    for name, reason in [*diff.failed.items()][:NAMED_TENSORS]:
        yield reason if name in reason else f"{label(name)}: {reason}"
    for path, names in zip(diff.paths, diff.only, strict=True):
        if names:
            yield f"only {path} has {_list_names(names)}"


def _total_sentence(diff: FileDiff) -> str:
    """Return the sizes of both files and the SQNR of the tensors that differ, in one sentence."""
    figures = [pair.sqnr_db for pair in diff.pairs if pair.sqnr_db is not None]
    equal = sum(pair.is_equal for pair in diff.pairs)
    sizes = " → ".join(format_size(n) for n in diff.n_bytes)
    noise = f"; {_noise_text(figures, equal)}" if figures else ""
    compared = f"{count(len(diff.pairs), 'tensor')} compared, {equal} equal; {sizes}"
    return f"{compared}{noise}"


def _noise_text(figures: Sequence[float], n_equal: int) -> str:
    """Say the SQNR of the tensors that differ, of which there may be one alone."""
    is_one = len(figures) == 1
    subject = f"SQNR of the other{'' if is_one else 's'}" if n_equal else "SQNR"
    spread = "" if is_one else f" at least, median {median(figures):.2f}"
    return f"{subject} {min(figures):.2f} dB{spread}"


def _list_names(names: Sequence[Any]) -> str:
    """List the first few names of tensors."""
    labels = [label(name, NAME_CHARS) for name in names]
    return ", ".join(first_few(labels, NAMED_TENSORS))


def summarize_file(path: str, *, whole: bool = False) -> str:
    """Say what a file is; of one of the hub the header alone is read.

    With `whole` no line of the table is broken. Raises ValueError where it is no file of tensors
    that may be in codes.
    """
    with without_values(path) as local:
        file = DecodedFile(str(local), select="all")
        tensors = list(file.stored.tensors.values())
        table = lay_out(Table(SUMMARY_HEADS, [*_type_rows(tensors)]), whole=whole)
        question = _next_question(path, file.stored)
        return render(_describe(path, file), table, "\n".join(_fault_sentences(tensors)), question)


def summarize_loss(path: str, original: str, *, whole: bool = False) -> str:
    """Say what a file is, and what it lost beside its original.

    With `whole` no line of the table is broken. Raises ValueError where one is no file of tensors
    that may be in codes, or no tensors pair.
    """
    compared = diff_files(original, path)
    file = DecodedFile(path, select="all")
    tensors = list(file.stored.tensors.values())
    rows = [*_type_rows(tensors, compared.pairs)]
    return render(
        _describe(path, file),
        lay_out(Table((*SUMMARY_HEADS, *LOSS_HEADS), rows), whole=whole),
        "\n".join(_loss_sentences(compared)),
        "\n".join(_next_commands(compared)),
    )


def _describe(path: str, file: DecodedFile) -> str:
    stored = file.stored
    bits = sum(tensor.bits for tensor in stored.tensors.values())
    size = sum(tensor.size for tensor in stored.tensors.values())
    family = stored.architecture.name if stored.architecture else file.family.model_type
    of_family = f" of {label(family)}" if family else ""
    return (
        f"{path}: {stored.format}{of_family}, {count(len(stored.tensors), 'tensor')}, "
        f"{count(size, 'value')}, "
        f"{format_size(bits / 8)}, {bits / max(size, 1):.4g} bits per value"
    )


def _type_rows(
    tensors: Sequence[StoredTensor], pairs: Sequence[StoredPair] | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield a row for each type, that of most values first, and what its tensors lost."""
    by_type = group_by(tensors, lambda tensor: tensor.dtype)
    sizes = {dtype: sum(t.size for t in members) for dtype, members in by_type.items()}
    ordered = sorted(by_type, key=lambda dtype: -sizes[dtype])
    total = max(sum(sizes.values()), 1)
    groups = [(label(dtype), [dtype]) for dtype in ordered[:MAX_TYPES]]
    if len(ordered) > MAX_TYPES:
        groups.append((f"{len(ordered) - MAX_TYPES} others", ordered[MAX_TYPES:]))
    for name, dtypes in groups:
        members = [*chain.from_iterable(by_type[dtype] for dtype in dtypes)]
        size = sum(tensor.size for tensor in members)
        bits = sum(tensor.bits for tensor in members) / max(size, 1)
        losses = () if pairs is None else _losses([p for p in pairs if p.dtypes[1] in dtypes])
        yield name, f"{len(members):,}", f"{size / total:.1%}", f"{bits:.4g}", *losses


def _losses(pairs: Sequence[StoredPair]) -> tuple[str, str]:
    """Return the median and the least SQNR of tensors."""
    figures = [pair.sqnr_db for pair in pairs if pair.sqnr_db is not None]
    if pairs and not figures and all(pair.is_equal for pair in pairs):
        return "exact", "exact"
    middle, least = (median(figures), min(figures)) if figures else (None, None)
    return format_number(middle, ".2f"), format_number(least, ".2f")


def _fault_sentences(tensors: Sequence[StoredTensor]) -> list[str]:
    faults = [f"{label(t.name)} {t.fault}" for t in tensors if t.fault]
    return first_few(faults, WORST_TENSORS, lambda n: f"and {n} more cannot be decoded")


def _loss_sentences(compared: FileDiff) -> Iterator[str]:
    if compared.is_equal:
        yield "every value is that of the original"
        return
    yield _total_sentence(compared)
    worst = [p for p in compared.pairs if p.sqnr_db is not None][:WORST_TENSORS]
    if worst:
        listed = (f"{label(p.name)} {p.sqnr_db:.2f} dB ({label(p.dtypes[1])})" for p in worst)
        yield f"worst: {', '.join(listed)}"
    if remarks := dict.fromkeys(pair.remark for pair in compared.pairs if pair.remark):
        yield "; ".join(first_few([*map(str, remarks)], 1, lambda n: f"and {n} more remarks"))
    if compared.failed:
        yield next(iter(compared.failed.values()))
    original, file = compared.only
    if original:
        yield f"gone: {_list_names(original)}"
    if file:
        yield f"only in the file: {_list_names(file)}"


def _next_question(path: str, stored: StoredFile) -> str:
    if any(not tensor.is_dense for tensor in stored.tensors.values()):
        return f"what was lost? quantlab look {shlex.quote(path)} ORIGINAL"
    source = f"dist=file/{stored.format} {shlex.quote(as_setting('dist.path', path))}"
    return (
        "no tensor is in codes; what would fewer bits cost?\n"
        f"quantlab run -m {source} mode=sym,asym block=group n_bits=4,8"
    )


def _next_commands(compared: FileDiff) -> Iterator[str]:
    original, path = map(shlex.quote, compared.paths)
    if compared.is_equal:
        return
    before, after = compared.formats
    source = shlex.quote(as_setting("dist.path", compared.paths[0]))
    stored = shlex.quote(as_setting("mode.path", compared.paths[1]))
    yield f"every tensor: quantlab diff {original} {path}"
    yield f"every figure: quantlab run -m dist=file/{before} {source} mode=file/{after} {stored}"
