"""ONNX Runtime: a script that quantizes a model with its ``MatMulNBitsQuantizer``.

``mode=onnx/matmulnbits`` is its own rule, and the figures are those of the result. Weights become
inputs of MatMulNBits in blocks along K, the inputs of a layer; with a third argument, QDQ, those in
4 bits become inputs of DequantizeLinear, which other runtimes read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from quantlab.conf import load_option
from quantlab.formats.matmul_nbits import OnnxMatMulNBits
from quantlab.plans.options import Assignment, Original
from quantlab.plans.runtimes.runtime import FileSize, Runtime, own_spec
from quantlab.sources.file import readable
from quantlab.sources.onnx_graph import as_text, input_name
from quantlab.sources.onnx_proto import count_bytes, make_placeholder, read_model

SCRIPT = '''"""Quantize an ONNX model as planned: python {file} MODEL.onnx OUT.onnx [QDQ]."""
import sys

import onnx
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

WEIGHTS = {{  # bits, block size, symmetric
{weights}}}


def find_nodes(graph):
    """Yield the nodes of a graph, and of the bodies of If, Loop and Scan in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from find_nodes(body)


path, out, *form = sys.argv[1:]
model = onnx.load(path)
nodes = list(find_nodes(model.graph))
matmuls = [node for node in nodes if node.op_type == "MatMul"]
for number, node in enumerate(nodes):
    node.name = node.name or f"node_{{number}}"
for name in set(WEIGHTS) - {{node.input[1] for node in matmuls}}:
    print(f"no MatMul multiplies by {{name}}, which stays as it is", file=sys.stderr)
for settings in set(WEIGHTS.values()):
    bits, block_size, symmetric = settings
    others = [node.name for node in matmuls if WEIGHTS.get(node.input[1]) != settings]
    quantizer = MatMulNBitsQuantizer(
        model, bits, block_size, symmetric, nodes_to_exclude=others,
        quant_format=QuantFormat[form[0]] if form and bits == 4 else QuantFormat.QOperator,
    )
    quantizer.process()
    model = quantizer.model.model
