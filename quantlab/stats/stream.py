"""The hot loop: a tensor -> its range -> the round trip of every block -> figures.

Two passes read a tensor block by block, on threads, in scratch that fits the cache; formats that
choose their parameters by more than the range add passes of their own. What a block leaves behind
does not depend on the blocks or threads around it, and is combined in the order of the tensor, so
the figures are the same bytes for any number of threads and any size of block.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.codec import Reconstruction
from quantlab.formats.element import FloatArray, Trip
from quantlab.formats.format import Format
from quantlab.sources.tensor import Tensor
from quantlab.stats import metrics, parallel, rank, storage
from quantlab.stats.counts import CodeCounts, Counts, merge, to_bins
from quantlab.stats.histogram import ErrorHistogram
from quantlab.stats.metrics import Evidence
from quantlab.stats.output_error import ColumnImportance, OutputPower, out_sqnr_db
from quantlab.stats.sums import CHUNK, Partial, Sums, exact_sums, fast_sums, total
from quantlab.stats.survey import Survey, row_maxima, survey
from quantlab.stats.trips import OneStep, Through, trip_of

SAMPLE = 2**20  # errors looked at one by one, at most; a longer tensor is strided
SAFE = 2.0**32  # between its inverse and it, squares and quotients are normal float32 numbers

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
    found = survey(tensor, threads)
    trip = trip_of(tensor, form, found, threads)
    certified = isinstance(form, Format) and form.plain and isinstance(trip, OneStep)
    columns = None if importance is None else ColumnImportance(importance, tensor.size)
    gathered = _Measurement(tensor, found, trip, rel_threshold, certified, columns)
    evidence = gathered.evidence(threads, advance)
    measured, reasons = metrics.figures(evidence)
    for key, value, why in gathered.further_figures(evidence, landmark):
        measured[key] = value
        reasons |= {key: why} if value is None else {}
    params, unknown = trip.described()
    ranks = gathered.order(min(k, tensor.size), evidence)
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
        **ranks,
        "codes": to_bins(evidence.counts, trip.n_bits) if evidence.counts and trip.n_bits else None,
        "underflowed": found.underflowed,
        "error_histogram": evidence.errors.to_dict() | {"stride": gathered.stride},
        "storage": storage.figures(trip.bits_per_value, measured["sqnr_db"], trip.scales()),
        "error_budget": storage.error_budget(evidence.sums, evidence.clipped),
    }


class _Share(NamedTuple):
    """What the blocks of one thread add up to; `clipped` counts values beyond the grid."""

    sums: list[Partial]
    counts: CodeCounts | None
    clipped: list[int]
    powers: list[OutputPower]


@dataclass(frozen=True)
class _Measurement:
    """One tensor through one format and back."""

    tensor: Tensor
    found: Survey
    trip: Through
    rel_threshold: float
    certified: bool  # whether a width that is certain to keep the top k is one of this format
    columns: ColumnImportance | None
    maxima: FloatArray = field(init=False)  # of the rows as they come back

    def __post_init__(self) -> None:
        object.__setattr__(self, "maxima", np.empty_like(self.found.maxima))

    @cached_property
    def stride(self) -> int:
        """The step between sampled errors: odd, as rows of matrices are often powers of two."""
        return 1 if self.tensor.size <= SAMPLE else -(-self.tensor.size // SAMPLE) | 1

    @cached_property
    def fast(self) -> bool:
        """Whether float32 may sum the full chunks: no error is large, nor any square extreme."""
        safe = 1 / SAFE <= self.found.absmax <= SAFE and self.rel_threshold >= 1 / SAFE
        return self.tensor.size > CHUNK and safe and self.trip.small_errors

    def evidence(self, threads: int, advance: Advance) -> Evidence:
        """Take every block through the round trip and gather what the figures are made of."""
        errors = np.empty(-(-self.tensor.size // self.stride), np.float32)

        def part(starts: range) -> _Share:
            size = min(parallel.BLOCK, self.tensor.size)
            work, scratch = self.trip.worker(size), np.empty((3, size), np.float32)
            counts = None if self.trip.n_bits is None else CodeCounts(self.trip.n_bits)
            share = _Share([], counts, [], [])
            for start in starts:
                x = self.tensor.block(start, start + parallel.BLOCK)
                trip = work(start, x)
                if counts and trip.codes is not None:
                    counts.add(trip.codes)
                share.clipped.append(0 if trip.clipped is None else int(trip.clipped.sum()))
                err, abs_err, _ = scratch[:, : x.size]
                np.abs(np.subtract(trip.x_hat, x, out=err), out=abs_err)
                sampled = abs_err[-start % self.stride :: self.stride]
                errors[-(-start // self.stride) :][: sampled.size] = sampled
                share.sums.extend(self._sums(x, trip, scratch[:, : x.size]))
                self._keep_maxima(start, trip.x_hat)
                if self.columns:
                    share.powers.extend(self.columns.powers(start, x, trip.x_hat))
                advance(x.size)
            return share

        least = 1 if self.trip.slow else parallel.BLOCKS
        return self._combine(parallel.on_threads(part, self.tensor.size, threads, least), errors)

    def _keep_maxima(self, start: int, x_hat: FloatArray) -> None:
        """Keep the maxima of rows as they come back, unless those of the tensor tell them."""
        if not isinstance(self.trip, OneStep):
            width = self.found.width
            row_maxima(
                x_hat, width, self.maxima[start // width : -(-(start + x_hat.size) // width)]
            )

    def _sums(self, x: FloatArray, trip: Trip, scratch: FloatArray) -> Iterator[Partial]:
        x_hat, clipped = trip.x_hat, trip.clipped
        whole = x.size - x.size % CHUNK if self.fast and clipped is None else 0
        if whole:
            yield fast_sums(
                x[:whole],
                x_hat[:whole],
                scratch[:, :whole],
                self.rel_threshold,
                positive=self.found.lo >= 0,
            )
        for start in range(whole, x.size, CHUNK):
            chunk = slice(start, start + CHUNK)
            beyond = None if clipped is None else clipped[chunk]
            yield exact_sums(x[chunk], x_hat[chunk], self.rel_threshold, beyond)

    def _combine(self, shares: list[_Share], errors: FloatArray) -> Evidence:
        sums = total([partial for share in shares for partial in share.sums])
        parts = [part for share in shares if share.counts for part in share.counts.parts()]
        counts = merge(parts) if parts else None
        negative = self.found.lo < 0
        comparable = metrics.is_probability(sums, negative) and not sums.zeroed
        step = self.trip.step
        return Evidence(
            sums=sums,
            errors=ErrorHistogram(errors, step / 2 if step else sums.max_err or 1.0),
            counts=counts,
            sq_x_hat=self._sq_x_hat(sums, counts),
            clipped=sum(sum(share.clipped) for share in shares) if counts else None,
            step=step,
            no_step=self.trip.no_step,
            negative=negative,
            divergence=self._divergence() if comparable else math.nan,
            powers=[each for share in shares for each in share.powers],
        )

    def _sq_x_hat(self, sums: Sums, counts: Counts | None) -> float:
        """Return the sum of x_hat^2: from the few values that it takes, or from all."""
        if counts and isinstance(self.trip, OneStep):
            values = np.square(self.trip.values(counts.codes), dtype=np.float64)
            return float((counts.counts * values).sum())
        return sums.sq_x_hat

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
        if self.columns:
            yield "out_sqnr_db", out_sqnr_db(evidence.powers), "there is no noise, or no signal"
        if landmark is not None:
            value = self.trip.relative_error(np.float32(landmark))
            yield "landmark_rel_err", value, self.trip.no_step

    def order(self, k: int, evidence: Evidence) -> dict[str, Any]:
        """Compare the k largest values with those that came back largest."""
        width = self.found.width
        rows = rank.leading(self.found.maxima, k + 1)
        before = rank.top(*self.tensor.rows(width, rows), k + 1)
        x_hat = self._come_back(rows, before.indices)
        rows = rank.leading(self._row_maxima_back(), k)
        x, indices = self.tensor.rows(width, rows)
        after = rank.top(self._come_back(rows, indices), indices, k)
        above, at_edge = self._count_beside(after.values[-1], evidence)
        answers = rank.stability(
            before,
            after,
            x=x[np.searchsorted(indices, after.indices)],
            x_hat=x_hat,
            reached=self._reached(before, k),
            above=above,
            at_edge=at_edge,
            absmax=self.found.absmax if self.certified else None,
        )
        return {"rank": answers, "top": rank.table(before, x_hat)}

    def _row_maxima_back(self) -> FloatArray:
        """Return the maxima of the rows as they come back; a monotone map keeps which they are."""
        if isinstance(self.trip, OneStep):
            return self.trip.back(self.found.maxima)
        return self.maxima

    def _come_back(self, rows: NDArray[np.int64], indices: NDArray[np.int64]) -> FloatArray:
        """Return what elements of some rows come back as, `indices` being in these."""
        width, size = self.found.width, self.tensor.size
        spans = [(int(row) * width, min(int(row) * width + width, size)) for row in rows]
        values = np.concatenate([self.trip.round_trip(*span) for span in spans])
        places = np.concatenate([np.arange(*span) for span in spans])
        return values[np.searchsorted(places, indices)]

    def _count_beside(self, edge: np.float32, evidence: Evidence) -> tuple[int, int]:
        """Count the values that come back above the k-th largest, and at it."""
        counts = evidence.counts
        if counts and isinstance(self.trip, OneStep):
            values, times = self.trip.values(counts.codes), counts.counts
            return int(times[values > edge].sum()), int(times[values == edge].sum())
        width, above, at_edge = self.found.width, 0, 0
        for row in np.flatnonzero(self.maxima >= edge):
            stop = min(int(row) * width + width, self.tensor.size)
            x_hat = self.trip.round_trip(int(row) * width, stop)
            above += int(np.count_nonzero(x_hat > edge))
            at_edge += int(np.count_nonzero(x_hat == edge))
        return above, at_edge

    def _reached(self, before: rank.Top, k: int) -> int:
        """Count the values that are at least the k-th largest: k, or more where others equal it."""
        least = before.values[k - 1]
        if before.values[-1] < least:
            return k
        starts = range(0, self.tensor.size, parallel.BLOCK)
        blocks = (self.tensor.block(start, start + parallel.BLOCK) for start in starts)
        return sum(int(np.count_nonzero(block >= least)) for block in blocks)
