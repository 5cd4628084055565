"""Weights of ONNX models, floats and codes, also those that stand in files beside them.

A weight is an initializer or a Constant node, of the graph or of a body of If, Loop or Scan in it.
What its operators compute from codes, ``kinds/onnx.py`` decodes.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from quantlab.sources.file import BadFileError, File, FileEntry
from quantlab.sources.kinds.decoding import (
    MisfitError,
    Parts,
    StoredTensor,
    decode_or_fault,
    dense_tensor,
)
from quantlab.sources.kinds.onnx import (
    SCALES,
    Quantization,
    decode_linear,
    decode_lstm,
    decode_n_bits,
)
from quantlab.sources.onnx_graph import (
    MAX_DEPTH,
    MOVES,
    VALUES,
    Constant,
    Graph,
    Scope,
    as_text,
    input_name,
    read_attributes,
    read_graph,
)
from quantlab.sources.pairing import StoredFile

# After the name of the original, in ONNX Runtime's quantizers and Model Optimizer's.
CODES_SUFFIX = re.compile(r"(_DQ)?_Q\d+$|_quantized$|_quant$|_fp[48]$|_[fi][48]$")
OUTPUT_SUFFIX = re.compile(r"_DequantizeLinear_Output$|_dequantized$")
SAME_AXES = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear")
OWN_OUTPUT = re.compile(r"dequant|_output(_\d+)?$|_dq$|^onnx::|^\d+$", re.IGNORECASE)


class WeightInputs(NamedTuple):
    """The places of a weight's codes, scales and zero points among the inputs of an operator.

    Without a place scales are beside the codes by name alone. `axis` is that of scales in one
    dimension.
    """

    codes: int
    scale: int | None
    zero_point: int
    axis: int = -1


WEIGHTS = {
    "QLinearConv": (WeightInputs(3, 4, 5, axis=0),),
    "QLinearMatMul": (WeightInputs(0, 1, 2, axis=-2), WeightInputs(3, 4, 5)),
    "QGemm": (WeightInputs(3, 4, 5),),
    "QAttention": (WeightInputs(1, 4, 7),),
    "DynamicQuantizeMatMul": (WeightInputs(1, 2, 3),),
    "MatMulInteger": (WeightInputs(1, None, 3),),
    "ConvInteger": (WeightInputs(1, None, 3, axis=0),),
    "MatMulIntegerToFloat": (WeightInputs(1, 3, 5),),
    "DynamicQuantizeLSTM": (WeightInputs(1, 8, 9), WeightInputs(2, 10, 11)),
}
SCALE_INPUTS = {  # places of scales and zero points, of activations too
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulNBits": (2, 3, 4),
    "QAttention": (3, 4, 6, 7),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
}
# By operator and place, the axis of a weight along which inputs lie. Those of Conv lie along all
# axes but the first, as rows do.
INPUT_AXES = {
    ("MatMul", 0): -1,
    ("MatMul", 1): -2,
    ("ConvTranspose", 1): 0,
    **{(operator, place): -1 for operator in ("LSTM", "GRU", "RNN") for place in (1, 2)},
}


class Onnx(File):
    """The float tensors of an ONNX model; integers and codes are left out."""

    format = "onnx"
    needs = ("onnx", "ml_dtypes")

    def _entries(self) -> Iterator[FileEntry]:
        graph = read_graph(self.path)
        faults = [constant.fault for constant in graph.constants if constant.kind in VALUES]
        if faults and all(faults):
            raise BadFileError(faults[0] or "")
        axes = find_input_axes(graph)
        for constant in graph.constants:
            yield FileEntry(
                constant.name,
                constant.shape,
                constant.kind,
                constant.open,
                _skip_reason(constant),
                constant.n_bytes,
                numpy_dtype=constant.kind,
                input_axis=axes.get(constant.name),
            )


def _skip_reason(constant: Constant) -> str | None:
    """Return the reason why a constant is not measured; one that is cut fails when measured."""
    if not constant.is_known:
        return f"onnx does not have {constant.kind}"
    if constant.kind == "float4_e2m1fn":
        return "float4_e2m1fn holds codes, which are no values without their scales"
    if constant.kind not in VALUES:
        return f"{constant.kind} is no floating-point type"
    return constant.fault if min(constant.shape, default=0) < 0 else None


def find_input_axes(graph: Graph) -> dict[str, int]:
    """Return the axis along which the inputs of a layer lie, of each weight where it is known.

    It is not where layers that share a weight have it along different axes.
    """
    uses: dict[tuple[int, str], list[_Use]] = {}
    for scope in graph.scopes:
        for node in scope.nodes:
            for place in range(len(node.input)):
                name = input_name(node, place)
                owner = scope.find_owner(name)
                uses.setdefault((id(owner), name), []).append(_Use(scope, node, place))
    axes = {}
    for scope in graph.scopes:
        for name, constant in scope.constants.items():
            found = set(_input_axes(uses, scope, name, len(constant.shape)))
            if len(found) == 1:
                axes[constant.name] = found.pop()
    return axes


class _Use(NamedTuple):
    """A node that takes a tensor as the input at a place."""

    scope: Scope
    node: Any
    place: int


def input_axis(node: Any, place: int) -> int | None:
    """Return the axis of what a node takes at a place along which the inputs of a layer lie.

    None where it is no layer.
    """
    if node.op_type == "Gemm" and place < 2:
        is_transposed = read_attributes(node).get(("transA", "transB")[place], 0)
        return int(bool(is_transposed) == bool(place))
    return INPUT_AXES.get((node.op_type, place))


def _input_axes(
    uses: dict[tuple[int, str], list[_Use]], scope: Scope, name: str, n: int, depth: int = 0
) -> Iterator[int]:
    """Yield the axes of a tensor of `n` axes along which inputs lie, in any layer that takes it."""
    for use in uses.get((id(scope), name), []) if depth < MAX_DEPTH and n > 1 else []:
        axis, operator = input_axis(use.node, use.place), use.node.op_type
        if axis is not None and -n <= axis < n:
            yield axis % n
        elif use.place == 0 and use.node.output and operator in SAME_AXES:
            yield from _input_axes(uses, use.scope, as_text(use.node.output[0]), n, depth + 1)
        elif operator == "Transpose" and use.node.output:
            order = read_attributes(use.node).get("perm", range(n)[::-1])
            if sorted(order) == list(range(n)):
                later = _input_axes(uses, use.scope, as_text(use.node.output[0]), n, depth + 1)
                yield from (order[axis] for axis in later)


class CodedWeight(NamedTuple):
    """A weight in codes, under the name of its original."""

    name: str
    codes: Constant
    decode: Callable[[str], StoredTensor]


class OnnxFile(StoredFile):
    """An ONNX model, its data in files beside it or not."""

    format = "onnx"
    needs = ("onnx", "ml_dtypes")

    def _decode(self) -> Iterator[StoredTensor]:
        graph = read_graph(self.path)
        used = {name for scope in graph.scopes for name in _scale_names(scope)}
        names: set[str] = set()
        for weight in (weight for scope in graph.scopes for weight in _find_weights(scope)):
            if weight.codes.name not in used:
                name = weight.codes.name if weight.name in names else weight.name
                used.add(weight.codes.name)
                names.add(name)
                yield _decode_or_fault(name, partial(weight.decode, name))
        for constant in graph.constants:
            if constant.name not in used and (constant.kind in VALUES or not constant.is_known):
                # Floats beside codes of their own, as of an embedding that is an output layer too.
                is_copy = constant.name in names
                name = f"{constant.name} ({constant.kind})" if is_copy else constant.name
                decode = partial(_decode_dense, constant, name)
                yield _decode_or_fault(name, decode) if constant.fault else decode()


def _decode_dense(constant: Constant, name: str) -> StoredTensor:
    """Return the floats of a constant as they are stored."""
    return replace(dense_tensor(constant.values()), name=name)


def _decode_or_fault(name: str, decode: Callable[[], StoredTensor]) -> StoredTensor:
    return decode_or_fault(Parts(name, {}, {}), lambda _: decode())


def _scale_names(scope: Scope) -> Iterator[str]:
    """Yield the constants that are scales and zero points, of activations too."""
    for node in scope.nodes:
        if as_text(node.op_type).startswith(("QLinear", "QGemm")):
            constants = (scope.find_constant(as_text(name)) for name in node.input)
            # The other inputs are codes.
            yield from (known.name for known in constants if known and known.kind in SCALES)
        for place in SCALE_INPUTS.get(node.op_type, ()):
            yield from (known.name for known in scope.find_behind(input_name(node, place)))
        for inputs in WEIGHTS.get(node.op_type, ()):
            if scale := scope.find_constant(_scale_name(node, inputs)):
                yield scale.name


def _scale_name(node: Any, inputs: WeightInputs) -> str:
    """Return the name of a weight's scales: an input, or the name of its codes with a suffix."""
    if inputs.scale is not None:
        return input_name(node, inputs.scale)
    return f"{input_name(node, inputs.codes).removesuffix('_quantized')}_scale"


