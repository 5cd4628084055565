"""The symmetric grid of GPTQModel, which uses all codes.

::

    scale = 2 max|x| / (2^n - 1),    q = clip(rint(x / scale), -2^(n-1), 2^(n-1) - 1)

The range ends half a step beyond the codes. Its asymmetric grid is `uniform.Asymmetric`. Source:
``Quantizer.find_params`` of GPTQModel 7.3.4, which halves the scale of a block that has no negative
value, so that it saturates; that is left out.
"""

from dataclasses import dataclass

from quantlab.formats.element import BlockParams, Bounds, RoundScale
from quantlab.formats.uniform import Symmetric, code_range


@dataclass(frozen=True)
class GptqSymmetric(Symmetric):
    """Zero point 0; no code stays unused."""

    def fit(self, bounds: Bounds, store: RoundScale) -> BlockParams:
        """Map the larger magnitude of each range to half a step beyond the largest code."""
        qmin, qmax = code_range(self.n_bits)
        absmax = bounds.absmax * (2 * qmax / (qmax - qmin))
        return super().fit(Bounds(-absmax, absmax, bounds.min_magnitude), store)
