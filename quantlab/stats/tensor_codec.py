"""Quantize and reconstruct one tensor: one scale, many, or decoded from a file or library."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats import uniform
from quantlab.formats.blocks import PerChannel, Read, read_flat
from quantlab.formats.element import (
    BlockParams,
    CompiledGrid,
    FloatArray,
    NotFiniteError,
    Quantized,
    compiled_grid_of,
    per_value,
)
from quantlab.formats.format import Format, Reconstruction, Rounding
from quantlab.formats.gram import row_energies
from quantlab.formats.quantizer import BlockLayoutParams, BlockQuantizer, MapFn, ScaleStats
from quantlab.formats.transform import FittedTransform, Transform
from quantlab.formats.uniform import Params, Uniform
from quantlab.sources.calibration import CalibratedRange
from quantlab.sources.tensor import MovedAxis, Tensor
from quantlab.stats import parallel
from quantlab.stats.compiled import CompiledEngine
from quantlab.stats.reference import CHUNK, NumpyEngine
from quantlab.stats.survey import Survey, survey
from quantlab.text import label

QuantizeBlock = Callable[[int, FloatArray], Quantized]  # of a flat block and where it begins
MANY_SCALES = "there are {n} scales"
UNEVEN_STEPS = "the steps of the grid differ"
OTHER_CODES = "{dtype} has codes and scales of its own"


class TensorCodec(ABC):
    """One tensor in one format.

    `n_bits` is the width of its codes, None where they are not ours; `grid` is that of the compiled
    loops, None where they have it not; `step` is that of the grid, None where there is not one, for
    the reason `why_no_step`; `slow`: a thread pays for few values; `remark` is on how it is stored.
    """

    n_bits: int | None = None
    bits_per_value: float
    grid: CompiledGrid | None = None
    step: float | None = None
    why_no_step: str = ""
    slow: bool = False
    remark: str | None = None

    @abstractmethod
    def block_quantizer(self) -> QuantizeBlock:
        """Return the function that quantizes blocks."""

    def block_params(self, start: int, stop: int) -> BlockLayoutParams:
        """Return the parameters of the blocks of some elements, where there is a grid."""
        raise NotImplementedError

    @abstractmethod
    def read(self, start: int, stop: int) -> FloatArray:
        """Reconstruct elements `start` to `stop`, flat."""

    def reconstruct(self, _: FloatArray) -> FloatArray | None:
        """Reconstruct values, or return None if the result depends on their position."""
        return None

    def relative_error(self, x: np.float32) -> float | None:
        """Return the relative error of a value, which need not be in the tensor.

        None if it depends on the position of the value.
        """
        x_hat = self.reconstruct(np.reshape(x, 1))
        return None if x_hat is None else float(np.abs(x_hat[0] - x) / x)

    def scales(self) -> ScaleStats | None:
        """Summarize the scales, once every block has been quantized; None if they are not ours."""
        return None

    @abstractmethod
    def params_json(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters, and why some are null."""


