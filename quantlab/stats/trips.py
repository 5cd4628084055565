"""How one tensor goes through a format: with even steps, in any other grid of ours, or in a codec.

They take blocks to codes and back for the engine, and say what was stored for it.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.formats import uniform
from quantlab.formats.blocks import Layout
from quantlab.formats.coder import NO_SCALES, Coder, Scales
from quantlab.formats.element import FloatArray, Trip, per_value
from quantlab.formats.format import Format, Reconstruction
from quantlab.formats.ranges import NUMPY
from quantlab.formats.roundtrip import RoundTrip, saturates
from quantlab.formats.uniform import Params, Uniform
from quantlab.sources.tensor import Tensor
from quantlab.stats import parallel
from quantlab.stats.compiled import Fitted, Grid, Kernel, grid_of
from quantlab.stats.survey import Survey

Work = Callable[[int, FloatArray], Trip]  # of a flat block and where it begins
SHORT = 2**12  # values of which to look for what saturates costs less than to know it before
MANY = "there are {n} scales"
UNEVEN = "the steps of the grid differ"
OTHER = "{dtype} has codes and scales of its own"


class Through(Protocol):
    """One tensor through one format.

    `n_bits` is the width of its codes, None where they are not ours; `grid` is that of compiled
    loops, None where they have it not; `step` is that of the grid, None where there is not one, and
    `no_step` says why; `slow`, that a thread pays for few values.
    """

    n_bits: int | None
    bits_per_value: float
    grid: Grid | None
    step: float | None
    no_step: str
    slow: bool

    def worker(self, size: int) -> Work:
        """Return what takes blocks of up to `size` values, in memory of its own."""

    def fitted(self, start: int, stop: int) -> Fitted:
        """Return the parameters of the blocks that some elements are in, where there is a grid."""

    def round_trip(self, start: int, stop: int) -> FloatArray:
        """Return what some elements come back as."""

    def back(self, x: FloatArray) -> FloatArray | None:
        """Return what flat values come back as, None where that depends on where they stand."""

    def relative_error(self, x: np.float32) -> float | None:
        """Return the relative error of a value; None where it has not one."""

    def scales(self) -> Scales | None:
        """Return the scales, once every block has been through; None where they are not ours."""

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters, and why some are null."""


class OneStep:
    """A tensor with one scale and even steps: the map is monotone, and a code has one value."""

    slow = False

    def __init__(
        self, tensor: Tensor, params: Params, form: Format, found: Survey, scales: Scales
    ) -> None:
        """Take the parameters chosen for a tensor of this range, and the scale as it is stored."""
        self.tensor, self.params, self._scales = tensor, params, scales
        self.width = form.n_bits
        self.n_bits: int | None = self.width
        self.bits_per_value = form.bits_per_value(form.block.layout(tensor.shape))
        self._ends = found.lo, found.hi
        self.grid: Grid | None = grid_of(form.element)
        self._blocks = Fitted(form.block.layout(tensor.shape), 0, params)
        self.step: float | None = float(params.scale)
        self.no_step = ""

    def worker(self, size: int) -> Work:
        """Return what takes blocks of up to `size` values, in memory of its own."""
        saturating = size < SHORT or saturates(self.params, self.width, *self._ends)
        trip = RoundTrip(self.params, self.width, saturating, size)
        return lambda _, x: trip(x)

    def fitted(self, start: int, stop: int) -> Fitted:  # noqa: ARG002 Through
        """Return the parameters of the one block."""
        return self._blocks

    def round_trip(self, start: int, stop: int) -> FloatArray:
        """Return what some elements come back as."""
        return self.back(self.tensor.block(start, stop))

    def back(self, x: FloatArray) -> FloatArray:
        """Return what values come back as."""
        return self.values(uniform.quantize(x, self.params, self.width))

    def values(self, codes: NDArray[Any]) -> FloatArray:
        """Return what codes stand for."""
        return uniform.dequantize(codes, self.params)

    def relative_error(self, x: np.float32) -> float | None:
        """Return the relative error of a value, which need not be in the tensor."""
        return float(np.abs(self.back(np.asarray(x)) - x) / x)

    def scales(self) -> Scales | None:
        """Return the one scale."""
        return self._scales

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters, and why some are null."""
        qmin, qmax = uniform.code_range(self.width)
        return self.params._asdict() | {"scale": self.step, "qmin": qmin, "qmax": qmax}, {}


class AnySteps:
    """A tensor in blocks, or in a grid whose steps differ."""

    slow = False

    def __init__(
        self,
        tensor: Tensor,
        form: Format,
        layout: Layout,
        absmax: float,
        threads: int,
        kernel: Kernel | None,
    ) -> None:
        """Choose what has to be chosen before the first block."""
        self.n_scales = layout.n_blocks
        self.n_bits: int | None = form.n_bits
        self.bits_per_value = form.bits_per_value(layout)
        self.coder = Coder(
            form,
            layout,
            kernel.reader(tensor) if kernel else tensor.block,
            absmax,
            lambda function, items: parallel.mapped(function, items, threads),
            kernel.reductions if kernel else NUMPY,
        )
        self.grid: Grid | None = grid_of(form.element)
        self._known = Fitted(layout, 0, self.coder.known_params)
        self.step: float | None = None
        even = isinstance(form.element, Uniform)
        self.no_step = MANY.format(n=self.n_scales) if even and self.n_scales > 1 else UNEVEN
        self._found: list[Scales] = []

    def worker(self, _: int) -> Work:
        """Return what takes blocks, and keeps the scales it meets."""

        def work(start: int, x: FloatArray) -> Trip:
            trip, scales = self.coder.round_trip(start, start + x.size)
            self._found.append(scales)
            return trip

        return work

    def fitted(self, start: int, stop: int) -> Fitted:
        """Return the parameters of the blocks that some elements are in; keep the scales met."""
        if self.coder.layout.surveyed:
            return self._known
        first, params, scales = self.coder.fitted(start, stop)
        self._found.append(scales)
        return Fitted(self.coder.layout, first, params)

    def round_trip(self, start: int, stop: int) -> FloatArray:
        """Return what some elements come back as."""
        return self.coder.round_trip(start, stop)[0].x_hat

    def back(self, x: FloatArray) -> FloatArray | None:
        """Return what flat values come back as, None where they could be in different blocks."""
        if self.n_scales > 1:
            return None
        params = per_value(self.coder.known_params)
        return self.coder.form.element.reconstruct(x[None], params)[0]

    def relative_error(self, x: np.float32) -> float | None:
        """Return the relative error of a value, None where it could be in one block or another."""
        x_hat = self.back(np.reshape(x, 1))
        return None if x_hat is None else float(np.abs(x_hat[0] - x) / x)

    def scales(self) -> Scales | None:
        """Return the scales, once every block has been through."""
        total = NO_SCALES
        for scales in (self.coder.known_scales, *self._found):
            total |= scales
        return total

    def _params(self) -> dict[str, Any]:
        """Return the parameters where there is one block."""
        if self.n_scales > 1:
            return {}
        return {key: value[0].item() for key, value in self.coder.known_params._asdict().items()}

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters, and why some are null."""
        known = self._params()
        flags = {key: known.get(key) for key in ("scale_replaced", "zero_point_clipped")}
        params = {"scale": known.get("scale"), "zero_point": known.get("zero_point"), **flags}
        qmin, qmax = uniform.code_range(self.coder.form.n_bits)
        reason = MANY.format(n=self.n_scales) if self.n_scales > 1 else "the grid has none"
        unknown = {key: reason for key, value in params.items() if value is None}
        return params | {"qmin": qmin, "qmax": qmax}, unknown


