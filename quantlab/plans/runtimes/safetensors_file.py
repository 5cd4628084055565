"""Runtimes that write safetensors, and the size of their files before they are made.

A size is "about": what saves a model may join, drop, cast or rename tensors, splits large models
into several files, and lists tensors in an order of its own, so that offsets take a digit more or
less. To add a runtime: derive it from `SafetensorsRuntime`, and yield its arrays.
"""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from quantlab.plans.options import Assignment
from quantlab.plans.runtimes.runtime import FileSize, Runtime
from quantlab.sources.safetensors import DTYPES, PLAIN

KINDS = {dtype.name: kind for kind, dtype in DTYPES.items()}
LENGTH_BYTES = 8  # before the header
SUFFIXES = (".safetensors", ".safetensors.index.json")


class StoredArray(NamedTuple):
    """An array of a file, its type as safetensors calls it."""

    name: str
    kind: str
    shape: tuple[int, ...]


class SafetensorsRuntime(Runtime):
    """A runtime that reads and writes safetensors; `framework` is what its files name."""

    framework = "pt"

    @abstractmethod
    def quantized_arrays(self, assignment: Assignment, config: Any) -> Iterator[StoredArray]:
        """Yield the arrays of a quantized weight; names are those behind its module's."""

    def file_size(self, assignments: Iterable[Assignment], path: str) -> FileSize | None:
        """Return about the size of the files of weights that the runtime makes."""
        if not path.endswith(SUFFIXES):
            return None
        header: dict[str, Any] = {"__metadata__": {"format": self.framework}}
        end = 0
        for array, n_bytes in (pair for part in assignments for pair in self._arrays(part)):
            start, end = end, end + n_bytes
            header[array.name] = _describe(array, start, end)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        length = len(text.encode(errors="replace"))
        return FileSize(LENGTH_BYTES + length + end, is_exact=False)

    def _arrays(self, assignment: Assignment) -> Iterator[tuple[StoredArray, int]]:
        """Yield the arrays that a tensor is stored in, each with its bytes."""
        tensor, config = assignment.tensor, self.config(assignment)
        if config is None:
            yield StoredArray(tensor.name, _kind(assignment), tensor.shape), tensor.bits // 8
            return
        module = tensor.name.removesuffix(".weight")
        for array in self.quantized_arrays(assignment, config):
            n_bytes = prod(array.shape) * DTYPES[array.kind].itemsize
            yield array._replace(name=f"{module}.{array.name}"), n_bytes


def scale_kind(assignment: Assignment) -> str:
    """Return the type of a model's scales: that of its weights, BF16 where they are codes."""
    kind = _kind(assignment)
    return kind if kind in PLAIN else "BF16"


def _kind(assignment: Assignment) -> str:
    return KINDS.get(assignment.tensor.dtype, assignment.tensor.dtype)


def _describe(array: StoredArray, start: int, end: int) -> Mapping[str, Any]:
    return {"dtype": array.kind, "shape": array.shape, "data_offsets": [start, end]}


def word_count(n_values: int, n_bits: int) -> int:
    """Return how many words of 32 bits hold the codes of some values.

    >>> word_count(33, 4)
    5
    """
    return -(-n_values * n_bits // 32)
