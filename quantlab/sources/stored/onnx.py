"""ONNX models whose weights are in codes: DequantizeLinear, MatMulInteger, MatMulNBits.

``W = (q - zero_point) * scale``, of one scale, one an index of an axis, or one a block along it
(ONNX, operator DequantizeLinear); MatMulNBits is ONNX Runtime's.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray
from quantlab.sources.onnx import CODES, NIBBLES, Graph, Initializer, graph
from quantlab.sources.onnx import FLOATS as KINDS
from quantlab.sources.stored.file import StoredFile
from quantlab.sources.stored.tensor import (
    FLOATS,
    Config,
    MisfitError,
    StoredTensor,
    Which,
    dense,
    guarded,
    require_parts,
    row_width,
)
from quantlab.sources.tensor import Tensor

EIGHT_BITS, SCALES = ("FLOAT8E4M3FN", "FLOAT8E5M2"), ("FLOAT", "FLOAT16", "BFLOAT16")
WIDTHS = (2, 4, 8)  # of MatMulNBits
ENDS = re.compile(r"(_DQ)?_Q\d+$|_quantized$|_quant$")  # what follows the name of the original


class OnnxFile(StoredFile):
    """An ONNX model, its data in files beside it or not."""

    format = "onnx"
    needs = ("onnx", "ml_dtypes")

    def _stored(self) -> list[StoredTensor]:
        return list(_decoded(graph(self.path)))


def _decoded(model: Graph) -> Iterator[StoredTensor]:
    used: set[str] = set()
    for found in (*_of_nodes(model), *_dynamic(model)):
        codes, *others = (part.name for part in found.parts)
        if codes not in used:
            used |= {codes, *others}
            yield found
    for each in model.initializers.values():
        if each.kind in KINDS and each.name not in used:
            yield dense(each.open(), each.kind)


def _of_nodes(model: Graph) -> Iterator[StoredTensor]:
    """Yield the weights that nodes decode."""
    decoders = {"DequantizeLinear": (0, _linear), "MatMulNBits": (1, _n_bits)}
    for node in model.nodes:
        first, decode = decoders.get(node.op_type, (0, None))
        inputs = list(node.input)[first:]
        if decode and inputs and inputs[0] in model.initializers:
            keys = zip(("codes", "scale", "zero_point", "g_idx"), inputs, strict=False)
            held = {
                key: model.initializers[name] for key, name in keys if name in model.initializers
            }
            yield _stored(held, _attributes(node), decode)


def _dynamic(model: Graph) -> Iterator[StoredTensor]:
    """Yield the weights of nodes that multiply integers; scales are beside them by name alone."""
    axes = {"MatMulInteger": -1, "ConvInteger": 0}
    for node in model.nodes:
        name = node.input[1] if node.op_type in axes else ""
        base = name.removesuffix("_quantized")
        if name in model.initializers and f"{base}_scale" in model.initializers:
            others = {key: f"{base}_{key}" for key in ("scale", "zero_point")}
            held = {k: model.initializers[n] for k, n in others.items() if n in model.initializers}
            codes = model.initializers[name]
            yield _stored({"codes": codes, **held}, {"axis": axes[node.op_type]}, _linear)


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _stored(held: dict[str, Initializer], attributes: dict[str, Any], decode: Any) -> StoredTensor:
    kinds = {key: (each.kind, each.shape) for key, each in held.items()}
    known = {key: each for key, each in held.items() if each.kind in (*CODES, *KINDS)}
    parts = {key: each.open() for key, each in known.items()}
    name = ENDS.sub("", held["codes"].name)
    return guarded(name, parts, decode, attributes | {"kinds": kinds})


def _linear(name: str, parts: dict[str, Tensor], node: Config) -> StoredTensor:
    kinds, axis, block = node["kinds"], node.get("axis", 1), node.get("block_size", 0)
    _require_kinds(kinds)
    if type(axis) is not int or type(block) is not int or block < 0:
        raise MisfitError(f"has the axis {axis!r} and blocks of {block!r}, which make no sense")
    codes, scale = parts["codes"].array, parts["scale"].array
    kind, shape = kinds["codes"]
    zero = _whole(parts["zero_point"], *kinds["zero_point"]) if "zero_point" in parts else None
    of_scale = _Spread(scale, shape, axis, block)
    of_zero = None if zero is None else _Spread(zero, shape, axis, block)
    width = row_width(shape)

    def rows(which: Which) -> FloatArray:
        q = _rows(codes, which, width, kind)
        if of_zero is not None:
            q = q - of_zero.rows(which)
        values = q.astype(np.float32) * of_scale.rows(which).astype(np.float32)
        return values.astype(scale.dtype).astype(np.float32)

    sharing = f"blocks of {block}" if block else "one scale" if scale.size == 1 else "per channel"
    return StoredTensor(name, shape, f"{kind}, {sharing}", tuple(parts.values()), rows)


def _require_kinds(kinds: dict[str, Any]) -> None:
    """Raise MisfitError unless codes, scale and zero point are of types that make sense."""
    allowed = {"codes": (*CODES, *EIGHT_BITS), "scale": SCALES, "zero_point": (*CODES, *EIGHT_BITS)}
    for key in allowed.keys() & {"codes", "scale", *kinds}:
        if key not in kinds:
            raise MisfitError(f"has no {key}")
        if kinds[key][0] not in allowed[key]:
            raise MisfitError(f"has a {key} of {kinds[key][0]}, which makes no sense")


def _rows(codes: NDArray[Any], which: Which, width: int, kind: str) -> NDArray[Any]:
    """Return the codes of some rows, numbers themselves where they are floats."""
    if kind in EIGHT_BITS:
        return codes.reshape(-1, width)[which].astype(np.float32)
    if kind not in NIBBLES:
        return codes.reshape(-1, width)[which].astype(np.int32)
    places = which[:, None] * width + np.arange(width)
    found = ((codes[places // 2] >> (4 * (places % 2)).astype(np.uint8)) & 15).astype(np.int32)
    return np.where(found > 7, found - 16, found) if kind == "INT4" else found


def _whole(part: Tensor, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    width = prod(shape)
    return _rows(part.array.reshape(-1), np.arange(1), width, kind).reshape(shape)


class _Spread:
    """A scale or zero point of each value of some rows of a tensor."""

    def __init__(self, values: NDArray[Any], shape: tuple[int, ...], axis: int, block: int) -> None:
        n = len(shape)
        if values.size == 1:
            self.values, blocks = values.reshape((1,) * n), (1,) * n
        elif not -n <= axis < n:
            raise MisfitError(f"has an axis {axis} that its shape {list(shape)} does not have")
        elif block:
            blocks = tuple(block if d == axis % n else 1 for d in range(n))
            needed = tuple(-(-each // b) for each, b in zip(shape, blocks, strict=True))
            if values.shape != needed:
                raise MisfitError(f"has scales of {list(values.shape)}, where {list(needed)} fit")
            self.values = values
        elif values.shape != (shape[axis],):
            raise MisfitError(
                f"has scales of {list(values.shape)} for axis {axis} of {list(shape)}"
            )
        else:
            self.values = values.reshape([-1 if d == axis % n else 1 for d in range(n)])
            blocks = (1,) * n
        self.shape, self.blocks = shape, blocks

    def rows(self, which: Which) -> NDArray[Any]:
        """Return what broadcasts to the values of some rows."""
        places = [*np.unravel_index(which, self.shape[:-1])] if len(self.shape) > 1 else []
        last = np.arange(self.shape[-1]) if self.shape else np.arange(1)
        index = [each[:, None] for each in places] + [last[None, :]]
        held = (
            np.zeros_like(each) if n == 1 else each // block
            for each, n, block in zip(index, self.values.shape, self.blocks, strict=True)
        )
        return self.values[tuple(held)] if self.values.ndim else self.values


def _n_bits(name: str, parts: dict[str, Tensor], node: Config) -> StoredTensor:
    """Return the weight of a MatMulNBits, ``[K, N]``, each column of it in blocks."""
    codes, scale = require_parts(parts, codes=("uint8",), scale=FLOATS)
    numbers = [node.get(key) for key in ("K", "N", "bits", "block_size")]
    if not all(isinstance(each, int) and each > 0 for each in numbers) or numbers[2] not in WIDTHS:
        raise MisfitError(f"has {numbers[2]} bits in blocks of {numbers[3]}, which are not decoded")
    inputs, outputs, bits, block = (int(each or 0) for each in numbers)
    blocks, a_byte = -(-inputs // block), 8 // bits
    if codes.size != outputs * blocks * block // a_byte or scale.size != outputs * blocks:
        raise MisfitError(
            f"has codes of {list(codes.shape)} and scales of {list(scale.shape)} for "
            f"{inputs} inputs and {outputs} outputs, which do not fit"
        )
    codes, scale = codes.reshape(outputs, blocks, -1), scale.reshape(outputs, blocks)
    zero = _zero_points(parts, outputs, blocks, bits)

    groups = _groups(parts, inputs, block)
    floats = "g_idx" in parts or ("zero_point" in parts and parts["zero_point"].dtype != "uint8")

    def rows(which: Which) -> FloatArray:
        of, place = which // block, which % block
        q = (codes[:, of, place // a_byte] >> (bits * (place % a_byte))) & (2**bits - 1)
        scales, zeros = scale[:, groups[which]].astype(np.float32), zero[:, groups[which]]
        if floats:  # as ONNX Runtime has it
            values = q.astype(np.float32) * scales - zeros * scales
        else:
            values = (q.astype(np.float32) - zeros) * scales
        return np.ascontiguousarray(values.astype(scale.dtype).T, np.float32)

    dtype = f"MatMulNBits {bits} bits, blocks of {block}"
    return StoredTensor(name, (inputs, outputs), dtype, tuple(parts.values()), rows)


def _groups(parts: dict[str, Tensor], inputs: int, block: int) -> NDArray[Any]:
    """Return the block whose scale each input has."""
    if "g_idx" not in parts:
        return np.arange(inputs) // block
    if "zero_point" in parts:
        raise MisfitError("has a g_idx beside zero points, which is not decoded")
    (of,) = require_parts(parts, g_idx=("int32",))
    if of.size < inputs or int(of.min()) < 0 or int(of.max()) >= -(-inputs // block):
        raise MisfitError(f"has a g_idx of {list(of.shape)} that names no block")
    return of.reshape(-1)


def _zero_points(
    parts: dict[str, Tensor], outputs: int, blocks: int, bits: int
) -> NDArray[np.float32]:
    """Return the zero point of each block, half the range where there is none."""
    if "zero_point" not in parts:
        return np.full((outputs, blocks), 2 ** (bits - 1), np.float32)
    held = parts["zero_point"].array
    if held.dtype != np.uint8:
        if held.size != outputs * blocks:
            raise MisfitError(f"has zero points of {list(held.shape)} for {blocks} blocks a column")
        return held.reshape(outputs, blocks).astype(np.float32)
    a_byte = 8 // bits
    if held.size != outputs * -(-blocks // a_byte):
        raise MisfitError(f"has zero points of {list(held.shape)} for {blocks} blocks a column")
    octets, of = held.reshape(outputs, -1), np.arange(blocks)
    return ((octets[:, of // a_byte] >> (bits * (of % a_byte))) & (2**bits - 1)).astype(np.float32)
