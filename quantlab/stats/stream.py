"""The hot loop: a tensor -> its range -> the round trip of every block -> figures.

Two passes read a tensor block by block, on threads, in scratch that fits the cache. What a block
leaves behind does not depend on the blocks or threads around it, and is combined in the order of
the tensor, so the figures are the same bytes for any number of threads and any size of block.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from quantlab.formats import uniform
from quantlab.formats.roundtrip import RoundTrip, saturates
from quantlab.formats.uniform import FloatArray, Params, Quantizer
from quantlab.sources.tensor import Tensor
from quantlab.stats import metrics, rank
from quantlab.stats.counts import CodeCounts, Counts, merge, to_bins
from quantlab.stats.histogram import ErrorHistogram
from quantlab.stats.metrics import Evidence
from quantlab.stats.sums import CHUNK, ROW, Partial, exact_sums, fast_sums, total

BLOCK = 4 * CHUNK  # elements in work at once: many for the interpreter, few enough for the cache
BLOCKS = 4  # of them pay for a thread of their own
ROWS = 2**20  # rows whose maxima are kept, or hardly more
SAMPLE = 2**20  # errors looked at one by one, at most; a longer tensor is strided
SAFE = 2.0**32  # between its inverse and it, squares and quotients are normal float32 numbers

Advance = Callable[[int], object]
T = TypeVar("T")


def measure(
    tensor: Tensor,
    quantizer: Quantizer,
    k: int = 10,
    rel_threshold: float = 1e-8,
    threads: int = 1,
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Return what one round trip of a tensor costs, as plain JSON values.

    `advance` is told, from any thread, how many elements have just been measured. Raises
    ValueError, naming the tensor, when it is empty or holds what is not a finite float32.
    """
    found = survey(tensor, threads)
    params = quantizer.choose(found.lo, found.hi)
    trip = _TensorTrip(tensor, found, params, quantizer.n_bits, rel_threshold)
    evidence = trip.evidence(threads, advance)
    measured, reasons = metrics.figures(evidence)
    qmin, qmax = uniform.code_range(quantizer.n_bits)
    return {
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "n_elements": tensor.size,
        "range": [found.lo, found.hi],
        "params": params._asdict() | {"scale": evidence.scale, "qmin": qmin, "qmax": qmax},
        "measured": measured,
        "reasons": reasons,
        **trip.order(min(k, tensor.size), evidence),
        "codes": to_bins(Counts(evidence.codes, evidence.code_counts), quantizer.n_bits),
        **({"underflowed": found.underflowed} if found.underflowed else {}),
        "error_histogram": evidence.errors.to_dict() | {"stride": trip.stride},
    }


class Survey(NamedTuple):
    """What a tensor is like before any round trip: its range, and the maximum of each row.

    A row is `width` elements of the tensor read flat; `underflowed` counts the values that are not
    0, but are as float32.
    """

    lo: float
    hi: float
    width: int
    maxima: FloatArray
    underflowed: int

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(-self.lo, self.hi)


