"""The lab's three tensors, seeded (lab 03, block B).

The lab draws all of them from one generator in a fixed order. Each class here reproduces its own
part of that stream alone, bit for bit.

To add a distribution: a class with `expected` and `tensors()` here, and a yaml in ``conf/dist/``
whose ``_target_`` names it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantlab.sources.source import Expected, Source
from quantlab.sources.tensor import Tensor


@dataclass(frozen=True)
class TenseLogits(Source):
    """Logits of a five-tense classifier: the lab's literal vector, or a batch of rows.

    `batch` rows of 5 are uniform in [-3, 5]; without it the shape is (5,).
    """

    seed: int
    batch: int | None
    expected: Expected | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when `seed` or `batch` is not a whole number in range."""
        _require_whole("seed", self.seed, least=0)
        if self.batch is not None:
            _require_whole("dist.batch", self.batch, least=1)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the one tensor."""
        if self.batch is None:
            literal = np.array([1.2, 4.7, 3.1, 0.5, 2.9], dtype=np.float32)
            yield Tensor("tense_logits", literal)
        else:
            rows = np.random.default_rng(self.seed).uniform(-3, 5, size=(self.batch, 5))
            yield Tensor("tense_logits", rows.astype(np.float32))


@dataclass(frozen=True)
class VerbProbs(Source):
    """Probabilities of `n` verb forms: exp(Normal(0, sigma)), normalised in float32."""

    seed: int
    n: int
    sigma: float
    expected: Expected | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when `seed`, `n` or `sigma` is out of range."""
        _require_whole("seed", self.seed, least=0)
        _require_whole("dist.n", self.n, least=1)
        if not isinstance(self.sigma, int | float) or not 0 < self.sigma <= 10:
            raise ValueError(f"dist.sigma must be a number above 0, up to 10, got {self.sigma!r}")

    def tensors(self) -> Iterator[Tensor]:
        """Yield the one tensor, of shape (n,)."""
        normals = np.random.default_rng(self.seed).normal(0, self.sigma, self.n)
        raw = np.exp(normals).astype(np.float32)
        yield Tensor("verb_probs", raw / raw.sum())


@dataclass(frozen=True)
class Hidden(Source):
    """Hidden activations: `n` draws of Normal(0, 1).

    `skip` normals are drawn first and thrown away: in the lab they went to the verb forms.
    """

    seed: int
    n: int
    skip: int
    expected: Expected | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when `seed`, `n` or `skip` is not a whole number in range."""
        _require_whole("seed", self.seed, least=0)
        _require_whole("dist.n", self.n, least=1)
        _require_whole("dist.skip", self.skip, least=0)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the one tensor, of shape (n,)."""
        rng = np.random.default_rng(self.seed)
        rng.standard_normal(self.skip)
        yield Tensor("hidden", rng.standard_normal(self.n).astype(np.float32))


def _require_whole(key: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{key} must be a whole number of {least} or more, got {value!r}")
