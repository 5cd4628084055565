"""Measure one tensor in one format: read, quantize and reconstruct each block, sum up the errors.

Measuring takes one pass over the tensor, on threads, in blocks that fit the cache. Formats whose
parameters depend on the whole tensor need an earlier pass for its range; `mse` and `percentile`
need further ones. The sums of a block do not depend on the blocks or threads around it, and are
combined in the order of the tensor, so the figures are the same bytes for any number of threads and
any size of block.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Group, Read, read_flat
from quantlab.formats.element import NO_FLOATS, FloatArray, NotFiniteError
from quantlab.formats.format import Format, Reconstruction
from quantlab.formats.scales import Array64
from quantlab.sources.tensor import MovedAxis, Tensor
from quantlab.stats import metrics, parallel
from quantlab.stats.compiled import CompiledEngine, engine_for
from quantlab.stats.metrics import ColumnImportance, Evidence, Metric, OutputPower, RowPowers
from quantlab.stats.rank import RankComparison
from quantlab.stats.reference import (
    CHUNK,
    ChunkSums,
    CodeCounts,
    ErrorHistogram,
    MeasureOptions,
    NumpyEngine,
    combine_sums,
    read_table,
    round_down,
    to_bins,
)
from quantlab.stats.survey import (
    BlockSurvey,
    Survey,
    Surveyor,
    cache_survey,
    cached_survey,
    new_maxima,
    survey,
)
from quantlab.stats.tensor_codec import (
    SingleScale,
    TensorCodec,
    needs_survey,
    open_codec,
    reconstruct_block,
)
from quantlab.text import label

OUTPUT_BYTES = 2**22  # of rows in float64 whose outputs are computed at once
SAMPLE = 2**18  # errors that quantiles are taken of, at most; a longer tensor is strided

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
    extra_metrics: Mapping[str, Metric] | None = None,
    gram: Array64 | None = None,
) -> dict[str, Any]:
    """Measure the round trip of a tensor, as plain JSON values.

    The relative error of a value, `landmark`, is among the figures where one is given, and the
    error of the output where the `importance` of columns is, an array ``(matrices, columns)``, or
    the Gram matrix of the inputs, ``(in, in)``, which lie along the tensor's `input_axis`.
    `extra_metrics` are functions of `Evidence` by the names of their figures.
    `advance` is called, from any thread, with the number of elements that have just been measured.
    Raises ValueError, naming the tensor, when it is empty or holds a value that is no finite
    float32.
    """
    if not tensor.size:
        tensor.require_finite()
    if along := _along_axis(tensor, form):
        axis, rows = along
        moved, importance = MovedAxis.of(tensor, axis), _move_importance(tensor, axis, importance)
        settings = k, rel_threshold, threads, advance, landmark, importance, extra_metrics, gram
        return _place_in_original(measure(moved, rows, *settings), moved)
    engine = engine_for(tensor.size)
    needed = needs_survey(tensor, form)
    surveyed = survey(tensor, threads, engine) if needed else cached_survey(tensor)
    codec = open_codec(tensor, form, threads, engine, surveyed)
    layout = form.block.layout(tensor.shape) if isinstance(form, Format) else None
    row_powers = RowPowers(tensor.shape, layout)
    options = _new_options(tensor.size, codec, rel_threshold, row_powers)
    columns = None if importance is None else ColumnImportance(importance, tensor.size)
    trip = _run(tensor, codec, surveyed, engine, options, columns, threads, advance)
    surveyed, evidence = trip.surveyed, trip.evidence()
    if gram is not None:
        evidence = evidence._replace(powers=trip.output_powers(gram, threads))
    measured, reasons = _compute_figures(trip, evidence, landmark, extra_metrics)
    measured |= row_powers.figures(measured["sqnr_db"])
    params, unknown = codec.params_json()
    certified = isinstance(form, Format) and form.plain and isinstance(codec, SingleScale)
    if not certified:
        reasons["top_bits_sufficient"] = "it is a width of one scale over the whole range"
    if codec.n_bits is None:
        foreign = [*metrics.OF_SCALES, "clip_share", "round_share"]
        unknown |= dict.fromkeys(foreign, codec.why_no_step)
    ranks = RankComparison(tensor, surveyed, codec, options.maxima, trip.levels)
    scales = codec.scales()
    return {
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "n_elements": tensor.size,
        "range": [surveyed.lo, surveyed.hi],
        "params": params,
        "measured": measured,
        "reasons": reasons | unknown,
        **ranks.compare(min(k, tensor.size), certified),
        "codes": to_bins(trip.counts, codec.n_bits) if trip.counts and codec.n_bits else None,
        "underflowed": surveyed.underflowed,
        "error_histogram": evidence.errors.to_dict() | {"stride": options.stride},
        "storage": metrics.storage_figures(codec.bits_per_value, measured["sqnr_db"], scales),
        "error_budget": metrics.error_budget(evidence.sums, evidence.clipped),
        **({"remark": codec.remark} if isinstance(form, Format) and codec.remark else {}),
    }


def reconstruct(tensor: Tensor, form: Format | Reconstruction, threads: int = 1) -> FloatArray:
    """Quantize a tensor and return what comes back, in its shape.

    Raises ValueError as `measure` does.
    """
    x_hat = np.empty(tensor.shape, np.float32)
    reconstruct_into(tensor, form, x_hat, threads)
    return x_hat


def reconstruct_into(
    tensor: Tensor, form: Format | Reconstruction, out: NDArray[Any], threads: int = 1
) -> bool:
    """Quantize a tensor and write what comes back into an array of its shape, in the array's dtype.

    Takes the memory of some blocks, and with a rounding that of the whole tensor as float32 and of
    the Gram matrix of its inputs. Returns False where a value is beyond the dtype, and raises
    ValueError as `measure` does.
    """
    if along := _along_axis(tensor, form):
        axis, rows = along
        moved = MovedAxis.of(tensor, axis)
        return reconstruct_into(moved, rows, np.moveaxis(out, axis, -1), threads)
    engine = engine_for(tensor.size)
    codec = open_codec(tensor, form, threads, engine)
    flat = out.reshape(-1) if out.flags.c_contiguous else None

    def write(start: int) -> bool:
        stop = min(start + CHUNK, tensor.size)
        with np.errstate(over="ignore"):
            x_hat = reconstruct_block(tensor, codec, engine, start, stop).astype(out.dtype)
        if flat is not None:
            flat[start:stop] = x_hat
        else:
            out.flat[start:stop] = x_hat
        return bool(np.isfinite(x_hat).all())

    return all(parallel.map_on_threads(write, list(range(0, tensor.size, CHUNK)), threads))


def _along_axis(tensor: Tensor, form: Format | Reconstruction) -> tuple[int, Format] | None:
    """Return the axis of groups, and the format where that is the last; None where it is."""
    if not isinstance(form, Format) or not isinstance(form.block, Group):
        return None
    axis = form.block.moved_axis(tensor.shape)
    return None if axis is None else (axis, replace(form, block=replace(form.block, axis=-1)))


def _move_importance(tensor: Tensor, axis: int, importance: FloatArray | None) -> FloatArray | None:
    """Return the importance of a tensor with an axis at the end; raises ValueError.

    That is known where it is of the rows of a matrix, which become columns.
    """
    if importance is None:
        return None
    if len(tensor.shape) != 2 or axis != 0 or importance.shape != (tensor.shape[0], 1):
        raise ValueError(
            f"tensor '{label(tensor.name)}' has an importance of columns, and groups along axis "
            f"{axis}: leave out imatrix or block.axis"
        )
    return importance.reshape(1, -1)


def _place_in_original(result: dict[str, Any], moved: MovedAxis) -> dict[str, Any]:
    """Give a result shape, dtype and indices of the tensor before an axis was moved."""
    indices = moved.find_original(np.array(result["top"]["indices"], np.int64)).tolist()
    original: dict[str, Any] = {
        "shape": list(moved.original.shape),
        "dtype": moved.original.dtype,
    }
    if not moved.axis:  # what was moved counts the matrices of a stack
        figures = result["measured"].items()
        original["measured"] = {k: v for k, v in figures if not k.startswith("worst_matrix")}
    return result | original | {"top": result["top"] | {"indices": indices}}


def _compute_figures(
    trip: "_RoundTrip",
    evidence: Evidence,
    landmark: float | None,
    extra_metrics: Mapping[str, Metric] | None,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return every figure under its name, and for each null the reason why."""
    measured, reasons = metrics.figures(evidence, extra_metrics)
    further: dict[str, tuple[float | None, str]] = {}
    if evidence.powers:
        decibels = metrics.out_sqnr_db(evidence.powers)
        further["out_sqnr_db"] = decibels, "there is no noise, or no signal"
    if landmark is not None:
        relative = trip.codec.relative_error(np.float32(landmark))
        further["landmark_rel_err"] = relative, trip.codec.why_no_step
    for key, (value, reason) in further.items():
        measured[key] = value
        reasons |= {key: reason} if value is None else {}
    if trip.surveyed.underflowed and not trip.surveyed.absmax:
        # As float32 the tensor is all zeros, and its round trip would look perfect.
        reasons.pop("zeroed", None)
        reasons["sqnr_db"] = "every value that is not 0 is too small for float32"
        measured |= {"zeroed": 1.0, "max_err": _stored_absmax(trip.tensor)}
    return measured, reasons


