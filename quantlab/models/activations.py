"""What flows between the nodes of an ONNX graph: as tensors, and as the inputs of its layers.

A layer computes ``sum_j w_ij x_j``. What an error of its weights does to that, the Gram matrix of
its inputs says exactly, of MatMul and Gemm; E[x_j^2] says it for independent inputs, of Conv too,
and is an importance matrix as llama.cpp's are.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape, read_flat
from quantlab.formats.element import FloatArray
from quantlab.formats.format import NamedTensor
from quantlab.formats.gram import LayerInputs, compute_gram
from quantlab.formats.scales import Array64
from quantlab.models.onnx import OnnxModel
from quantlab.sources.calibration import CapturedInputs
from quantlab.sources.file import file_state, readable, require_matches
from quantlab.sources.onnx import find_input_axes, input_axis
from quantlab.sources.onnx_graph import Constant, input_name, read_attributes, read_graph
from quantlab.sources.source import Source
from quantlab.sources.tensor import FileState, Tensor
from quantlab.text import Patterns, format_size, label, matches, require_patterns

GRAM_BYTES = 2**30  # of the matrices that are in memory at once
Sums = tuple[NDArray[np.float64], int]  # of squares, (matrices, columns), and of how many each


@dataclass(frozen=True)
class _GraphInputs:
    """An ONNX model, and the samples of `inputs` that flow through it.

    Raises ValueError where a file is missing.
    """

    path: str
    inputs: str

    def __post_init__(self) -> None:
        """Look for the files, so that a wrong name is refused before anything runs."""
        _ = self._model

    @property
    def _model(self) -> OnnxModel:
        return OnnxModel(self.path, self.inputs)

    @property
    def name(self) -> str:
        """Name of the file of inputs."""
        return Path(self.inputs).name


@dataclass(frozen=True)
class Activations(_GraphInputs, Source):
    """What the nodes of an ONNX model give for its inputs, by the names of their outputs.

    Those are measured that hold floating-point numbers and depend on the inputs; shell-style
    patterns choose some. The first axis counts samples, of all batches. `inputs` are as those of
    `OnnxModel`. Raises ValueError where a file or a setting is wrong.
    """

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
def _list_names(state: FileState) -> tuple[str, ...]:
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


class InputPowers(_GraphInputs):
    """The mean square of the inputs of each weight."""

    def of(self, name: str, shape: Shape) -> FloatArray | None:
        """Return E[x_j^2] of the values of a weight, ``(matrices, columns)``; None where unknown.

        Where inputs lie along the first of two axes, a row of the weight is a matrix of one column.
        Raises ValueError where the inputs do not fit the model.
        """
        model = self._model
        importance = _measure_cached(model, model.file_states()).get(name)
        if importance is None or prod(shape) % importance.size:
            return None
        return importance


class ModelInputs(_GraphInputs):
    """The inputs of each weight of MatMul and Gemm."""

    def width(self, tensor: NamedTensor) -> int | None:
        """Return the number of inputs of a weight; None where unknown."""
        return dict(_find_widths(str(self._model.path))).get(tensor.name)

    def gram(self, tensor: NamedTensor) -> Array64 | None:
        """Compute the Gram matrix of the inputs of a weight, ``(in, in)``; None where unknown.

        The model runs once for as many weights as `GRAM_BYTES` has room for. Raises ValueError
        where the inputs do not fit the model.
        """
        model = self._model
        for names in _group_weights(_find_widths(str(model.path))):
            if tensor.name in names:
                return _compute_grams(model, model.file_states(), names)[tensor.name]
        return None

    def identity(self, tensor: NamedTensor) -> str | None:
        """Return a sha256 of the model and its inputs; None of a weight without known inputs."""
        if self.width(tensor) is None:
            return None
        return hashlib.sha256(json.dumps(self._model.identity()).encode()).hexdigest()


def open_inputs(path: str, model: str | None = None) -> LayerInputs:
    """Open captured inputs of layers, or run an ONNX `model` with its own inputs in the file.

    Raises ValueError where a file is missing.
    """
    return ModelInputs(model, path) if model else CapturedInputs(path)


class _Layer(NamedTuple):
    """A weight, the edge of its inputs, and how to sum up the squares of those.

    An edge that is not computed is an input of the graph. Of a linear layer there is the axis of
    the edge along which the `width` inputs lie.
    """

    weight: str
    edge: str
    is_computed: bool
    sum_squares: Callable[[NDArray[Any]], Sums]
    axis: int | None
    width: int


def _find_widths(path: str) -> Sequence[tuple[str, int]]:
    """Return the weights of linear layers, each once, and how many inputs they have."""
    layers = _list_layers(file_state(path))
    return [*{layer.weight: layer.width for layer in layers if layer.axis is not None}.items()]


@lru_cache(maxsize=2)
def _list_layers(state: FileState) -> Sequence[_Layer]:
    with readable(state[0], "onnx"):
        return [*_find_layers(state[0])]


def _group_weights(widths: Sequence[tuple[str, int]]) -> Iterator[tuple[str, ...]]:
    """Yield the names of weights whose Gram matrices are in memory at once."""
    names: list[str] = []
    n_bytes = 0
    for name, width in widths:
        n_bytes += 8 * width * width
        if names and n_bytes > GRAM_BYTES:
            yield tuple(names)
            names, n_bytes = [], 8 * width * width
        names.append(name)
    yield tuple(names)


@lru_cache(maxsize=1)
def _compute_grams(
    model: OnnxModel, state: Hashable, names: tuple[str, ...]
) -> Mapping[str, Array64]:
    """Compute the Gram matrices of some weights; `state` is that of the files.

    Raises ValueError where an input of a layer is no finite float32.
    """
    del state
    layers = [layer for layer in _list_layers(file_state(str(model.path))) if layer.weight in names]
    grams: dict[str, Array64] = {}
    for layer, x in _compute_inputs(model, layers):
        if layer.axis is not None:
            with np.errstate(over="ignore"):
                rows = np.moveaxis(x, layer.axis, -1).astype(np.float32).reshape(-1)
            if not np.isfinite(rows).all():
                raise ValueError(
                    f"tensor '{label(layer.weight)}' has inputs, '{label(layer.edge)}' of "
                    f"{model.path}, that hold NaN or Inf: leave out the samples that give them"
                )
            gram = compute_gram(read_flat(rows), rows.size, layer.width)
            grams[layer.weight] = grams.get(layer.weight, 0.0) + gram
    return grams


def _compute_inputs(
    model: OnnxModel, layers: Sequence[_Layer]
) -> Iterator[tuple[_Layer, NDArray[Any]]]:
    """Yield what flows into layers, batch by batch."""
    edges = dict.fromkeys(layer.edge for layer in layers if layer.is_computed)
    for batch, arrays in model.compute_edges([*edges]) if layers else ():
        for layer in layers:
            x = arrays.get(layer.edge, batch.feed.get(layer.edge))
            if x is not None:
                yield layer, x


@lru_cache(maxsize=1)
def _measure_cached(model: OnnxModel, state: Hashable) -> Mapping[str, FloatArray]:
    """Compute the importance of each weight; `state` is that of the files."""
    del state
    sums: dict[str, Sums] = {}
    for layer, x in _compute_inputs(model, _list_layers(file_state(str(model.path)))):
        _add(sums, layer.weight, layer.sum_squares(x))
    return {name: (total / count).astype(np.float32) for name, (total, count) in sums.items()}


def _add(sums: dict[str, Sums], weight: str, more: Sums) -> None:
    """Add sums of a batch, or of another layer that shares the weight."""
    total, count = sums.get(weight, (0.0, 0))
    sums[weight] = total + more[0], count + more[1]


def _find_layers(path: str) -> Iterator[_Layer]:
    """Yield the layers of a graph whose weight is constant and whose inputs are not."""
    graph = read_graph(path)
    scope, axes = graph.scopes[0], find_input_axes(graph)
    for node in scope.nodes:
        for place in (0, 1):
            weight = scope.find_constant(input_name(node, place))
            edge = input_name(node, 1 - place)
            if weight and not scope.find_constant(edge):
                axis = axes.get(weight.name)
                # None where it is no linear layer, or layers that share the weight differ.
                is_linear = node.op_type in ("MatMul", "Gemm") and len(weight.shape) == 2
                known = is_linear and axis is not None
                edge_axis = input_axis(node, 1 - place) if known else None
                sum_squares = _choose_sums(node, place, weight, axis, edge_axis)
                if sum_squares:
                    is_computed = scope.find_producer(edge) is not None
                    width = weight.shape[axis or 0]
                    yield _Layer(weight.name, edge, is_computed, sum_squares, edge_axis, width)


def _choose_sums(
    node: Any, place: int, weight: Constant, axis: int | None, edge_axis: int | None
) -> Callable[[NDArray[Any]], Sums] | None:
    """Return how the squares of the inputs of a weight are summed up; None of other operators."""
    if node.op_type == "Conv" and place == 1 and len(weight.shape) > 2:
        return partial(_sum_patches, shape=weight.shape, attributes=read_attributes(node))
    if edge_axis is None:
        return None
    return partial(_sum_linear, axis=edge_axis, is_column=axis == 0)


def _sum_linear(x: NDArray[Any], axis: int, *, is_column: bool) -> Sums:
    """Sum up the squares along all axes but one: a column where inputs are rows of the weight."""
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    total = np.square(rows, dtype=np.float64).sum(axis=0)
    return total.reshape((-1, 1) if is_column else (1, -1)), len(rows)


def _sum_patches(x: NDArray[Any], shape: Shape, attributes: Mapping[str, Any]) -> Sums:
    """Sum up the squares that each value of a kernel meets, padding included.

    One row where there is one group, else a row an output.
    """
    kernel, lengths = shape[2:], x.shape[2:]
    strides = attributes.get("strides", [1] * len(kernel))
    dilations = attributes.get("dilations", [1] * len(kernel))
    spans = [step * (n - 1) + 1 for n, step in zip(kernel, dilations, strict=True)]
    pads = _find_pads(attributes, lengths, spans, strides)
    squares = np.pad(np.square(x, dtype=np.float64), [(0, 0), (0, 0), *pads])
    steps = [
        (n - span) // stride
        for n, span, stride in zip(squares.shape[2:], spans, strides, strict=True)
    ]
    total = np.empty((x.shape[1], *kernel))
    for place in np.ndindex(*kernel):
        starts = [n * dilation for n, dilation in zip(place, dilations, strict=True)]
        window = tuple(
            slice(start, start + n * stride + 1, stride)
            for start, n, stride in zip(starts, steps, strides, strict=True)
        )
        others = (0, *range(2, x.ndim))
        total[(slice(None), *place)] = squares[(slice(None), slice(None), *window)].sum(axis=others)
    groups = attributes.get("group", 1)
    rows = total.reshape(groups, -1)
    count = len(x) * prod(n + 1 for n in steps)
    return rows if groups == 1 else rows.repeat(shape[0] // groups, axis=0), count


def _find_pads(
    attributes: Mapping[str, Any],
    lengths: Shape,
    spans: list[int],
    strides: list[int],
) -> list[tuple[int, int]]:
    """Return the padding of a Conv before and after each axis."""
    auto, n_axes = attributes.get("auto_pad", b"NOTSET"), len(spans)
    if auto in (b"NOTSET", b"VALID"):
        given = attributes.get("pads", []) if auto == b"NOTSET" else []
        given = given or [0] * 2 * n_axes
        return [*zip(given[:n_axes], given[n_axes:], strict=True)]
    pads = []
    for n, span, stride in zip(lengths, spans, strides, strict=True):
        missing = max((-(-n // stride) - 1) * stride + span - n, 0)
        less, more = missing // 2, missing - missing // 2
        pads.append((less, more) if auto == b"SAME_UPPER" else (more, less))
    return pads
