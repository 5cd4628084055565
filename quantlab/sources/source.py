"""Sources of named tensors, beliefs about a tensor before it is seen, and the lab's three tensors.

A belief is range and power, from parameters alone. The lab (03, block B) draws its tensors from one
generator in a fixed order; each class here reproduces its own part of that stream, bit for bit.

To add a distribution: a `Source` here, and a yaml in ``conf/dist/`` whose ``_target_`` names it. To
add a belief: a subclass of `Expected`, and a ``_target_`` below ``expected`` in that yaml.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from quantlab.sources.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Expected(ABC):
    """A belief about a tensor before it is seen, in figures and in words.

    `landmark` is a value in the tensor's own unit whose relative error is asked for; `remedies`
    says which format will serve it best, and why.
    """

    landmark: float
    words: str
    remedies: str | None = None

    @abstractmethod
    def range(self, size: int | None = None) -> tuple[float, float]:
        """Return the least and the greatest value to expect, of `size` values or of all."""

    def quantiles(self, shares: Any) -> Any:  # noqa: ARG002 of a belief that has none
        """Return the values below which shares of the tensor lie, or None."""
        return None

    @abstractmethod
    def rms(self) -> float:
        """Return the root mean square to expect."""


class Source(ABC):
    """Named tensors that a run measures, and the belief about them, None where there is none.

    All that a source of one's own has to give. What can be listed before it is opened, left out or
    divided over runs is a `quantlab.sources.file.File`.
    """

    expected: Expected | None = None

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Yield each tensor."""


@dataclass(frozen=True, kw_only=True)
class ExpectedUniform(Expected):
    """Values that fill [low, high] evenly."""

    low: float
    high: float

    def range(self, size: int | None = None) -> tuple[float, float]:
        """Return the bounds themselves; of some values the medians of the least and greatest."""
        beyond = 0.0 if size is None else (self.high - self.low) * (1 - 0.5 ** (1 / size))
        return self.low + beyond, self.high - beyond

    def quantiles(self, shares: Any) -> Any:
        """Return shares of the way from one bound to the other."""
        return self.low + (self.high - self.low) * shares

    def rms(self) -> float:
        """Return the square root of the mean of v^2 over [low, high]."""
        return math.sqrt((self.low**2 + self.low * self.high + self.high**2) / 3)


@dataclass(frozen=True, kw_only=True)
class ExpectedNormal(Expected):
    """`n` draws of Normal(0, sigma)."""

    n: int
    sigma: float

    def range(self, size: int | None = None) -> tuple[float, float]:
        """Return the medians of the least and of the greatest draw."""
        hi = self.sigma * _median_of_greatest(min(size or self.n, self.n))
        return -hi, hi

    def quantiles(self, shares: Any) -> Any:
        """Return sigma times the standard normal ones."""
        return self.sigma * _normal_quantiles(shares)

    def rms(self) -> float:
        """Return sigma."""
        return self.sigma


@dataclass(frozen=True, kw_only=True)
class ExpectedLognormalShares(Expected):
    """`n` draws of exp(Normal(0, sigma)) divided by their sum, n exp(sigma^2 / 2) on average."""

    n: int
    sigma: float

    def range(self, size: int | None = None) -> tuple[float, float]:
        """Return the medians of the least and of the greatest draw, over the mean sum."""
        z = self.sigma * _median_of_greatest(min(size or self.n, self.n))
        return self._share(-z), self._share(z)

    def quantiles(self, shares: Any) -> Any:
        """Return those of a draw, over the mean sum."""
        return np.vectorize(self._share)(self.sigma * _normal_quantiles(shares))

    def rms(self) -> float:
        """Return the root of the mean square of a draw, exp(sigma^2), over the mean sum."""
        return self._share(self.sigma**2)

    def _share(self, log_draw: float) -> float:
        return math.exp(log_draw - self.sigma**2 / 2) / self.n


def _normal_quantiles(shares: Any) -> Any:
    return np.array([NormalDist().inv_cdf(float(share)) for share in shares])


def _median_of_greatest(n: int) -> float:
    """Return the z for which the greatest of `n` standard normals has cdf(z)^n = 1/2."""
    return NormalDist().inv_cdf(0.5 ** (1 / n))


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
