"""ONNX Runtime: a script that quantizes a model with its ``MatMulNBitsQuantizer``.

``mode=onnx/matmulnbits`` is its own rule, and the figures are those of the result. Weights become
inputs of MatMulNBits in blocks along K, the inputs of a layer; with a third argument, QDQ, those in
4 bits become inputs of DequantizeLinear, which other runtimes read.
"""

from collections.abc import Iterable
from typing import Any

from quantlab.conf import load_option
from quantlab.formats.matmul_nbits import OnnxMatMulNBits
from quantlab.plans.options import Assignment, Original
from quantlab.plans.runtimes.runtime import Runtime, own_spec

SCRIPT = '''"""Quantize an ONNX model as planned: python {file} MODEL.onnx OUT.onnx [QDQ]."""
import sys

import onnx
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

WEIGHTS = {{  # bits, block size, symmetric
{weights}}}

path, out, *form = sys.argv[1:]
model = onnx.load(path)
matmuls = [node for node in model.graph.node if node.op_type == "MatMul"]
for number, node in enumerate(model.graph.node):
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
onnx.save(model, out, save_as_external_data=model.ByteSize() >= 2**31)
'''
MATRIX_AXES = 2


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
        configs = {
            part.tensor.name: self.config(part)
            for part in assignments
            if self.refuse_tensor(part.tensor) is None
        }
        lines = [
            f"    {name!r}: {tuple(config.values())},\n"
            for name, config in configs.items()
            if config
        ]
        return SCRIPT.format(file=self.file, weights="".join(lines)).encode()
