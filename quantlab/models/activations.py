"""Activations: the tensors that flow between the nodes of an ONNX graph, over all samples."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.models.onnx import OnnxModel
from quantlab.sources.file import file_state, readable, require_matches
from quantlab.sources.onnx_graph import read_graph
from quantlab.sources.source import Source
from quantlab.sources.tensor import Tensor
from quantlab.text import Patterns, format_size, label, matches, require_patterns


@dataclass(frozen=True)
class Activations(Source):
    """What the nodes of an ONNX model give for its inputs, by the names of their outputs.

    Those are measured that hold floating-point numbers and depend on the inputs; shell-style
    patterns choose some. The first axis counts samples, of all batches. `inputs` are as those of
    `OnnxModel`. Raises ValueError where a file or a setting is wrong.
    """

    path: str
    inputs: str
    include: Patterns = None
    exclude: Patterns = None
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        """Read the names, so that a wrong pattern is refused before anything runs."""
        require_patterns("include", self.include)
        require_patterns("exclude", self.exclude)
        if type(self.max_bytes) is not int or self.max_bytes < 1:
            raise ValueError(
                f"dist.max_bytes must be a whole number of bytes above 0, got {self.max_bytes!r}"
            )
        _ = self._choose_names()

    def tensors(self) -> Iterator[Tensor]:
        """Yield each activation; raises ValueError where they take more than `max_bytes`."""
        model = self._model
        state = model.file_states()
        arrays = _run_cached(model, self._choose_names(), self.max_bytes, state)
        for name, values in arrays.items():
            yield Tensor(name, values, (state, "activation"))

    @property
    def _model(self) -> OnnxModel:
        return OnnxModel(self.path, self.inputs)

    def _choose_names(self) -> tuple[str, ...]:
        names = _list_names(file_state(str(self._model.path)))
        require_matches(names, f"activations of {self.path}", self.include, self.exclude)
        chosen = tuple(
            name
            for name in names
            if (self.include is None or matches(name, self.include))
            and not matches(name, self.exclude)
        )
        if not chosen:
            raise ValueError(f"{self.path} has no activation that is chosen")
        return chosen


@lru_cache(maxsize=4)
def _list_names(state: tuple[str, int, int]) -> tuple[str, ...]:
    """List the outputs of nodes that depend on an input of the graph, in its order."""
    path = state[0]
    with readable(path, "onnx"):
        graph = read_graph(path).model.graph
    reached = {entry.name for entry in graph.input} - {tensor.name for tensor in graph.initializer}
    names: dict[str, None] = {}
    for node in graph.node:  # in topological order, as ONNX demands
        if not reached.isdisjoint(_read_names(node)):
            outputs = [name for name in node.output if name]
            reached.update(outputs)
            names.update(dict.fromkeys(outputs))
    return tuple(names)


def _read_names(node: Any) -> Iterator[str]:
    """Yield the names that a node reads, those in its bodies included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield from _read_names(inner)


@lru_cache(maxsize=1)  # the formats of a sweep share them
def _run_cached(
    model: OnnxModel, names: tuple[str, ...], max_bytes: int, state: Hashable
) -> Mapping[str, NDArray[Any]]:
    """Compute activations over all samples; `state` is that of the files."""
    del state
    parts: dict[str, list[NDArray[Any]]] = {}
    n_bytes = 0
    for batch, activations in model.compute_edges(names):
        n_bytes += sum(array.nbytes for array in activations.values())
        if n_bytes > max_bytes:
            raise ValueError(
                f"the {len(activations)} activations of {model.path} take more than "
                f"{format_size(max_bytes)}: choose some by name, as in "
                f"dist.include={label(names[-1])}, give fewer samples, or raise dist.max_bytes"
            )
        for name, array in activations.items():
            has_axis = batch.has_sample_axis and array.ndim
            if has_axis and len(array) != batch.n_samples:
                raise ValueError(
                    f"activation '{label(name)}' has the shape {list(array.shape)} for "
                    f"{batch.n_samples} samples, its first axis does not count them: leave it out "
                    f"with dist.exclude={label(name)}"
                )
            parts.setdefault(name, []).append(array if has_axis else array[None])
    if not parts:
        raise ValueError(f"{model.path} has no activation of floating-point numbers")
    return {name: _join(name, parts.pop(name)) for name in [*parts]}


def _join(name: str, parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Join batches along the axis of samples; raises ValueError where their shapes differ."""
    shapes = dict.fromkeys(part.shape[1:] for part in parts)
    if len(shapes) > 1:
        first, second, *_ = map(list, shapes)
        raise ValueError(
            f"activation '{label(name)}' has the shapes {first} and {second} in different batches: "
            f"leave it out with dist.exclude={label(name)}"
        )
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
