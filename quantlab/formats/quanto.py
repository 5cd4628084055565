"""optimum-quanto's qint2 and qint4, by its default, the MaxOptimizer.

::

    scale = (hi - lo) / (2^n - 1),  shift = -lo
    q     = clip(rint((x + shift) / scale), 0, 2^n - 1);  x_hat = scale q - shift

Each step is rounded to the type of the tensor. Its qint8 is ``mode=sym block=channel`` in 8 bits.
"""

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.formats.grouped import AffineGroups, GroupValues, group_ends, round_to_type


class QuantoQint(AffineGroups):
    """Groups with a scale and a shift; of the sizes its layers choose the largest that fits."""

    runtime, mode = "quanto", "quanto/qint"
    widths, sizes = (2, 4), (32, 64, 96, 128)

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