def _find_weights(scope: Scope) -> Iterator[CodedWeight]:
    """Yield the weights that nodes dequantize, or multiply in codes."""
    for node in scope.nodes:
        if node.op_type == "DequantizeLinear" and (codes := scope.find_source(input_name(node, 0))):
            output = as_text(node.output[0]) if node.output else ""
            is_original = codes.kind in VALUES and scope.find_producer(input_name(node, 0))
            name = codes.name if is_original else original_name(codes.name, output)
            yield CodedWeight(name, codes, partial(_decode_linear, scope, node, codes))
        elif node.op_type == "MatMulNBits" and (codes := scope.find_constant(input_name(node, 1))):
            name = original_name(codes.name)
            yield CodedWeight(name, codes, partial(_decode_n_bits, scope, node))
        for inputs in WEIGHTS.get(node.op_type, ()):
            codes = scope.find_source(input_name(node, inputs.codes))
            # Without an input of scales, those of another name are unknown.
            is_scaled = inputs.scale is not None or scope.find_constant(_scale_name(node, inputs))
            if codes and is_scaled:
                decode = partial(_decode_multiplied, scope, node, inputs)
                yield CodedWeight(original_name(codes.name), codes, decode)


def _decode_linear(scope: Scope, node: Any, codes: Constant, name: str) -> StoredTensor:
    """Decode the weight of a DequantizeLinear, of its codes where rows of them are looked up."""
    quantization = scope.quantization(node)
    producer = scope.find_producer(input_name(node, 0))
    if not producer or producer.op_type not in MOVES:
        return decode_linear(name, scope.operand(input_name(node, 0), "codes"), quantization)
    if quantization.scale.size != 1:
        raise MisfitError(f"has several scales behind a {producer.op_type}, which is not decoded")
    return decode_linear(name, codes.operand(), quantization)


