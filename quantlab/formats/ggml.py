"""The types of llama.cpp, quantized by its own code.

The library comes with the package xllamacpp, whose module exports the C functions of ggml; they
are called through `ctypes`, which lets other threads work meanwhile. Codes are read back by the
library too, and equal those of ``gguf.quants``, in NumPy, bit for bit (a test).
"""

import ctypes
import re
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape, UnfitError
from quantlab.formats.element import ContradictionError, FloatArray, require_width
from quantlab.formats.format import Codec, NamedTensor, Reconstruction

Octets = NDArray[np.uint8]
PACKAGE = "xllamacpp"
NUMBERS = {  # enum ggml_type of ggml.h
    "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12,
    "q5_k": 13, "q6_k": 14, "iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18, "iq1_s": 19, "iq4_nl": 20,
    "iq3_s": 21, "iq2_s": 22, "iq4_xs": 23, "iq1_m": 29, "tq1_0": 34, "tq2_0": 35, "mxfp4": 39,
    "nvfp4": 40,
}  # fmt: skip
FALLBACKS = {  # of rows that 256 does not divide (tensor_type_fallback of llama.cpp)
    **dict.fromkeys(
        ["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s", "iq1_m", "iq4_xs", "q2_k",
         "q3_k"],
        "iq4_nl",
    ),
    **dict.fromkeys(["tq1_0", "tq2_0"], "q4_0"),
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
}  # fmt: skip
FALLBACK_BLOCK = 32  # of all of them; rows that it does not divide stay in float16
MAX_MAGNITUDE = 2.0**24  # magnitude; far beyond it the library aborts, or its scales are inf


class Importance(Protocol):
    """An importance matrix: the importance of the columns of tensors."""

    @property
    def name(self) -> str:
        """The name of its file."""

    def of(self, name: str, shape: Shape) -> FloatArray | None:
        """Return the importance of each column, ``(matrices, columns)``; None where not known."""


