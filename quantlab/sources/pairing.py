"""A quantized file as a format: each tensor of a source is paired with a stored one.

To add a container: a subclass of `StoredFile` beside the reader of the container, and a yaml in
``conf/mode/file/`` whose ``_target_`` names it.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np

from quantlab.formats.blocks import Read, Shape, UnfitError
from quantlab.formats.element import FloatArray, require_no_width
from quantlab.formats.format import Codec, NamedTensor, Reconstruction
from quantlab.sources import hub, views
from quantlab.sources.file import File, existing_path, readable, require_unique
from quantlab.sources.kinds.decoding import RowIndex, StoredTensor
from quantlab.sources.names import (
    PERMUTED,
    SHIFTED_BY_MLX,
    Architecture,
    Family,
    gguf_name,
    is_shifted_norm,
    norm_shift,
    pair_common_ends,
    pair_names,
    row_order,
)
from quantlab.sources.views import Experts, parse_name
from quantlab.text import label, require_packages

EMBEDDINGS = ("embed_tokens.weight", "token_embd.weight", "wte.weight")
OUTPUT_LAYERS = ("lm_head.weight", "output.weight")
LEFT_EXPERTS = "the experts are stored as they are, while other weights are quantized"
INTERLEAVED = {"gpt-oss", "gpt_oss"}  # families whose fused experts have gate and up in turns


@dataclass(frozen=True)
class Pair:
    """A stored tensor, and how its values become those of its original.

    Rows come in `order`, or in the `other_order` that a reading of this name supposes; `restore`
    computes the original's values from them. `remark` says how names that differ were paired.
    """

    tensor: StoredTensor
    order: RowIndex | None = None
    other_order: tuple[str, RowIndex | None] | None = None
    restore: Callable[[FloatArray], FloatArray] | None = None
    remark: str | None = None


class Coverage(TypedDict):
    """How much of an original was compared with a stored file, and of that file with it.

    `values` of `all_values` that were selected, `bytes` of `all_bytes`; `unpaired` has the sizes of
    the tensors that were not compared, the largest first.
    """

    values: int
    all_values: int
    bytes: int
    all_bytes: int
    unpaired: dict[str, int]


class StoredFile(Codec):
    """A quantized file; raises ValueError, naming it, when it is missing or not of its kind.

    Its widths are its own: `n_bits` must be None.
    """

    format: ClassVar[str]
    needs: ClassVar[Sequence[str]] = ()

    def __init__(self, path: str, n_bits: int | None = None) -> None:
        require_no_width(n_bits, f"file/{self.format}", "which has widths of its own")
        self.path, self.n_bits = existing_path(path, self.format), None
        require_packages(self.needs, f"reading {self.path}")
        _ = self.tensors

    @abstractmethod
    def _decode(self) -> Iterator[StoredTensor]:
        """Yield every tensor of real numbers in the file."""

    @property
    def architecture(self) -> Architecture | None:
        """The model's family, where the file names it."""
        return None

    @property
    def is_of_mlx(self) -> bool:
        """True where MLX has written the file."""
        return False

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of real numbers in the file, by the name of its original."""
        with readable(self.path, self.format):
            tensors = list(self._decode())
            require_unique(tensor.name for tensor in tensors)
            return {tensor.name: tensor for tensor in tensors}

    @property
    def file_name(self) -> str:
        """Name of the file and its directory: many are called model.safetensors."""
        origin = hub.find_origin(self.path)
        return f"{origin.repo}/{origin.name}" if origin else "/".join(Path(self.path).parts[-2:])

    def bind(self, source: Any) -> "Bound":
        """Return the codec of a source: each of its tensors with the stored one."""
        return Bound(self, source)

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return the reconstruction of a tensor: the one that is stored under its name."""
        if tensor.name not in self.tensors:
            raise UnfitError(f"{self.file_name} has no such tensor")
        return self.reconstruct(tensor, Pair(self.tensors[tensor.name]))

    def reconstruct(self, tensor: NamedTensor, pair: Pair) -> Reconstruction:
        """Return a tensor as it is stored; raises ValueError where it is another, or damaged."""
        stored = pair.tensor
        place = f"tensor '{label(tensor.name)}' in {self.path}"
        if fault := stored.find_fault():
            raise ValueError(f"{place} {fault}")
        reshaped = _in_shape(stored, tensor.shape)
        if reshaped is None:
            raise ValueError(
                f"{place} has the shape {list(stored.shape)}, the original {list(tensor.shape)}"
            )
        stored = reshaped

        def readers(readings: Mapping[str, Any]) -> dict[str, Read]:
            return {name: stored.reader(rows, pair.order) for name, rows in readings.items()}

        rearranged = readers(stored.rearranged)
        if pair.other_order:
            name, order = pair.other_order
            rearranged[name] = stored.reader(order=order)
        read, restore = stored.reader(order=pair.order), pair.restore
        is_left = stored.is_dense and self._leaves_experts and parse_name(stored.members[0])
        return Reconstruction(
            read=read if restore is None else lambda start, stop: restore(read(start, stop)),
            dtype=stored.dtype,
            bits=stored.bits,
            sha256=stored.sha256(),
            source=self.file_name,
            readings=readers(stored.readings),
            rearranged=rearranged,
            remark=stored.remark or (LEFT_EXPERTS if is_left else pair.remark),
        )

    @cached_property
    def _leaves_experts(self) -> bool:
        """True where other weights are quantized, and no expert is."""
        tensors = self.tensors.values()
        is_quantized = any(not tensor.is_dense for tensor in tensors)
        return is_quantized and all(t.is_dense for t in tensors if parse_name(t.name))


