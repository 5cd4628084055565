"""The hot loop: a tensor -> its range -> the round trip of every block -> figures.

A pass reads a tensor block by block, on threads, in scratch that fits the cache. Another comes
before it where parameters depend on the range of the whole, and more where on more than that. What
a block leaves behind does not depend on the blocks or threads around it, and is combined in the
order of the tensor, so the figures are the same bytes for any number of threads and any size of
block.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.element import FloatArray, NotFiniteError
from quantlab.formats.format import Format, Reconstruction
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled, metrics, parallel, storage
from quantlab.stats.compiled import Kernel, kernel_for
from quantlab.stats.counts import Counts, merge, to_bins
from quantlab.stats.histogram import ErrorHistogram
from quantlab.stats.metrics import Evidence
from quantlab.stats.order import Order
from quantlab.stats.output_error import ColumnImportance, out_sqnr_db
from quantlab.stats.rank import new_maxima
from quantlab.stats.share import CompiledShare, NumpyShare, Share
from quantlab.stats.sums import CHUNK, Sums, total
from quantlab.stats.survey import Block, Survey, Surveyor, cache, cached, survey
from quantlab.stats.trips import OneStep, Through, needs_range, trip_of
from quantlab.stats.wanted import Wanted

SAMPLE = 2**18  # errors looked at one by one, at most; a longer tensor is strided
NO_MAXIMA = np.empty(0, np.float32)

Advance = Callable[[int], object]


def measure(
    tensor: Tensor,
    form: Format | Reconstruction,
    k: int = 10,
    rel_threshold: float = 1e-8,
    threads: int = 1,
    advance: Advance = lambda _: None,
    landmark: float | None = None,
    importance: FloatArray | None = None,
) -> dict[str, Any]:
    """Return what one round trip of a tensor costs, as plain JSON values.

    The relative error of a value, `landmark`, is among the figures where one is given, and the
    error of the output where the `importance` of columns is, an array ``(matrices, columns)``.
    `advance` is told, from any thread, how many elements have just been measured. Raises
    ValueError, naming the tensor, when it is empty or holds what is not a finite float32.
    """
    if not tensor.size:
        tensor.require_finite()
    kernel = kernel_for(tensor.size)
    found = survey(tensor, threads, kernel) if needs_range(tensor, form) else cached(tensor)
    trip = trip_of(tensor, form, found, threads, kernel)
    columns = None if importance is None else ColumnImportance(importance, tensor.size)
    gathered = _gather(tensor, trip, found, kernel, rel_threshold, columns, threads, advance)
    evidence = gathered.evidence()
    found = gathered.found
    measured, reasons = metrics.figures(evidence)
    for key, value, why in gathered.further_figures(evidence, landmark):
        measured[key] = value
        reasons |= {key: why} if value is None else {}
    params, unknown = trip.described()
    certified = isinstance(form, Format) and form.plain and isinstance(trip, OneStep)
    order = Order(tensor, found, trip, gathered.wanted.maxima, gathered.levels)
    if not certified:
        reasons["top_bits_sufficient"] = "it is a width of one scale over the whole range"
    if trip.n_bits is None:
        unknown |= dict.fromkeys([*storage.OF_SCALES, "clip_share", "round_share"], trip.no_step)
    return {
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "n_elements": tensor.size,
        "range": [found.lo, found.hi],
        "params": params,
        "measured": measured,
        "reasons": reasons | unknown,
        **order.compare(min(k, tensor.size), certified),
        "codes": to_bins(evidence.counts, trip.n_bits) if evidence.counts and trip.n_bits else None,
        "underflowed": found.underflowed,
        "error_histogram": evidence.errors.to_dict() | {"stride": gathered.wanted.stride},
        "storage": storage.figures(trip.bits_per_value, measured["sqnr_db"], trip.scales()),
        "error_budget": storage.error_budget(evidence.sums, evidence.clipped),
    }


def _gather(
    tensor: Tensor,
    trip: Through,
    known: Survey | None,
    kernel: Kernel | None,
    rel_threshold: float,
    columns: ColumnImportance | None,
    threads: int,
    advance: Advance,
) -> "_Gathered":
    """Take every block through a format, and look at it before where it is not `known` yet."""
    stride = _stride(tensor.size)
    errors = np.empty(-(-tensor.size // stride), np.float32)
    width, maxima = new_maxima(tensor.size)
    if isinstance(trip, OneStep):
        maxima = NO_MAXIMA
    wanted = Wanted(rel_threshold, width, maxima, stride, errors, columns)
    surveyor = Surveyor(tensor, kernel)
    read = kernel.reader(tensor) if kernel else tensor.block

    def part(starts: Iterable[int], step: int) -> tuple[Share, list[Block]]:
        size = min(step, tensor.size)
        share: Share = (
            CompiledShare(trip, wanted, size, kernel) if kernel else NumpyShare(trip, wanted, size)
        )
        looks = []
        for start in starts:
            x = read(start, start + step)
            if known is None:
                looks.append(surveyor.look(start, x))
            try:
                share.add(start, x)
            except NotFiniteError:  # in a block that ends later
                tensor.require_finite()
            advance(x.size)
        return share, looks

    least = parallel.BLOCK if kernel or trip.slow else parallel.BLOCKS * parallel.BLOCK
    block = compiled.BLOCK if kernel else parallel.BLOCK
    parts = parallel.on_threads(part, tensor.size, threads, least, block)
    found = known or cache(tensor, surveyor.total([look for _, looks in parts for look in looks]))
    histogram = kernel.histogram if kernel else ErrorHistogram
    return _Gathered(tensor, found, trip, wanted, [share for share, _ in parts], histogram)


def _stride(size: int) -> int:
    """Return the step between sampled errors: odd, as rows of matrices are often powers of two."""
    return 1 if size <= SAMPLE else -(-size // SAMPLE) | 1


@dataclass(frozen=True)
class _Gathered:
    """One tensor that went through one format, and what its blocks left behind."""

    tensor: Tensor
    found: Survey
    trip: Through
    wanted: Wanted
    shares: list[Share]
    histogram: Callable[[FloatArray, float], ErrorHistogram]

    @cached_property
    def counts(self) -> Counts | None:
        """How often codes occur, None where they are not ours."""
        parts = [part for share in self.shares for part in share.counts()]
        return merge(parts) if parts else None

    @cached_property
    def levels(self) -> tuple[FloatArray, NDArray[np.int64]] | None:
        """The few values that come back and how often each does, where there is one step."""
        if self.counts and isinstance(self.trip, OneStep):
            return self.trip.values(self.counts.codes), self.counts.counts
        return None

    def evidence(self) -> Evidence:
        """Return what the figures are made of."""
        sums = total([part for share in self.shares for part in share.partials], self.found.moments)
        negative, step = self.found.lo < 0, self.trip.step
        comparable = metrics.is_probability(sums, negative) and not sums.zeroed
        return Evidence(
            sums=sums,
            errors=self.histogram(self.wanted.errors, step / 2 if step else sums.max_err or 1.0),
            counts=self.counts,
            sq_x_hat=self._sq_x_hat(sums),
            clipped=sums.clipped if self.counts else None,
            step=step,
            no_step=self.trip.no_step,
            negative=negative,
            divergence=self._divergence() if comparable else math.nan,
            powers=[each for share in self.shares for each in share.powers],
        )

    def _sq_x_hat(self, sums: Sums) -> float:
        """Return the sum of x_hat^2: from the few values that it takes, or from all."""
        if not self.levels:
            return sums.sq_x_hat
        values, times = self.levels
        return float((times * np.square(values, dtype=np.float64)).sum())

    def _divergence(self) -> float:
        starts = range(0, self.tensor.size, CHUNK)
        return math.fsum(
            metrics.divergence(
                self.tensor.block(start, start + CHUNK),
                self.trip.round_trip(start, min(start + CHUNK, self.tensor.size)),
            )
            for start in starts
        )

    def further_figures(
        self, evidence: Evidence, landmark: float | None
    ) -> Iterator[tuple[str, float | None, str]]:
        """Yield the figures that are asked for, and why one would be null."""
        if self.wanted.columns:
            yield "out_sqnr_db", out_sqnr_db(evidence.powers), "there is no noise, or no signal"
        if landmark is not None:
            value = self.trip.relative_error(np.float32(landmark))
            yield "landmark_rel_err", value, self.trip.no_step
