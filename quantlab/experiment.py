"""One combination of tensors and format, measured tensor by tensor."""

from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from quantlab.formats.format import Format
from quantlab.records.record import Outcome
from quantlab.sources.distribution import Distribution
from quantlab.sources.tensor import Tensor
from quantlab.stats import metrics, rank
from quantlab.stats.predict import predict
from quantlab.stats.stream import measure


@dataclass(frozen=True)
class Experiment:
    """One combination of tensors and format, and how to look at it.

    `rel_threshold` is the magnitude below which a value has no relative error; `threads` changes
    the time it takes and nothing else.
    """

    dist: Distribution
    form: Format
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
        outcome = Outcome(skipped=self.dist.skipped(), format=self.form.describe())
        with tqdm(
            total=self.dist.n_bytes(), unit="B", unit_scale=True, delay=1, disable=None, leave=False
        ) as bar:
            for tensor in self.dist.tensors():
                if unfit := self._unfit(tensor):
                    outcome.skipped[tensor.name] = unfit
                    continue
                try:
                    outcome.tensors[tensor.name] = self._measure(tensor, bar)
                except (ValueError, OSError, MemoryError) as reason:
                    outcome.failed[tensor.name] = (
                        str(reason) or f"tensor '{tensor.name}': {reason!r}"
                    )
        return outcome

    def identify(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Return what identifies each tensor that would be measured, and why others would not."""
        skipped, tensors = self.dist.skipped(), {}
        for tensor in self.dist.tensors():
            if unfit := self._unfit(tensor):
                skipped[tensor.name] = unfit
            else:
                tensors[tensor.name] = tensor.identity()
        return tensors, skipped

    def _unfit(self, tensor: Tensor) -> str | None:
        """Return why a tensor cannot be stored in this format, if it cannot."""
        try:
            self.form.block.layout(tensor.shape)
        except ValueError as reason:
            return str(reason)
        return None

    def _measure(self, tensor: Tensor, bar: "tqdm[Any]") -> dict[str, Any]:
        def advance(elements: int) -> None:
            bar.update(elements * tensor.itemsize)

        expected = self.dist.expected
        entry = measure(
            tensor,
            self.form,
            self.k,
            self.rel_threshold,
            self.threads,
            advance,
            landmark=expected.landmark if expected else None,
        )
        predicted = predict(self.form, expected) if expected else None
        return entry | {"sha256": tensor.sha256(), "predicted": predicted}
