"""What a file of tensors is, in about ten lines, and which command tells more.

Beside its original a file also has what it lost, by the types that it stores tensors in.
"""

import shlex
from collections.abc import Iterator, Sequence
from itertools import chain
from statistics import median

from quantlab.report.file_diff import FileDiff, StoredPair, diff_files, list_names, total_sentence
from quantlab.report.tables import Table
from quantlab.report.terminal import lay_out, render
from quantlab.sources.kinds.decoding import StoredTensor
from quantlab.sources.pairing import StoredFile
from quantlab.sources.readers import DecodedFile, without_values
from quantlab.text import as_setting, count, first_few, format_number, format_size, label

MAX_TYPES = 6  # that have a line of their own
WORST_TENSORS = 3
HEADS = ("stored as", "tensors", "of the values", "bits per value")
LOSS_HEADS = ("SQNR, dB: median", "least")


def summarize_file(path: str, *, whole: bool = False) -> str:
    """Say what a file is; of one of the hub the header alone is read.

    With `whole` no line of the table is broken. Raises ValueError where it is no file of tensors
    that may be in codes.
    """
    with without_values(path) as local:
        file = DecodedFile(str(local), select="all")
        tensors = list(file.stored.tensors.values())
        table = lay_out(Table(HEADS, [*_type_rows(tensors)]), whole=whole)
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
        lay_out(Table((*HEADS, *LOSS_HEADS), rows), whole=whole),
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
    by_type: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
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
    yield total_sentence(compared)
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
        yield f"gone: {list_names(original)}"
    if file:
        yield f"only in the file: {list_names(file)}"


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