def _stored_absmax(tensor: Tensor) -> float:
    """Return the largest magnitude of a tensor as it is stored."""
    starts = range(0, tensor.size, CHUNK)
    return max(float(np.abs(tensor.stored(at, at + CHUNK)).max()) for at in starts)


def _new_options(
    size: int, codec: TensorCodec, rel_threshold: float, row_powers: RowPowers
) -> MeasureOptions:
    """Return the settings of a measurement, with room for what blocks write."""
    # Between sampled errors: odd, as rows of matrices are often powers of two.
    stride = 1 if size <= SAMPLE else -(-size // SAMPLE) | 1
    row_width, maxima = new_maxima(size)
    return MeasureOptions(
        round_down(rel_threshold),
        row_width,
        NO_FLOATS if isinstance(codec, SingleScale) else maxima,
        stride,
        np.empty(-(-size // stride), np.float32),
        row_powers.width,
        row_powers.squares,
    )


class Accumulator:
    """Sums up the blocks of one thread, each as soon as it has been through the codec."""

    def __init__(
        self,
        codec: TensorCodec,
        engine: NumpyEngine,
        options: MeasureOptions,
        columns: ColumnImportance | None,
    ) -> None:
        self.codec, self.engine, self.options, self.columns = codec, engine, options, columns
        self.table = engine.new_table(codec.n_bits)
        self.sums: list[ChunkSums] = []
        self.powers: list[OutputPower] = []
        self.surveys: list[BlockSurvey] = []
        self._quantize = codec.block_quantizer()

    def add(self, start: int, x: FloatArray) -> None:
        """Take the block that begins at element `start` through the codec."""
        engine, grid = self.engine, self.codec.grid
        if grid and isinstance(engine, CompiledEngine) and not self.columns:
            blocks = self.codec.block_params(start, start + x.size)
            sums = engine.gather_through(start, x, grid, blocks, self.options, self.table)
        else:
            quantized = self._quantize(start, x)
            sums = engine.gather(start, x, quantized, self.options, self.table)
            if self.columns:
                self.powers.extend(self.columns.powers(start, x, quantized.x_hat))
        self.sums.append(sums)


def _run(
    tensor: Tensor,
    codec: TensorCodec,
    surveyed: Survey | None,
    engine: NumpyEngine,
    options: MeasureOptions,
    columns: ColumnImportance | None,
    threads: int,
    advance: Advance,
) -> "_RoundTrip":
    """Take every block through a codec, and survey it before where that has not been done."""
    surveyor, read = Surveyor(tensor, engine), engine.reader(tensor)

    def run_share(starts: Iterable[int], step: int) -> Accumulator:
        share = Accumulator(codec, engine, options, columns)
        for start in starts:
            x = read(start, start + step)
            if surveyed is None:
                share.surveys.append(surveyor.survey(start, x))
            try:
                share.add(start, x)
            except NotFiniteError:  # in a block that ends later
                tensor.require_finite()
            advance(x.size)
        return share

    min_share = NumpyEngine.block_size if codec.slow else engine.min_share
    shares = parallel.on_threads(run_share, tensor.size, threads, min_share, engine.block_size)
    if surveyed is None:
        blocks = [block for share in shares for block in share.surveys]
        surveyed = cache_survey(tensor, surveyor.combine(blocks))
    return _RoundTrip(tensor, surveyed, codec, engine, options, shares)


@dataclass(frozen=True)
class _RoundTrip:
    """The sums of one tensor that went through one codec."""

    tensor: Tensor
    surveyed: Survey
    codec: TensorCodec
    engine: NumpyEngine
    options: MeasureOptions
    shares: list[Accumulator] = field(repr=False)

    @cached_property
    def counts(self) -> CodeCounts | None:
        """How often codes occur, None where they are not ours."""
        if not self.codec.n_bits:
            return None
        return read_table(np.concatenate([share.table for share in self.shares]))

    @cached_property
    def levels(self) -> tuple[FloatArray, NDArray[np.int64]] | None:
        """The few values that come back and how often each does, where there is one step."""
        if self.counts and isinstance(self.codec, SingleScale):
            return self.codec.decode(self.counts.codes), self.counts.counts
        return None

    def evidence(self) -> Evidence:
        """Combine the sums of all blocks."""
        parts = [part for share in self.shares for part in share.sums]
        sums = combine_sums(parts, self.surveyed.moments)
        negative, step = self.surveyed.lo < 0, self.codec.step
        comparable = metrics.is_probability(sums, negative) and not sums.zeroed
        upper = step / 2 if step else sums.max_err or 1.0
        sq_x_hat = sums.sq_x_hat
        if self.levels:  # of few values, it is exact
            values, times = self.levels
            sq_x_hat = float((times * np.square(values, dtype=np.float64)).sum())
        return Evidence(
            sums=sums,
            errors=ErrorHistogram(self.options.errors, upper, self.engine),
            counts=self.counts,
            sq_x_hat=sq_x_hat,
            clipped=sums.clipped if self.counts else None,
            step=step,
            why_no_step=self.codec.why_no_step,
            negative=negative,
            divergence=self._divergence() if comparable else math.nan,
            powers=[power for share in self.shares for power in share.powers],
        )

    def output_powers(self, gram: Array64, threads: int) -> list[OutputPower]:
        """Return the powers of the outputs of stretches of rows, for inputs with a Gram matrix."""
        stored, reconstructed = self._rows_of_inputs()
        width = len(gram)
        step = max(1, OUTPUT_BYTES // (8 * width)) * width

        def measure_rows(start: int) -> OutputPower:
            span = start, min(start + step, self.tensor.size)
            x, x_hat = (read(*span).reshape(-1, width) for read in (stored, reconstructed))
            return metrics.captured_power(x, x_hat, gram)

        starts = list(range(0, self.tensor.size, step))
        return parallel.map_on_threads(measure_rows, starts, threads)

    def _rows_of_inputs(self) -> list[Read]:
        """Return what reads the tensor, and what it comes back as, with its inputs in rows."""
        tensor = self.tensor
        reads: list[Read] = [tensor.block, self.codec.read]
        moved = tensor if isinstance(tensor, MovedAxis) else None
        original = moved.original if moved else tensor
        axis = original.input_axis
        is_last = axis == moved.axis if moved else axis in (None, len(tensor.shape) - 1)
        if is_last:
            return reads
        arrays = [read(0, tensor.size).reshape(tensor.shape) for read in reads]
        if moved:
            arrays = [moved.restore(array) for array in arrays]
        if axis is not None:
            arrays = [np.moveaxis(array, axis, -1) for array in arrays]
        return [read_flat(np.ascontiguousarray(array).reshape(-1)) for array in arrays]

    def _divergence(self) -> float:
        starts = range(0, self.tensor.size, CHUNK)
        return math.fsum(
            metrics.divergence(
                self.tensor.block(start, start + CHUNK),
                self.codec.read(start, min(start + CHUNK, self.tensor.size)),
            )
            for start in starts
        )
