"""The round trip of one tensor, measured: tensor -> codes -> figures."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab import metrics, quant, rank
from quantlab.dist import Distribution
from quantlab.predict import Expected, predict
from quantlab.quant import FloatArray, Params, Quantizer

BLOCK = 2**16  # elements summed at once, in float64, before the blocks are combined
HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class Experiment:
    """One combination of tensors and quantizer, and how to look at it.

    `rel_threshold` is the magnitude below which a value has no relative error.
    """

    dist: Distribution
    quantizer: Quantizer
    k: int
    rel_threshold: float

    def __post_init__(self) -> None:
        """Raise ValueError when a setting is out of range."""
        rank.require_k(self.k)
        metrics.require_threshold(self.rel_threshold)

    def run(self) -> dict[str, dict[str, Any]]:
        """Measure each tensor; the results are plain JSON values under the tensors' names."""
        return {
            name: measure(name, x, self.quantizer, self.k, self.rel_threshold, self.dist.expected)
            for name, x in self.dist.tensors()
        }


def measure(
    name: str,
    x: FloatArray,
    quantizer: Quantizer,
    k: int = 10,
    rel_threshold: float = 1e-8,
    expected: Expected | None = None,
) -> dict[str, Any]:
    """Return what one round trip of `x`, of any shape, costs.

    Raises ValueError, naming the tensor, when it is empty or not finite.
    """
    lo, hi = quant.value_range(x, name)
    params = quantizer.choose(lo, hi)
    unclipped = quant.unclipped_codes(x, params)
    q = quant.saturate(unclipped, quantizer.n_bits)
    x_hat = quant.dequantize(q, params)
    evidence = metrics.Evidence(
        sums=metrics.total(_block_sums(x, x_hat, rel_threshold)),
        abs_err=np.abs(x_hat - x).astype(np.float64).ravel(),
        code_counts=np.unique_counts(q).counts,
        clipped=int(np.count_nonzero(unclipped != q)),
        scale=float(params.scale),
    )
    measured, reasons = metrics.figures(evidence)
    return {
        "shape": list(x.shape),
        "dtype": str(x.dtype),
        "n_elements": int(x.size),
        "sha256": hashlib.sha256(np.ascontiguousarray(x).data).hexdigest(),
        "range": [lo, hi],
        "params": _params(params, quantizer),
        "predicted": _predicted(expected, quantizer) if expected else None,
        "measured": measured | (_landmark(expected, quantizer, params) if expected else {}),
        "reasons": reasons,
        "rank": rank.stability(x, x_hat, k),
        "error_histogram": error_histogram(evidence.abs_err, evidence.scale),
    }


def error_histogram(abs_err: NDArray[np.float64], scale: float) -> dict[str, Any]:
    """Count |x_hat - x| in equal bins over [0, scale / 2], and what lies beyond."""
    counts, edges = np.histogram(abs_err, bins=HISTOGRAM_BINS, range=(0, scale / 2))
    return {
        "upper": float(edges[-1]),
        "counts": counts.tolist(),
        "overflow": int(abs_err.size - counts.sum()),
    }


def _block_sums(x: FloatArray, x_hat: FloatArray, threshold: float) -> Iterator[metrics.Sums]:
    x, x_hat = x.ravel(), x_hat.ravel()
    for start in range(0, x.size, BLOCK):
        block = slice(start, start + BLOCK)
        yield metrics.block_sums(x[block], x_hat[block], threshold)


def _params(params: Params, quantizer: Quantizer) -> dict[str, Any]:
    qmin, qmax = quant.code_range(quantizer.n_bits)
    return params._asdict() | {"scale": float(params.scale), "qmin": qmin, "qmax": qmax}


def _predicted(expected: Expected, quantizer: Quantizer) -> dict[str, Any]:
    step = float(quantizer.choose(*expected.range()).scale)
    figures = predict(step, expected.rms(), expected.landmark)
    return figures | {"landmark": expected.landmark, "words": expected.words}


def _landmark(expected: Expected, quantizer: Quantizer, params: Params) -> dict[str, float]:
    """Return the relative error of the landmark value itself under the parameters chosen."""
    value = np.float32(expected.landmark)
    q = quant.quantize(value, params, quantizer.n_bits)
    return {"landmark_rel_err": float(np.abs(quant.dequantize(q, params) - value) / value)}