class Ggml(Codec):
    """One type of ggml, by its lower-case name; see `NUMBERS`.

    A row, the last axis of a tensor, must be a multiple of the type's block; where 256 does not
    divide it, another type is taken as llama-quantize does (`FALLBACKS`). Raises ValueError when
    the library is not installed, or the type takes an importance matrix and there is none.
    """

    def __init__(self, type: str, n_bits: int, imatrix: Importance | None = None) -> None:
        if type not in NUMBERS:
            raise ValueError(f"type must be one of {', '.join(NUMBERS)}, got {type!r}")
        require_width(n_bits, [_width(type)], f"mode=ggml/{type}")
        self.type, self.n_bits, self.imatrix = type, n_bits, imatrix
        self._number = NUMBERS[type]
        self._ggml = load_library()
        if self._takes_imatrix and imatrix is None:
            raise ContradictionError(
                f"mode=ggml/{type} takes an importance matrix: add mode.imatrix=FILE"
            )
        self._ggml.ggml_quantize_init(self._number)  # seconds, of the smallest types
        self._traits = self._ggml.ggml_get_type_traits(self._number).contents
        self.versions = {PACKAGE: version(PACKAGE)}
        self.largest = np.inf if type == "mxfp4" else MAX_MAGNITUDE

    @property
    def _takes_imatrix(self) -> bool:
        return bool(self._ggml.ggml_quantize_requires_imatrix(self._number))

    def open(self, tensor: NamedTensor) -> Reconstruction:
        """Return a tensor as the library gives it back; raises UnfitError as llama.cpp does."""
        shape, block = tensor.shape, self._traits.block
        if len(shape) > 1 and self.type in FALLBACKS and shape[-1] % block:
            return self._open_fallback(tensor)
        self._require_rows(shape)
        importance = self.imatrix.of(tensor.name, shape) if self.imatrix else None
        if self.imatrix and importance is None and self._takes_imatrix:
            raise UnfitError(
                f"{self.imatrix.name} has no importance of it, which ggml/{self.type} takes"
            )
        bits = 8 * prod(shape) // block * self._traits.size
        rows = _Rows(self, tensor, importance)
        return Reconstruction(rows.read, self.type, bits, slow=True)

    def _open_fallback(self, tensor: NamedTensor) -> Reconstruction:
        """Return a tensor in the type that llama-quantize takes for rows of its length."""
        columns = tensor.shape[-1]
        if columns % FALLBACK_BLOCK:
            name, opened = "f16", _as_float16(tensor)
        else:
            name = FALLBACKS[self.type]
            opened = Ggml(name, _width(name), self.imatrix).open(tensor)
        remark = f"rows of {columns} values are stored as {name}, as llama-quantize does"
        return replace(opened, remark=remark)

    def _require_rows(self, shape: Shape) -> None:
        if len(shape) < 2:
            raise UnfitError("it has one dimension, which llama.cpp leaves as it is")
        if shape[-1] % self._traits.block:
            raise UnfitError(
                f"its rows of {shape[-1]} values are no multiple of the {self._traits.block} of a "
                f"block of ggml/{self.type}, so that llama.cpp leaves it as it is"
            )

    def quantize(self, x: FloatArray, importance: FloatArray | None = None) -> Octets:
        """Return the codes of float32 rows, ``(rows, bytes a row)``."""
        x = np.ascontiguousarray(x)
        codes = np.empty((len(x), x.shape[1] // self._traits.block * self._traits.size), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._ggml.ggml_quantize_chunk(
            self._number, x.ctypes.data, codes.ctypes.data, 0, *x.shape, weights
        )
        return codes

    def dequantize(self, codes: Octets) -> FloatArray:
        """Return the float32 rows that codes stand for."""
        columns = codes.shape[1] // self._traits.size * self._traits.block
        x_hat = np.empty((len(codes), columns), np.float32)
        self._traits.to_float(codes.ctypes.data, x_hat.ctypes.data, x_hat.size)
        return x_hat


def _width(type: str) -> int:
    """Return the number of bits that a type is named after."""
    digits = re.search(r"\d", type)
    return int(digits[0]) if digits else 0


def _as_float16(tensor: NamedTensor) -> Reconstruction:
    def read(start: int, stop: int) -> FloatArray:
        with np.errstate(over="ignore"):
            return tensor.block(start, stop).astype(np.float16).astype(np.float32)

    return Reconstruction(read, "f16", 16 * prod(tensor.shape))


class _Rows:
    """Any stretch of a tensor through the library.

    Without importance each block is quantized on its own, and a stretch ends with a block; with
    it, some types look at the whole row.
    """

    def __init__(self, ggml: Ggml, tensor: NamedTensor, importance: FloatArray | None) -> None:
        self.ggml, self.tensor, self.importance = ggml, tensor, importance
        block = ggml._traits.block
        self.row = block if importance is None else tensor.shape[-1]
        self.matrix = prod(tensor.shape) // (1 if importance is None else len(importance))

    def read(self, start: int, stop: int) -> FloatArray:
        """Reconstruct elements `start` to `stop`."""
        first, last = start - start % self.row, stop + -stop % self.row
        parts = [self._part(*span) for span in self._of_matrices(first, last)]
        x_hat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return x_hat[start - first : stop - first]

    def _of_matrices(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return a stretch cut where another matrix, such as that of an expert, begins."""
        cuts = range(first - first % self.matrix + self.matrix, last, self.matrix)
        return list(zip((first, *cuts), (*cuts, last), strict=True))

    def _part(self, start: int, stop: int) -> FloatArray:
        width = stop - start if self.importance is None else self.row
        x = self.tensor.block(start, stop).reshape(-1, width)
        if np.abs(x).max() > self.ggml.largest:
            raise ValueError(
                f"tensor '{self.tensor.name}' holds {x.flat[np.abs(x).argmax()]:g}, beyond the "
                f"float16 scales of ggml/{self.ggml.type}"
            )
        weights = None if self.importance is None else self.importance[start // self.matrix]
        return self.ggml.dequantize(self.ggml.quantize(x, weights)).reshape(-1)


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h, but for its end."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


@cache
def load_library() -> Any:
    """Return the functions of ggml that are called, without the Python module around them."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the types of llama.cpp take the package {PACKAGE}: pip install {PACKAGE} gguf"
        )
    name = next(Path(spec.origin).parent.glob(f"{PACKAGE}*.so"))
    ggml = ctypes.CDLL(str(name))
    size, number, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    ggml.ggml_quantize_init.argtypes = [number]
    ggml.ggml_quantize_requires_imatrix.argtypes = [number]
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    ggml.ggml_get_type_traits.argtypes = [number]
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    ggml.ggml_quantize_chunk.argtypes = [number, pointer, pointer, size, size, size, pointer]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    return ggml
