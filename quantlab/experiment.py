"""One combination of tensors and quantizer, measured tensor by tensor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from quantlab.formats import uniform
from quantlab.formats.uniform import Quantizer
from quantlab.records.record import Outcome
from quantlab.sources.distribution import Distribution
from quantlab.sources.expected import Expected
from quantlab.sources.tensor import Tensor
from quantlab.stats import metrics, rank
from quantlab.stats.predict import predict
from quantlab.stats.stream import measure


@dataclass(frozen=True)
class Experiment:
    """One combination of tensors and quantizer, and how to look at it.

    `rel_threshold` is the magnitude below which a value has no relative error; `threads` changes
    the time it takes and nothing else.
    """

    dist: Distribution
    quantizer: Quantizer
    k: int
    rel_threshold: float
    threads: int

    def __post_init__(self) -> None:
        """Raise ValueError when a setting is out of range or there is nothing to measure."""
        self.dist.require_tensors()
        rank.require_k(self.k)
        metrics.require_threshold(self.rel_threshold)
        if not isinstance(self.threads, int) or self.threads < 1:
            raise ValueError(
                f"threads must be a whole number of 1 or more, or null for all cores, "
                f"got {self.threads!r}"
            )

    def run(self) -> Outcome:
        """Measure each tensor; one that cannot be measured costs none of the others."""
        outcome = Outcome(skipped=self.dist.skipped())
        with tqdm(
            total=self.dist.n_bytes(), unit="B", unit_scale=True, delay=1, disable=None, leave=False
        ) as bar:
            for tensor in self.dist.tensors():
                try:
                    outcome.tensors[tensor.name] = self._measure(tensor, bar)
                except (ValueError, OSError, MemoryError) as reason:
                    outcome.failed[tensor.name] = (
                        str(reason) or f"tensor '{tensor.name}': {reason!r}"
                    )
        return outcome

    def _measure(self, tensor: Tensor, bar: "tqdm[Any]") -> dict[str, Any]:
        def advance(elements: int) -> None:
            bar.update(elements * tensor.itemsize)

        entry = measure(tensor, self.quantizer, self.k, self.rel_threshold, self.threads, advance)
        expected = self.dist.expected
        if expected:
            entry["measured"] |= _landmark(expected, self.quantizer, entry["range"])
        return entry | {
            "sha256": tensor.sha256(),
            "predicted": _predicted(expected, self.quantizer) if expected else None,
        }


def _predicted(expected: Expected, quantizer: Quantizer) -> dict[str, Any]:
    step = float(quantizer.choose(*expected.range()).scale)
    figures = predict(step, expected.rms(), expected.landmark)
    return figures | {"landmark": expected.landmark, "words": expected.words}


def _landmark(expected: Expected, quantizer: Quantizer, found: list[float]) -> dict[str, float]:
    """Return the relative error of the landmark value itself under the parameters chosen."""
    value = np.float32(expected.landmark)
    params = quantizer.choose(*found)
    q = uniform.quantize(value, params, quantizer.n_bits)
    return {"landmark_rel_err": float(np.abs(uniform.dequantize(q, params) - value) / value)}