class SingleScale(TensorCodec):
    """A tensor with one scale and even steps: the map is monotone, and a code has one value.

    The `quantizer` has chosen the parameters of its one block.
    """

    def __init__(self, tensor: Tensor, form: Format, quantizer: BlockQuantizer) -> None:
        self.tensor, self.element = tensor, form.element
        self.params: Params = uniform.scalar_params(quantizer.chosen_params)
        self._scales = quantizer.chosen_scales
        self.n_bits = self.width = form.n_bits
        self.bits_per_value = form.bits_per_value(quantizer.layout)
        self.grid = compiled_grid_of(form.element)
        self._blocks = BlockLayoutParams(quantizer.layout, 0, quantizer.chosen_params)
        self.step = float(self.params.scale)

    def block_quantizer(self) -> QuantizeBlock:
        """Return the function that quantizes blocks."""
        return lambda _, x: self.element.round_trip(x, self.params)

    def block_params(self, start: int, stop: int) -> BlockLayoutParams:  # noqa: ARG002 TensorCodec
        """Return the parameters of the one block."""
        return self._blocks

    def read(self, start: int, stop: int) -> FloatArray:
        """Reconstruct elements `start` to `stop`, flat."""
        return self.reconstruct(self.tensor.block(start, stop))

    def reconstruct(self, x: FloatArray) -> FloatArray:
        """Reconstruct values."""
        return self.decode(uniform.quantize(x, self.params, self.width))

    def decode(self, codes: NDArray[Any]) -> FloatArray:
        """Return the values that codes stand for."""
        return uniform.dequantize(codes, self.params)

    def scales(self) -> ScaleStats:
        """Return the one scale."""
        return self._scales

    def params_json(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters, of which none is null."""
        qmin, qmax = uniform.code_range(self.width)
        return self.params._asdict() | {"scale": self.step, "qmin": qmin, "qmax": qmax}, {}


class Blockwise(TensorCodec):
    """A tensor in blocks, or in a grid whose steps differ."""

    def __init__(self, form: Format, quantizer: BlockQuantizer) -> None:
        self.form, self.quantizer = form, quantizer
        self.n_scales = quantizer.layout.n_blocks
        self.n_bits = form.n_bits
        self.bits_per_value = form.bits_per_value(quantizer.layout)
        self.grid = compiled_grid_of(form.element)
        many = isinstance(form.element, Uniform) and self.n_scales > 1
        self.why_no_step = MANY_SCALES.format(n=self.n_scales) if many else UNEVEN_STEPS
        self._scales: list[ScaleStats] = [quantizer.chosen_scales]

    def block_quantizer(self) -> QuantizeBlock:
        """Return a function that quantizes blocks, and keeps their scales."""

        def quantize(start: int, x: FloatArray) -> Quantized:
            quantized, scales = self.quantizer.round_trip(start, start + x.size)
            self._scales.append(scales)
            return quantized

        return quantize

    def block_params(self, start: int, stop: int) -> BlockLayoutParams:
        """Return the parameters of the blocks of some elements, and keep their scales."""
        blocks, scales = self.quantizer.block_params(start, stop)
        self._scales.append(scales)
        return blocks

    def read(self, start: int, stop: int) -> FloatArray:
        """Reconstruct elements `start` to `stop`, flat."""
        return self.quantizer.round_trip(start, stop)[0].x_hat

    def reconstruct(self, x: FloatArray) -> FloatArray | None:
        """Reconstruct values, or return None if they could be in different blocks."""
        if self.n_scales > 1:
            return None
        params = per_value(self.quantizer.chosen_params)
        return self.form.element.reconstruct(x[None], params)[0]

    def scales(self) -> ScaleStats:
        """Summarize the scales, once every block has been quantized."""
        return reduce(or_, self._scales)

    def params_json(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters where there is one block, and why some are null."""
        own: dict[str, Any] = {}
        if self.n_scales == 1:
            fields = self.quantizer.chosen_params._asdict()
            own = {key: value[0].item() for key, value in fields.items()}
        params = {key: own.get(key) for key in Params._fields}
        qmin, qmax = uniform.code_range(self.form.n_bits)
        reason = MANY_SCALES.format(n=self.n_scales) if self.n_scales > 1 else "the grid has none"
        reasons = {key: reason for key, value in params.items() if value is None}
        return params | {"qmin": qmin, "qmax": qmax}, reasons


class FromFile(TensorCodec):
    """A tensor as a file or a library stores it: values by their position, no codes of ours."""

    def __init__(self, tensor: Tensor, stored: Reconstruction) -> None:
        self.tensor, self.stored, self.slow = tensor, stored, stored.slow
        self.remark = stored.remark
        self.bits_per_value = stored.bits / tensor.size
        self.why_no_step = OTHER_CODES.format(dtype=stored.dtype)

    def block_quantizer(self) -> QuantizeBlock:
        """Return the function that reads blocks."""
        return lambda start, x: Quantized(None, self.read(start, start + x.size), None)

    def read(self, start: int, stop: int) -> FloatArray:
        """Read elements `start` to `stop`, flat; raises ValueError where one is not finite."""
        x_hat = self.stored.read(start, stop)
        if not np.isfinite(x_hat).all():
            first = start + int(np.flatnonzero(~np.isfinite(x_hat))[0])
            index = [int(place) for place in np.unravel_index(first, self.tensor.shape)]
            why = "is damaged" if self.stored.sha256 else "cannot hold its values"
            raise ValueError(
                f"tensor '{self.tensor.name}' comes back as {x_hat[first - start]} at {index}: "
                f"{self.stored.dtype} {why}"
            )
        return x_hat

    def params_json(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return null for every parameter, and why."""
        keys = *Params._fields, "qmin", "qmax"
        return dict.fromkeys(keys), dict.fromkeys(keys, self.why_no_step)


def needs_survey(tensor: Tensor, form: Format | Reconstruction) -> bool:
    """Whether the parameters of a format depend on the range of the whole tensor."""
    if isinstance(form, Reconstruction) or form.transform or form.rounding:
        return False
    layout = form.block.layout(tensor.shape)
    is_static = isinstance(form.range, CalibratedRange)
    return layout.chosen_beforehand or is_static or form.scale_type.tensor_bits > 0


def open_codec(
    tensor: Tensor,
    form: Format | Reconstruction,
    threads: int,
    engine: NumpyEngine,
    surveyed: Survey | None = None,
) -> TensorCodec:
    """Return the codec of a tensor, the parameters chosen that have to be before the first block.

    The tensor is surveyed where it has not been and `needs_survey` says so.
    """
    if isinstance(form, Reconstruction):
        return FromFile(tensor, form)
    if form.transform:
        return FromFile(tensor, _open_transformed(tensor, form, form.transform, threads, engine))
    if form.rounding:
        return FromFile(tensor, _open_rounded(tensor, form, form.rounding, threads, engine))
    static = None
    if isinstance(form.range, CalibratedRange):
        calibration = form.range.tensor
        if not calibration.size:
            calibration.require_finite()
        static = _new_quantizer(calibration, form, threads, engine).choose_all(_map_on(threads))
    quantizer = _new_quantizer(tensor, form, threads, engine, surveyed, static)
    even = isinstance(form.element, Uniform) and quantizer.layout.n_blocks == 1
    # A scale that vanished is no step to count in.
    if even and quantizer.chosen_scales.smallest:
        return SingleScale(tensor, form, quantizer)
    return Blockwise(form, quantizer)


def _new_quantizer(
    tensor: Tensor,
    form: Format,
    threads: int,
    engine: NumpyEngine,
    surveyed: Survey | None = None,
    static: BlockParams | None = None,
) -> BlockQuantizer:
    if surveyed is None and needs_survey(tensor, form):
        surveyed = survey(tensor, threads, engine)
    return BlockQuantizer(
        form,
        form.block.layout(tensor.shape),
        engine.reader(tensor),
        surveyed.absmax if surveyed else math.nan,
        surveyed.bounds if surveyed else None,
        _map_on(threads),
        engine.reductions,
        static,
    )


def _map_on(threads: int) -> MapFn:
    return lambda function, items: parallel.map_on_threads(function, items, threads)


def reconstruct_block(
    tensor: Tensor, codec: TensorCodec, engine: NumpyEngine, start: int, stop: int
) -> FloatArray:
    """Reconstruct elements `start` to `stop` of the tensor of a codec, compiled where it can be."""
    if codec.grid and isinstance(engine, CompiledEngine):
        x, blocks = engine.reader(tensor)(start, stop), codec.block_params(start, stop)
        return engine.reconstruct(start, x, codec.grid, blocks)
    return codec.read(start, stop)


@dataclass(frozen=True)
class TransformedTensor(Tensor):
    """The values of an `original` after a transform, float32, `width` of them at a time.

    A thread keeps the stretch that it read last: parameters are chosen of what is then quantized.
    """

    original: Tensor = field(kw_only=True, repr=False)
    forward: Callable[[FloatArray], FloatArray] = field(kw_only=True, repr=False)
    width: int = field(kw_only=True)
    _last: threading.local = field(default_factory=threading.local, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the original."""
        return self.original.shape

    @property
    def dtype(self) -> str:
        """Name of the dtype of what is quantized."""
        return "float32"

    def whole(self, start: int, stop: int) -> tuple[int, int]:
        """Return the ends of what is transformed together with elements `start` to `stop`."""
        return start - start % self.width, min(stop + -stop % self.width, self.size)

    def stored(self, start: int, stop: int) -> FloatArray:
        """Return elements `start` to `stop`."""
        first, last, values = getattr(self._last, "stretch", (0, 0, None))
        if values is None or start < first or min(stop, self.size) > last:
            first, last = self.whole(start, stop)
            x = self.original.block(first, last).reshape(-1, self.width)
            values = self.forward(x).reshape(-1)
            self._last.stretch = first, last, values
        return values[start - first : stop - first]

    def require_finite(self) -> None:
        """Raise ValueError as the original does, or because sums of its values are not finite."""
        self.original.require_finite()
        raise ValueError(
            f"tensor '{label(self.name)}' has values whose sums are beyond float32: rescale it, or "
            "leave out transform"
        )


def _open_transformed(
    tensor: Tensor,
    form: Format,
    transform: Transform | FittedTransform,
    threads: int,
    engine: NumpyEngine,
) -> Reconstruction:
    """Return what comes back of a tensor that is transformed before it is quantized."""
    if isinstance(transform, FittedTransform):
        transform = _fit_transform(tensor, form, transform, threads, engine)
    width = transform.width(form.row_length(tensor.shape))

    def transform_rows(original: Tensor) -> TransformedTensor:
        return TransformedTensor(
            original.name,
            original.array,
            None if original.state is None else (original.state, transform, width),
            original=original,
            forward=lambda x: transform.forward(x, engine.multiply_hadamard),
            width=width,
        )

    transformed, plain = transform_rows(tensor), replace(form, transform=None)
    if isinstance(form.range, CalibratedRange):
        calibration = transform_rows(form.range.tensor)
        plain = replace(plain, range=replace(form.range, tensor=calibration))
    if plain.rounding:
        identity = np.eye(width, dtype=np.float32)
        matrix = transform.backward(identity, engine.multiply_hadamard).astype(np.float64)
        plain = replace(plain, rounding=plain.rounding.transform(matrix))
    codec = open_codec(transformed, plain, threads, engine)

    def read(start: int, stop: int) -> FloatArray:
        first, last = transformed.whole(start, stop)
        try:
            y = reconstruct_block(transformed, codec, engine, first, last)
        except NotFiniteError:
            transformed.require_finite()
            raise
        x_hat = transform.backward(y.reshape(-1, width), engine.multiply_hadamard).reshape(-1)
        return x_hat[start - first : stop - first]

    bits, name = form.storage_bits(tensor.shape), f"transform={transform.name}"
    return Reconstruction(read, name, bits, remark=codec.remark)


def _fit_transform(
    tensor: Tensor, form: Format, transform: FittedTransform, threads: int, engine: NumpyEngine
) -> Transform:
    """Choose the transform by the error of the output of the layer for captured inputs."""
    gram = transform.gram(tensor)
    width = len(gram)
    step = max(1, CHUNK // width) * width
    starts = list(range(0, tensor.size, step))
    original = replace(tensor, state=None)  # so that no survey of a candidate is cached

    def read_rows(read: Read, start: int) -> FloatArray:
        return read(start, min(start + step, tensor.size)).reshape(-1, width)

    def measure_noise(candidate: Transform) -> float:
        form_of_candidate = replace(form, transform=candidate, rounding=None)
        x_hat = open_codec(original, form_of_candidate, threads, engine).read

        def measure_rows(start: int) -> float:
            x, rows = read_rows(tensor.block, start), read_rows(x_hat, start)
            return math.fsum(row_energies((rows - x).astype(np.float64), gram))

        return math.fsum(parallel.map_on_threads(measure_rows, starts, threads))

    maxima = [np.abs(read_rows(tensor.block, start)).max(axis=0) for start in starts]
    return transform.fit(tensor, np.max(maxima, axis=0).astype(np.float64), measure_noise)


def _open_rounded(
    tensor: Tensor, form: Format, rounding: Rounding, threads: int, engine: NumpyEngine
) -> Reconstruction:
    """Return what comes back of a tensor whose rows are rounded; all of it is held in memory."""
    axis = tensor.input_axis
    moved = None if axis in (None, len(tensor.shape) - 1) else MovedAxis.of(tensor, axis)
    plain, rows = replace(form, rounding=None), moved or tensor
    if isinstance(plain.block, PerChannel) and moved:  # of a matrix, whose outputs come first now
        plain = replace(plain, block=replace(plain.block, axis=0))
    try:
        quantizer = _new_quantizer(rows, plain, threads, engine)
        rounded = rounding.round_rows(rows, quantizer, _map_on(threads))
    except NotFiniteError:
        tensor.require_finite()
        raise
    x_hat = rounded.x_hat
    if moved:
        x_hat = np.ascontiguousarray(moved.restore(x_hat.reshape(moved.shape))).reshape(-1)
    bits = round(form.bits_per_value(quantizer.layout) * tensor.size)
    name = f"rounding={rounding.name}"
    return Reconstruction(read_flat(x_hat), name, bits, remark=rounded.remark)