def survey(tensor: Tensor, threads: int) -> Survey:
    """Return the range and the maxima; raises ValueError as `measure` does."""
    if not tensor.size:
        tensor.require_finite()
    width = min(CHUNK, max(ROW, 2 ** (tensor.size // ROWS).bit_length()))
    maxima = np.empty(-(-tensor.size // width), np.float32)

    def part(starts: range) -> tuple[float, int]:
        lo, underflowed = math.inf, 0
        for start in starts:
            block = tensor.block(start, start + BLOCK)
            rows = maxima[start // width : (start + BLOCK) // width]
            whole = block.size - block.size % width
            block[:whole].reshape(-1, width).max(axis=1, out=rows[: whole // width])
            rows[whole // width :] = block[whole:].max(initial=-math.inf)
            least = float(block.min())
            if not (math.isfinite(least) and np.isfinite(rows).all()):
                tensor.require_finite()
            lo = min(lo, least)
            underflowed += tensor.underflows(start, start + BLOCK)
        return lo, underflowed

    parts = _on_threads(part, tensor.size, threads)
    lo, underflowed = min(lo for lo, _ in parts), sum(count for _, count in parts)
    return Survey(lo, float(maxima.max()), width, maxima, underflowed)


class _Share(NamedTuple):
    """What the blocks of one thread add up to."""

    sums: list[Partial]
    counts: CodeCounts
    trip: RoundTrip


@dataclass(frozen=True)
class _TensorTrip:
    """One tensor through one quantizer and back."""

    tensor: Tensor
    found: Survey
    params: Params
    n_bits: int
    rel_threshold: float

    @cached_property
    def stride(self) -> int:
        """The step between sampled errors: odd, as rows of matrices are often powers of two."""
        return 1 if self.tensor.size <= SAMPLE else -(-self.tensor.size // SAMPLE) | 1

    @cached_property
    def saturating(self) -> bool:
        """Whether any value can saturate, and have an error larger than half a step."""
        return saturates(self.params, self.n_bits, self.found.lo, self.found.hi)

    @cached_property
    def fast(self) -> bool:
        """Whether float32 may sum the full chunks: no error is large, nor any square extreme."""
        safe = 1 / SAFE <= self.found.absmax <= SAFE and self.rel_threshold >= 1 / SAFE
        return self.tensor.size > CHUNK and safe and not self.saturating

    def evidence(self, threads: int, advance: Advance) -> Evidence:
        """Take every block through the round trip and gather what the figures are made of."""
        errors = np.empty(-(-self.tensor.size // self.stride), np.float32)

        def part(starts: range) -> _Share:
            size = min(BLOCK, self.tensor.size)
            trip = RoundTrip(self.params, self.n_bits, self.saturating, size)
            scratch = np.empty((3, size), np.float32)
            share = _Share([], CodeCounts(self.n_bits), trip)
            for start in starts:
                x = self.tensor.block(start, start + BLOCK)
                codes, x_hat = trip(x)
                share.counts.add(codes)
                err, abs_err, _ = scratch[:, : x.size]
                np.abs(np.subtract(x_hat, x, out=err), out=abs_err)
                sampled = abs_err[-start % self.stride :: self.stride]
                errors[-(-start // self.stride) :][: sampled.size] = sampled
                share.sums.extend(self._sums(x, x_hat, scratch[:, : x.size]))
                advance(x.size)
            return share

        return self._combine(_on_threads(part, self.tensor.size, threads), errors)

    def _sums(self, x: FloatArray, x_hat: FloatArray, scratch: FloatArray) -> Iterator[Partial]:
        whole = x.size - x.size % CHUNK if self.fast else 0
        if whole:
            positive = self.found.lo >= 0
            yield fast_sums(
                x[:whole], x_hat[:whole], scratch[:, :whole], self.rel_threshold, positive
            )
        for start in range(whole, x.size, CHUNK):
            chunk = slice(start, start + CHUNK)
            yield exact_sums(x[chunk], x_hat[chunk], self.rel_threshold)

    def _combine(self, shares: list[_Share], errors: FloatArray) -> Evidence:
        sums = total([partial for share in shares for partial in share.sums])
        codes, counts = merge([part for share in shares for part in share.counts.parts()])
        values = uniform.dequantize(codes, self.params)
        came_back_as_zero = int(counts[values == 0].sum())
        zeroed = came_back_as_zero - (
            0 if self._round_trip(np.zeros(1, np.float32))[0] else sums.zeros
        )
        negative = self.found.lo < 0
        comparable = metrics.is_probability(sums, negative) and not zeroed
        return Evidence(
            sums=sums,
            errors=ErrorHistogram(errors, float(self.params.scale)),
            codes=codes,
            code_counts=counts,
            code_values=values,
            clipped=sum(share.trip.clipped for share in shares),
            zeroed=zeroed,
            scale=float(self.params.scale),
            negative=negative,
            divergence=self._divergence() if comparable else math.nan,
        )

    def _divergence(self) -> float:
        starts = range(0, self.tensor.size, CHUNK)
        chunks = (self.tensor.block(start, start + CHUNK) for start in starts)
        return math.fsum(metrics.divergence(x, self._round_trip(x)) for x in chunks)

    def order(self, k: int, evidence: Evidence) -> dict[str, Any]:
        """Compare the k largest values with those that came back largest.

        The round trip is monotone: the maximum of a row comes back as the maximum of the row.
        """
        width, maxima = self.found.width, self.found.maxima
        x, indices = self.tensor.rows(width, rank.leading(maxima, k + 1))
        before = rank.top(x, indices, k + 1)
        x, indices = self.tensor.rows(width, rank.leading(self._round_trip(maxima), k))
        after = rank.top(self._round_trip(x), indices, k)
        edge, x_hat = after.values[-1], self._round_trip(before.values)
        answers = rank.stability(
            before,
            after,
            x=x[np.searchsorted(indices, after.indices)],
            x_hat=x_hat,
            reached=self._reached(before, k),
            above=int(evidence.code_counts[evidence.code_values > edge].sum()),
            at_edge=int(evidence.code_counts[evidence.code_values == edge].sum()),
            absmax=self.found.absmax,
        )
        return {"rank": answers, "top": rank.table(before, x_hat)}

    def _reached(self, before: rank.Top, k: int) -> int:
        """Count the values that are at least the k-th largest: k, or more where others equal it."""
        least = before.values[k - 1]
        if before.values[-1] < least:
            return k
        starts = range(0, self.tensor.size, BLOCK)
        blocks = (self.tensor.block(start, start + BLOCK) for start in starts)
        return sum(int(np.count_nonzero(block >= least)) for block in blocks)

    def _round_trip(self, x: FloatArray) -> FloatArray:
        return uniform.dequantize(uniform.quantize(x, self.params, self.n_bits), self.params)


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_threads(part: Callable[[range], T], size: int, threads: int) -> list[T]:
    """Give each thread an even share of the blocks, in order, and return what it made of them."""
    blocks = -(-size // BLOCK)
    threads = min(threads, blocks // BLOCKS)
    if threads <= 1:
        return [part(range(0, size, BLOCK))]
    ends = [BLOCK * (i * blocks // threads) for i in range(threads)] + [size]
    shares = [range(start, stop, BLOCK) for start, stop in pairwise(ends)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(part, shares))
