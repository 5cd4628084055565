"""MLX's affine codes and MXFP4, by the rule of ``mlx.core.quantize`` (its CPU backend).

Affine: the end of a group that is further from 0, its edge, is the bias, the scale has the sign
that leads from there to the other end, and is mended so that 0 is one of the values::

    scale = max((hi - lo) / (2^n - 1), 1e-7), negative where the edge is hi
    q0    = rint(edge / scale);  scale = edge / q0,  bias = edge;  bias = 0 where q0 = 0
    q     = clip(rint((x - bias) / scale), 0, 2^n - 1)
    x_hat = q * scale + bias

All of it in float32; scale and bias are then stored in the type of the tensor, in which x_hat is
computed too, rounded after each step.

MXFP4: groups of 32, ``scale = 2^ceil(log2(max|x| / 6))``, so that nothing saturates; a value half
way between two is the smaller of them. OCP MX rounds the scale down and ties to even.
"""

import numpy as np

from quantlab.formats.element import FloatArray
from quantlab.formats.grouped import (
    AffineGroups,
    GroupCodec,
    GroupValues,
    group_absmax,
    group_ends,
    round_to_type,
)

MIN_SCALE = np.float32(1e-7)
FP4_MAX, EXPONENT_BITS, MIN_EXPONENT = np.float32(6), 8, -127


class MlxAffine(AffineGroups):
    """Groups with a scale and a bias."""

    runtime, mode = "MLX", "mlx/affine"
    widths, sizes = (2, 3, 4, 5, 6, 8), (32, 64, 128)

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct groups; codes are those of the scale before it is stored."""
        x, dtype = groups.x, groups.dtype
        scale, bias = _choose_affine(x, np.float32(2**self.n_bits - 1))
        q = x - bias
        q /= scale
        np.rint(q, out=q)
        np.clip(q, 0, 2**self.n_bits - 1, out=q)
        q *= round_to_type(scale, dtype)
        q = round_to_type(q, dtype)
        q += round_to_type(bias, dtype)
        return round_to_type(q, dtype)


def _choose_affine(x: FloatArray, steps: np.float32) -> tuple[FloatArray, FloatArray]:
    """Choose the scale and the bias of each group, float32 ``(groups, 1)``."""
    lo, hi = group_ends(x)
    is_low = np.abs(lo) > np.abs(hi)
    scale = np.maximum((hi - lo) / steps, MIN_SCALE)
    scale = np.where(is_low, scale, -scale)
    edge = np.where(is_low, lo, hi)
    edge_code = np.rint(edge / scale)
    mended = edge_code != 0
    scale = np.divide(edge, edge_code, out=scale, where=mended)
    return scale, np.where(mended, edge, np.float32(0))


class MlxFp4(GroupCodec):
    """Groups of 32 with a power of two, in which a group of zeros has 1."""

    runtime, mode, widths, group_size, group_bits = "MLX", "mlx/mxfp4", (4,), 32, EXPONENT_BITS

    def reconstruct(self, groups: GroupValues) -> FloatArray:
        """Reconstruct groups."""
        x = groups.x
        absmax = group_absmax(x)
        # In float64 and rounded once, as log2 of a float32 is: it decides next to a power of two.
        exponent = np.ceil(np.log2((absmax / FP4_MAX).astype(np.float64)).astype(np.float32))
        exponent = np.where(absmax > 0, np.maximum(exponent, MIN_EXPONENT), 0)
        scale = np.ldexp(np.float32(1), exponent.astype(np.int32))
        magnitude = np.abs(x)
        magnitude /= scale
        # The step of e2m1 is 1/2, 1 from 2 on and 2 from 4 on; assigning by masks is slow.
        step = np.where(magnitude >= 4, np.float32(1), np.float32(0))
        step += step
        step += magnitude >= 2
        step += np.float32(1)
        step *= np.float32(0.5)
        magnitude /= step
        magnitude -= np.float32(0.5)
        rounded = np.ceil(magnitude, out=magnitude)
        rounded *= step
        rounded *= scale
        return np.copysign(rounded, x, out=rounded)
