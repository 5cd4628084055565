"""torchao's integer weights, by the rules of its tensor subclasses.

::

    int4   scale = (hi - lo) / 15;  zero = lo + 8 scale           Int4TilePackedTo4dTensor, tinygemm
           q     = clip(rint((x - (zero - 8 scale)) / scale), 0, 15);  x_hat = (q - 8) scale + zero
    int8   scale = max|x| / 127.5, a row;  z = 0                                         Int8Tensor
    intx   symmetric   scale = max|x| / ((2^n - 1) / 2);  z = 0             IntxUnpackedToInt8Tensor
           asymmetric  scale = (hi - lo) / (2^n - 1);  z = qmin - rint(lo / scale), clipped;
                       the range is widened to 0
    both   q     = clip(rint(x (1 / scale)) + z, qmin, qmax);  x_hat = (q - z) scale

Every step is rounded to the type of the tensor, but those of int8 with its scale, which is float32.
A scale is at least the smallest normal number of that type, that of int8 2^-23.
"""

from math import ldexp

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.formats.grouped import (
    GroupCodec,
    Groups,
    GroupValues,
    group_absmax,
    group_ends,
    require_option,
    round_to_type,
)
from quantlab.formats.scales import BFLOAT16, FLOAT32, FLOAT_TYPES, FloatType
from quantlab.formats.uniform import code_range

INT4_GROUPS, INT4_MIDDLE = (32, 64, 128, 256), np.float32(8)
INT8_MIN_SCALE = np.float32(2.0**-23)
SYMMETRIC, ASYMMETRIC = MAPPINGS = "symmetric", "asymmetric"


class TorchaoInt4(GroupCodec):
    """Groups with a scale and a float zero point, all of it in bfloat16, as tinygemm takes it."""

    runtime, mode, widths, dtype = "torchao", "torchao/int4", (4,), BFLOAT16.name

    def __init__(self, n_bits: int, group_size: int) -> None:
        super().__init__(n_bits)
        require_option("mode.group_size", group_size, INT4_GROUPS, self.mode)
        self.group_size = group_size

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct groups."""
        x, dtype = groups.x, groups.dtype
        lo, hi = group_ends(x)
        qmax = np.float32(2**self.n_bits - 1)
        scale = _round_scale(round_to_type(hi - lo, dtype) / qmax, dtype)
        zero = round_to_type(lo + scale * INT4_MIDDLE, dtype)
        q = x - round_to_type(zero - scale * INT4_MIDDLE, dtype)
        q = round_to_type(q, dtype)
        q /= scale
        q = np.rint(round_to_type(q, dtype))
        np.clip(q, 0, qmax, out=q)
        q -= INT4_MIDDLE
        q *= scale
        q = round_to_type(q, dtype)
        q += zero
        return round_to_type(q, dtype)


class TorchaoInt8(GroupCodec):
    """A float32 scale a row, symmetric; the weights of ``Int8WeightOnlyConfig``."""

    runtime, mode, widths, group_bits = "torchao", "torchao/int8", (8,), FLOAT32.bits

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct rows."""
        x, dtype = groups.x, groups.dtype
        qmin, qmax = code_range(self.n_bits)
        scale = round_to_type(group_absmax(x) / np.float32((qmax - qmin) / 2), dtype)
        scale = np.maximum(scale, INT8_MIN_SCALE)
        q = x * (np.float32(1) / scale)
        np.rint(q, out=q)
        np.clip(q, qmin, qmax, out=q)
        q *= scale
        return round_to_type(q, dtype)


class TorchaoIntx(GroupCodec):
    """Groups, or rows where `group_size` is None, of integers; ``IntxWeightOnlyConfig``.

    `mapping` is symmetric or asymmetric; scales are of the type of the tensor, or of `dtype`.
    """

    runtime, mode, widths = "torchao", "torchao/intx", range(2, 9)

    def __init__(
        self, n_bits: int, mapping: str, group_size: int | None, dtype: str | None = None
    ) -> None:
        super().__init__(n_bits)
        require_option("mode.mapping", mapping, MAPPINGS, self.mode)
        require_option("mode.dtype", dtype, (None, *FLOAT_TYPES), self.mode)
        is_size = group_size is None or (type(group_size) is int and group_size > 0)
        if not is_size:
            raise ValueError(
                f"mode.group_size of mode={self.mode} must be a whole number above 0, or null for "
                f"rows, got {group_size!r}"
            )
        self.mapping, self.group_size, self.dtype = mapping, group_size, dtype

    def count_bits(self, groups: Groups) -> int:
        """Return the size of codes, scales, and zero points of asymmetric ones."""
        zero_point = self.n_bits if self.mapping == ASYMMETRIC else 0
        return self.n_bits * groups.size + (groups.dtype.bits + zero_point) * groups.n_groups

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct groups."""
        x, dtype = groups.x, groups.dtype
        qmin, qmax = code_range(self.n_bits)
        scale, zero_point = self._choose(x, dtype)
        q = x * round_to_type(np.float32(1) / scale, dtype)
        q = np.rint(round_to_type(q, dtype))
        q += zero_point
        np.clip(q, qmin, qmax, out=q)
        q -= zero_point
        q *= scale
        return round_to_type(q, dtype)

    def _choose(self, x: FloatArray, dtype: FloatType) -> tuple[FloatArray, FloatArray]:
        """Choose the scale and the zero point of each group, float32 ``(groups, 1)``."""
        qmin, qmax = code_range(self.n_bits)
        if self.mapping == SYMMETRIC:
            steps = np.float32((qmax - qmin) / 2)
            scale = _round_scale(group_absmax(x) / steps, dtype)
            return scale, np.zeros_like(scale)
        lo, hi = group_ends(x)
        lo, hi = np.minimum(lo, np.float32(0)), np.maximum(hi, np.float32(0))
        scale = _round_scale(round_to_type(hi - lo, dtype) / np.float32(qmax - qmin), dtype)
        zero_point = np.float32(qmin) - np.rint(round_to_type(lo / scale, dtype))
        return scale, np.clip(zero_point, qmin, qmax)


def _round_scale(scale: FloatArray, dtype: FloatType) -> FloatArray:
    """Round scales to a type, and those below its smallest normal number to that."""
    return np.maximum(round_to_type(scale, dtype), np.float32(ldexp(1, dtype.min_exponent)))