class Decoded:
    """A tensor in a codec, of which it is known what comes back and nothing else."""

    n_bits: int | None = None
    step: float | None = None
    grid: Grid | None = None

    def __init__(self, tensor: Tensor, stored: Reconstruction) -> None:
        """Take what the tensor comes back as."""
        self.tensor, self.stored, self.slow = tensor, stored, stored.slow
        self.bits_per_value = stored.bits / tensor.size
        self.no_step = OTHER.format(dtype=stored.dtype)

    def worker(self, _: int) -> Work:
        """Return what reads blocks."""
        return lambda start, x: Trip(None, self.round_trip(start, start + x.size), None)

    def fitted(self, start: int, stop: int) -> Fitted:
        """Raise NotImplementedError: there is no grid."""
        raise NotImplementedError

    def round_trip(self, start: int, stop: int) -> FloatArray:
        """Return what some elements come back as; raises ValueError where one is not finite."""
        x_hat = self.stored.read(start, stop)
        if not np.isfinite(x_hat).all():
            first = start + int(np.flatnonzero(~np.isfinite(x_hat))[0])
            index = [int(each) for each in np.unravel_index(first, self.tensor.shape)]
            why = "is damaged" if self.stored.sha256 else "cannot hold its values"
            raise ValueError(
                f"tensor '{self.tensor.name}' comes back as {x_hat[first - start]} at {index}: "
                f"{self.stored.dtype} {why}"
            )
        return x_hat

    def back(self, _: FloatArray) -> FloatArray | None:
        """Return None: only values of the tensor are known."""
        return None

    def relative_error(self, _: np.float32) -> float | None:
        """Return None: only values of the tensor are known."""
        return None

    def scales(self) -> Scales | None:
        """Return None: they are the codec's."""
        return None

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return null for every parameter, and why."""
        keys = "scale", "zero_point", "scale_replaced", "zero_point_clipped", "qmin", "qmax"
        return dict.fromkeys(keys), dict.fromkeys(keys, self.no_step)


def needs_range(tensor: Tensor, form: Format | Reconstruction) -> bool:
    """Say whether the range of a tensor is asked for before its first block goes through."""
    if isinstance(form, Reconstruction):
        return False
    return form.block.layout(tensor.shape).surveyed or form.scale_type.tensor_bits > 0


def trip_of(
    tensor: Tensor,
    form: Format | Reconstruction,
    found: Survey | None,
    threads: int,
    kernel: Kernel | None = None,
) -> OneStep | AnySteps | Decoded:
    """Return how a tensor goes through a format, its parameters chosen.

    What was `found` of it is there where it is needed.
    """
    if isinstance(form, Reconstruction):
        return Decoded(tensor, form)
    layout = form.block.layout(tensor.shape)
    element = form.element
    if found is None:
        return AnySteps(tensor, form, layout, math.nan, threads, kernel)
    if layout.n_blocks > 1 or not isinstance(element, Uniform):
        return AnySteps(tensor, form, layout, found.absmax, threads, kernel)
    if form.range.name == "absmax" and form.scale_type.name == "float32":
        params = element.choose(found.lo, found.hi)
        scale, vanished = (
            float(params.scale),
            params.scale_replaced and 0 < found.absmax < uniform.HALF,
        )
        scales = Scales(1, scale, scale, 0, int(vanished))
    else:
        trip = AnySteps(tensor, form, layout, found.absmax, threads, kernel)
        scales = trip.coder.known_scales
        if not scales.least:  # it vanished: there is no step to count in
            return trip
        params = uniform.first(trip.coder.known_params)
    return OneStep(tensor, params, form, found, scales)
