"""The mean square of each input of the layers of an ONNX model, over samples.

A layer computes ``sum_j w_ij x_j``; E[x_j^2] says how much an error of the weights of input j
counts in its output. It is an importance matrix as llama.cpp's are, of any MatMul, Gemm and Conv.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape
from quantlab.formats.element import FloatArray
from quantlab.models.onnx import OnnxModel
from quantlab.sources.file import file_state, readable
from quantlab.sources.onnx import find_input_axes
from quantlab.sources.onnx_graph import Constant, input_name, read_attributes, read_graph

Sums = tuple[NDArray[np.float64], int]  # of squares, (matrices, columns), and of how many each


@dataclass(frozen=True)
class InputPowers:
    """The mean square of the inputs of each weight of an ONNX model, for the samples of `inputs`.

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

    def of(self, name: str, shape: Shape) -> FloatArray | None:
        """Return E[x_j^2] of the values of a weight, ``(matrices, columns)``; None where unknown.

        Where inputs lie along the first of two axes, a row of the weight is a matrix of one column.
        Raises ValueError where the inputs do not fit the model.
        """
        model = self._model
        state = tuple(file_state(path) for path in (str(model.path), *model.input_files()))
        importance = _measure_cached(model, state).get(name)
        if importance is None or prod(shape) % importance.size:
            return None
        return importance


class _Layer(NamedTuple):
    """A weight, the edge of its inputs, and how to sum up the squares of those.

    An edge that is not computed is an input of the graph.
    """

    weight: str
    edge: str
    is_computed: bool
    sum_squares: Callable[[NDArray[Any]], Sums]


@lru_cache(maxsize=1)
def _measure_cached(model: OnnxModel, state: Hashable) -> Mapping[str, FloatArray]:
    """Compute the importance of each weight; `state` is that of the files."""
    del state
    with readable(str(model.path), "onnx"):
        layers = list(_find_layers(str(model.path)))
    edges = dict.fromkeys(layer.edge for layer in layers if layer.is_computed)
    sums: dict[str, Sums] = {}
    for batch, arrays in model.compute_edges([*edges]) if layers else ():
        for layer in layers:
            x = arrays.get(layer.edge, batch.feed.get(layer.edge))
            if x is not None:
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
                sum_squares = _choose_sums(node, place, weight, axes.get(weight.name))
                if sum_squares:
                    is_computed = scope.find_producer(edge) is not None
                    yield _Layer(weight.name, edge, is_computed, sum_squares)


def _choose_sums(
    node: Any, place: int, weight: Constant, axis: int | None
) -> Callable[[NDArray[Any]], Sums] | None:
    """Return how the squares of the inputs of a weight are summed up; None of other operators.

    `axis` is that of the weight along which inputs lie, None where layers that share it differ.
    """
    attributes, n_axes = read_attributes(node), len(weight.shape)
    if node.op_type == "Conv" and place == 1 and n_axes > 2:
        return partial(_sum_patches, shape=weight.shape, attributes=attributes)
    if n_axes != 2 or axis is None:
        return None
    if node.op_type == "MatMul":
        return partial(_sum_linear, axis=(-2, -1)[place], is_column=axis == 0)
    if node.op_type == "Gemm":
        # Of A the inputs lie along axis 1, of B along axis 0, unless they are transposed.
        of_edge = attributes.get("transA", 0) == 0 if place else attributes.get("transB", 0) != 0
        return partial(_sum_linear, axis=int(of_edge), is_column=axis == 0)
    return None


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
