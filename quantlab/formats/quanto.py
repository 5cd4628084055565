"""optimum-quanto's qint2 and qint4, by its default, the MaxOptimizer.

::

    scale = (hi - lo) / (2^n - 1),  shift = -lo
    q     = clip(rint((x + shift) / scale), 0, 2^n - 1);  x_hat = scale q - shift

Each step is rounded to the type of the tensor. Its qint8 is ``mode=sym block=channel`` in 8 bits.
"""

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.formats.grouped import (
    FLOAT_TYPES,
    GroupCodec,
    Groups,
    GroupValues,
    group_ends,
    require_option,
    require_widths,
    round_to_type,
)

WIDTHS, GROUPS = (2, 4), (32, 64, 96, 128)  # that its layers choose, the largest that fits


class QuantoQint(GroupCodec):
    """Groups with a scale and a shift of the type of the tensor, or of `dtype`."""

    runtime, mode = "quanto", "quanto/qint"

    def __init__(self, n_bits: int, group_size: int, dtype: str | None = None) -> None:
        require_widths(n_bits, WIDTHS, self.mode)
        require_option("mode.group_size", group_size, GROUPS, self.mode)
        require_option("mode.dtype", dtype, (None, *FLOAT_TYPES), self.mode)
        self.n_bits, self.group_size, self.dtype = n_bits, group_size, dtype

    def count_bits(self, groups: Groups) -> int:
        """Return the size of codes, scales and shifts."""
        return self.n_bits * groups.size + 2 * groups.dtype.bits * groups.n_groups

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct groups; all codes of a constant one are 0."""
        dtype, qmax = groups.dtype, np.float32(2**self.n_bits - 1)
        lo, hi = group_ends(groups.x)
        scale = round_to_type(round_to_type(hi - lo, dtype) / qmax, dtype)
        q = round_to_type(groups.x - lo, dtype)
        q /= np.where(scale > 0, scale, np.float32(np.inf))
        q = np.rint(round_to_type(q, dtype))
        np.clip(q, 0, qmax, out=q)
        q *= scale
        q = round_to_type(q, dtype)
        q += lo
        return round_to_type(q, dtype)