def _describe_prefixes(name: str, stored_name: str) -> str:
    """Describe how two names with a common end begin.

    >>> _describe_prefixes("model.layers.0.up.weight", "decoder.layers.0.up.weight")
    "names are paired by their common ends: 'decoder.' stands there for 'model.'"
    """
    ends = zip(reversed(name.split(".")), reversed(stored_name.split(".")), strict=False)
    n_common = sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], ends))
    original, stored = (
        "".join(f"{part}." for part in path.split(".")[:-n_common]) for path in (name, stored_name)
    )
    return (
        f"names are paired by their common ends: '{label(stored)}' stands there for "
        f"'{label(original)}'"
    )


def is_output_layer(name: str) -> bool:
    """Test for the name of a model's output layer, of Hugging Face or llama.cpp."""
    return name in OUTPUT_LAYERS or name.endswith(".lm_head.weight")


def _in_shape(stored: StoredTensor, shape: Shape) -> StoredTensor | None:
    """Return a stored tensor in the shape of its original; None where it is of another.

    Axes of 1 come and go, and some writers store the transpose of a matrix.
    """
    if stored.shape == shape:
        return stored
    if [n for n in stored.shape if n > 1] == [n for n in shape if n > 1]:
        return views.reshape(stored, shape)
    if len(shape) == 2 and stored.shape == shape[::-1]:
        return views.transpose(stored)
    return None


def _add(shift: float) -> Callable[[FloatArray], FloatArray]:
    return lambda values: values + np.float32(shift)