def _decode_multiplied(scope: Scope, node: Any, inputs: WeightInputs, name: str) -> StoredTensor:
    """Decode a weight of an operator that multiplies codes."""
    zero_point, axis = input_name(node, inputs.zero_point), inputs.axis
    if node.op_type == "QGemm" and read_attributes(node).get("transB"):
        axis = 0
    quantization = Quantization(
        scope.operand(_scale_name(node, inputs), "scale"),
        scope.operand(zero_point, "zero_point") if zero_point else None,
        axis,
        broadcasts=True,
    )
    decode = decode_lstm if node.op_type == "DynamicQuantizeLSTM" else decode_linear
    return decode(name, scope.operand(input_name(node, inputs.codes), "codes"), quantization)


def _decode_n_bits(scope: Scope, node: Any, name: str) -> StoredTensor:
    """Decode the weight of a MatMulNBits."""
    keys = ("codes", "scale", "zero_point", "g_idx")
    constants = {
        key: scope.find_constant(input_name(node, place)) for place, key in enumerate(keys, 1)
    }
    tensors = {key: constant.values() for key, constant in constants.items() if constant}
    return decode_n_bits(Parts(name, tensors, read_attributes(node)))


def original_name(codes: str, output: str = "") -> str:
    """Return the name of the original of codes that are dequantized to `output`.

    Quantizers append a suffix to it. Without one, what is computed may have the original's name,
    unless it is called after the operator.

    >>> original_name("fc.weight_quantized", "fc.weight_DequantizeLinear_Output")
    'fc.weight'
    >>> original_name("packed", "fc.weight")
    'fc.weight'
    >>> original_name("fc.weight", "/fc/DequantizeLinear_output_0")
    'fc.weight'
    """
    base, result = CODES_SUFFIX.sub("", codes), OUTPUT_SUFFIX.sub("", output)
    if base not in ("", codes):
        return base
    is_generated = result == output and OWN_OUTPUT.search(output)
    return codes if not result or is_generated else result