n_bytes = sum(tensor.ByteSize() for tensor in model.graph.initializer)
onnx.save(model, out, save_as_external_data=n_bytes >= {max_bytes})  # protobuf writes 2 GiB at most
'''
MATRIX_AXES = 2
ONNX_SUFFIX = ".onnx"
OPERATORS = "com.microsoft"  # domain of MatMulNBits
MAX_BYTES = 2**31 - 2**24  # protobuf writes 2 GiB at most, and nodes come on top of tensors


class OnnxRuntime(Runtime):
    """MatMulNBits, and DequantizeLinear in blocks, of the weights of MatMul."""

    name = "onnxruntime"
    file = "plan.onnxruntime.py"
    hint = "mode=onnx/matmulnbits mode.group_size=32,128 n_bits=4,8"
    scope = "an ONNX model with dist=file/onnx, whose MatMul have weights that are matrices"
    call = "python {quoted} MODEL.onnx OUT.onnx"

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why a tensor is not quantized, None if it is."""
        if not tensor.is_float:
            return "dtype"
        return None if len(tensor.shape) == MATRIX_AXES else "layer"

    def config(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the arguments of the quantizer, None for a rule that is not its own."""
        spec = own_spec(assignment, (OnnxMatMulNBits.mode,))
        if spec is None or spec.setting("mode.dtype"):
            return None
        option = load_option("mode", spec.mode) or {}
        symmetric = bool(spec.setting("mode.symmetric", option.get("symmetric")))
        return {"bits": spec.n_bits, "block_size": spec.block_size, "is_symmetric": symmetric}

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the script."""
        lines = [
            f"    {name!r}: {tuple(config.values())},\n"
            for name, config in self._configs(assignments).items()
        ]
        about = {"file": self.file, "weights": "".join(lines), "max_bytes": MAX_BYTES}
        return SCRIPT.format(**about).encode()

    def file_size(self, assignments: Iterable[Assignment], path: str) -> FileSize | None:
        """Return the size of what the script writes of an ONNX model, without ``QDQ``.

        Of almost 2 GiB or more it is about that of two files.
        """
        if not path.endswith(ONNX_SUFFIX):
            return None
        with readable(path, "onnx"):
            model = read_model(path)
            _Rewriting(path, self._configs(assignments)).rewrite(model)
            n_bytes = count_bytes(model, path)
        return FileSize(n_bytes, n_bytes < MAX_BYTES)

    def _configs(self, assignments: Iterable[Assignment]) -> dict[str, dict[str, Any]]:
        """Return the arguments of the quantizer, by the weights that it takes."""
        configs = {
            part.tensor.name: self.config(part)
            for part in assignments
            if self.refuse_tensor(part.tensor) is None
        }
        return {name: config for name, config in configs.items() if config}


@dataclass(frozen=True)
class _Rewriting:
    """What the script makes of a model without its values, which `configs` name weights of."""

    path: str
    configs: Mapping[str, Mapping[str, Any]]

    def rewrite(self, model: Any) -> None:
        """Name nodes, put MatMulNBits in place of MatMul, and drop what no node takes."""
        for number, node in enumerate(_find_nodes(model.graph)):
            node.name = node.name or f"node_{number}"
        if self.configs:
            if all(opset.domain != OPERATORS for opset in model.opset_import):
                model.opset_import.add(domain=OPERATORS, version=1)
            self._replace(model.graph, ())
            _drop_unused(model.graph)

    def _replace(self, graph: Any, around: Sequence[Any]) -> None:
        """Replace nodes of a graph, and of the bodies in it."""
        owners = (graph, *around)
        nodes = []
        for node in graph.node:
            bodies = list(_bodies(node))
            for body in bodies:
                self._replace(body, owners)
            nodes.append(_copy_node(node) if bodies else self._quantize(node, owners))
        del graph.node[:]
        graph.node.extend(nodes)

    def _quantize(self, node: Any, owners: Sequence[Any]) -> Any:
        """Return the node in place of one; it stays unless it multiplies by a weight to be."""
        name = input_name(node, 1)
        config = self.configs.get(name) if node.op_type == "MatMul" else None
        found = ((owner, each) for owner in owners for each in owner.initializer)
        owner, weight = next(
            (pair for pair in found if as_text(pair[1].name) == name), (None, None)
        )
        if config is None or owner is None or weight is None:
            return node
        parts = list(self._parts(weight, **config))
        owner.initializer.extend(parts)
        return _make_matmul(node, weight, [part.name for part in parts], config)

    def _parts(self, weight: Any, bits: int, block_size: int, is_symmetric: bool) -> Iterator[Any]:
        """Yield the codes of a weight, its scales, and zero points where it has them."""
        from onnx import TensorProto, helper

        rows, columns = weight.dims
        n_blocks = -(-rows // block_size)
        octet, kind = TensorProto.UINT8, weight.data_type
        width = helper.tensor_dtype_to_np_dtype(kind).itemsize
        shape = columns, n_blocks, block_size * bits // 8
        yield self._placeholder(weight, f"_Q{bits}", octet, shape, 1)
        yield self._placeholder(weight, "_scales", kind, (columns, n_blocks), width)
        if not is_symmetric:
            packed = -(-n_blocks * bits // 8)
            yield self._placeholder(weight, "_zero_points", octet, (columns, packed), 1)

    def _placeholder(
        self, weight: Any, suffix: str, kind: int, shape: Sequence[int], width: int
    ) -> Any:
        name = as_text(weight.name) + suffix
        return make_placeholder(self.path, name, kind, shape, width * prod(shape))


def _make_matmul(node: Any, weight: Any, parts: Sequence[str], config: Mapping[str, Any]) -> Any:
    """Return the MatMulNBits that computes what a MatMul does."""
    from onnx import helper

    rows, columns = weight.dims
    bits, block_size = config["bits"], config["block_size"]
    return helper.make_node(
        "MatMulNBits", [node.input[0], *parts], [node.output[0]],
        name=f"{as_text(node.name)}_Q{bits}", domain=OPERATORS,
        K=rows, N=columns, bits=bits, block_size=block_size,
    )  # fmt: skip


def _find_nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, and of the bodies in it, as the script does."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _find_nodes(body)


def _bodies(node: Any) -> Iterator[Any]:
    """Yield the graphs of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _copy_node(node: Any) -> Any:
    """Return a node with bodies as the quantizer makes it again, without its documentation."""
    from onnx import helper

    copy = helper.make_node(node.op_type, node.input, node.output, name=node.name)
    copy.attribute.extend(node.attribute)
    return copy


def _drop_unused(graph: Any) -> set[str]:
    """Drop the initializers that no node takes; return the names that come from around a graph."""
    taken = {name for node in graph.node for name in node.input if name}
    taken |= {output.name for output in graph.output}
    taken = taken.union(*(_drop_unused(body) for node in graph.node for body in _bodies(node)))
    taken -= {name for node in graph.node for name in node.output}
    kept: dict[str, Any] = {}
    for tensor in graph.initializer:
        if tensor.name in taken:
            kept.setdefault(tensor.name, tensor)
    dropped = {tensor.name for tensor in graph.initializer} - kept.keys()
    inputs = [value for value in graph.input if value.name not in dropped]
    for field, values in ((graph.initializer, list(kept.values())), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    return taken - kept.keys() - {value.name for value in inputs}