class Bound(Codec):
    """A quantized file beside the originals of one source."""

    def __init__(self, stored: StoredFile, source: Any) -> None:
        self.stored, self.n_bits = stored, None
        self._file = source if isinstance(source, File) else None  # others are seen when opened
        self._family = self._file.family if self._file else Family()
        entries = self._file.entries if self._file else []
        self.pairs = self._pair({entry.name: entry.shape for entry in entries})
        self.tied = self._find_tied()
        self.pairs |= {name: Pair(stored.tensors[name]) for name in self.tied.values()}
        self._require_original()

    def _require_original(self) -> None:
        """Raise ValueError where the source is quantized itself and the file is not."""
        if not self._file:
            return
        for entry in self._file.entries:
            pair = self.pairs.get(entry.name)
            if pair and entry.is_quantized and pair.tensor.is_dense:
                raise ValueError(
                    f"{self._file.path} holds {label(entry.name)} in {entry.dtype} and "
                    f"{self.stored.file_name} in {pair.tensor.dtype}: dist.path takes the "
                    "original, mode.path the quantized file"
                )

    def _find_tied(self) -> dict[str, str]:
        """Return the stored output layer of an embedding that is both in the original."""
        if not self._file or not self._family.ties_embeddings:
            return {}
        shapes = {entry.name: entry.shape for entry in self._file.entries}
        if any(is_output_layer(name) for name in shapes):
            return {}
        embeddings = [name for name in shapes if name.endswith(EMBEDDINGS)]
        outputs = [name for name in self.unmatched() if is_output_layer(name)]
        pairs = {
            embedding: output
            for embedding in embeddings
            for output in outputs
            if self.stored.tensors[output].shape == shapes[embedding]
        }
        return pairs if len(embeddings) == len(outputs) == 1 else {}

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return the reconstruction of a tensor: the stored tensor that it is paired with."""
        pair = self.pairs.get(tensor.name)
        if pair is None and not self._file:
            pair = self._pair({tensor.name: tensor.shape}).get(tensor.name)
        if pair is None:
            raise UnfitError(f"{self.stored.file_name} has no tensor of this name")
        return self.stored.reconstruct(tensor, pair)

    def unmatched(self) -> Mapping[str, str]:
        """Return the stored tensors without an original."""
        matched = {name for pair in self.pairs.values() for name in pair.tensor.members}
        reason = f"only {self.stored.file_name} has it"
        return {name: reason for name in self.stored.tensors if name not in matched}

    def coverage(self, measured: Collection[str]) -> Coverage | None:
        """Count what was compared, given the names of originals that have figures.

        Stored tensors whose originals are left out do not count. None of a source that is no file.
        """
        if not self._file:
            return None
        sizes = self._file.selected_sizes()
        unpaired = {name: n for name, n in sizes.items() if name not in measured}
        n_bytes, left_out = (
            {
                part.name: part.n_bytes
                for name, pair in self.pairs.items()
                if (name in measured) == is_measured and (is_measured or name not in sizes)
                for part in pair.tensor.parts
            }
            for is_measured in (True, False)
        )
        parts = (part for stored in self.stored.tensors.values() for part in stored.parts)
        counted = {part.name: part.n_bytes for part in parts if part.name not in left_out}
        return Coverage(
            values=sum(sizes.values()) - sum(unpaired.values()),
            all_values=sum(sizes.values()),
            bytes=sum(n_bytes.values()),
            all_bytes=sum(counted.values()),
            unpaired=dict(sorted(unpaired.items(), key=lambda item: -item[1])),
        )

    def _pair(self, shapes: Mapping[str, Shape]) -> dict[str, Pair]:
        """Pair by equal names, llama.cpp's, those of experts, suffixes, and common ends."""
        tensors = self.stored.tensors
        is_shifted = self._family.model_type in SHIFTED_BY_MLX and self.stored.is_of_mlx
        pairs = {name: Pair(tensors[name]) for name in shapes if name in tensors}
        if is_shifted:
            norms = filter(is_shifted_norm, pairs)
            pairs |= {name: Pair(tensors[name], restore=_add(-1)) for name in norms}
        pairs |= self._pair_translated([name for name in shapes if name not in pairs])
        experts = self._experts(pairs)
        for name in shapes.keys() - pairs.keys():
            if found := experts.find(name, shapes[name]):
                pairs[name] = Pair(found)
        used = {member for pair in pairs.values() for member in pair.tensor.members}
        similar = pair_names(shapes.keys() - pairs.keys(), tensors.keys() - used)
        pairs |= {name: Pair(tensors[other]) for name, other in similar.items()}
        used |= set(similar.values())
        originals = {name: shapes[name] for name in shapes if name not in pairs}
        stored = {name: tensor.shape for name, tensor in tensors.items() if name not in used}
        for name, other in pair_common_ends(originals, stored).items():
            pairs[name] = Pair(tensors[other], remark=_describe_prefixes(name, other))
        return pairs

    def _experts(self, pairs: Mapping[str, Pair]) -> Experts:
        """Return what is stored of experts that no name has paired."""
        used = {pair.tensor.name for pair in pairs.values()}
        tensors = self.stored.tensors
        free = {name: tensor for name, tensor in tensors.items() if name not in used}
        source, stored = self._family.architecture, self.stored.architecture
        families = {family.name for family in (source, stored) if family}
        is_interleaved = bool((families | {self._family.model_type}) & INTERLEAVED)
        return Experts(
            free,
            original_interleaved=is_interleaved and not source,
            stored_interleaved=is_interleaved and not stored,
        )

    def _pair_translated(self, names: Sequence[str]) -> dict[str, Pair]:
        """Pair names of Hugging Face on one side with those of llama.cpp on the other."""
        tensors, stored = self.stored.tensors, self.stored.architecture
        source = self._family.architecture
        if stored and not source:
            translated = {name: gguf_name(name, stored.name) for name in names}
            return {
                name: _undo_conversion(tensors[other], other, name, stored, is_gguf_stored=True)
                for name, other in translated.items()
                if other and other in tensors
            }
        if source and not stored:
            originals = {gguf_name(name, source.name): name for name in tensors}
            return {
                name: _undo_conversion(
                    tensors[originals[name]], name, originals[name], source, is_gguf_stored=False
                )
                for name in names
                if name in originals
            }
        return {}


def _undo_conversion(
    tensor: StoredTensor,
    name: str,
    hf_name: str,
    architecture: Architecture,
    *,
    is_gguf_stored: bool,
) -> Pair:
    """Pair a stored tensor with its original across llama.cpp's converter.

    `name` is llama.cpp's, `hf_name` Hugging Face's. Where llama.cpp's is stored the conversion is
    undone, else it is done again, as the original has gone through it.
    """
    if shift := norm_shift(hf_name, architecture):
        return Pair(tensor, restore=_add(-shift if is_gguf_stored else shift))
    if hf_name.endswith(".A_log"):  # llama.cpp's converter stores -exp(A_log)
        return Pair(tensor, restore=_log_of_negative if is_gguf_stored else _negative_exp)
    rows = tensor.shape[0] if len(tensor.shape) in (1, 2) else 0
    order = row_order(name, rows, architecture) if rows else None
    if order is None:
        return Pair(tensor)
    order = np.argsort(order) if is_gguf_stored else order
    # Files exist that other tools have converted: the order not taken is one of the readings.
    if architecture.name in PERMUTED:
        return Pair(tensor, order, ("without llama.cpp's order of the rows of q and k", None))
    return Pair(tensor, None, ("with llama.cpp's order of the rows of q and k", order))


def _log_of_negative(values: FloatArray) -> FloatArray:
    with np.errstate(all="ignore"):  # whoever reads the values refuses what is not finite
        return np.log(-values)


def _negative_exp(values: FloatArray) -> FloatArray:
    with np.errstate(all="ignore"):
        return -np.exp(values)
