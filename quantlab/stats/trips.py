"""How one tensor goes through a format: with one scale and even steps, or with anything else.

Both take blocks to codes and back for the engine, and say what was stored for it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.formats import uniform
from quantlab.formats.blocks import Layout
from quantlab.formats.coder import NO_SCALES, Coder, Scales
from quantlab.formats.element import FloatArray, Trip, per_value
from quantlab.formats.format import Format
from quantlab.formats.roundtrip import RoundTrip, saturates
from quantlab.formats.uniform import Params, Uniform
from quantlab.sources.tensor import Tensor
from quantlab.stats import parallel
from quantlab.stats.survey import Survey

Work = Callable[[int, FloatArray], Trip]  # of a flat block and where it begins
MANY = "there are {n} scales"
UNEVEN = "the steps of the grid differ"


class OneStep:
    """A tensor with one scale and even steps: the map is monotone, and a code has one value.

    `small_errors` says that no error is much larger than its value, `step` is that of the grid,
    None where there is not one, and `no_step` why.
    """

    def __init__(
        self, tensor: Tensor, params: Params, n_bits: int, found: Survey, scales: Scales
    ) -> None:
        """Take the parameters chosen for a tensor of this range, and the scale as it is stored."""
        self.tensor, self.params, self.n_bits, self._scales = tensor, params, n_bits, scales
        self.saturating = saturates(params, n_bits, found.lo, found.hi)
        self.small_errors = not self.saturating
        self.step: float | None = float(params.scale)
        self.no_step = ""

    def worker(self, size: int) -> Work:
        """Return what takes blocks of up to `size` values, in memory of its own."""
        trip = RoundTrip(self.params, self.n_bits, self.saturating, size)
        return lambda _, x: trip(x)

    def round_trip(self, start: int, stop: int) -> FloatArray:
        """Return what some elements come back as."""
        return self.back(self.tensor.block(start, stop))

    def back(self, x: FloatArray) -> FloatArray:
        """Return what values come back as."""
        return self.values(uniform.quantize(x, self.params, self.n_bits))

    def values(self, codes: NDArray[Any]) -> FloatArray:
        """Return what codes stand for."""
        return uniform.dequantize(codes, self.params)

    def relative_error(self, x: np.float32) -> float | None:
        """Return the relative error of a value, which need not be in the tensor."""
        return float(np.abs(self.back(np.asarray(x)) - x) / x)

    def scales(self) -> Scales:
        """Return the one scale."""
        return self._scales

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters, and why some are null."""
        return self.params._asdict() | {"scale": self.step}, {}


class AnySteps:
    """A tensor in blocks, or in a grid whose steps differ; it says the same as `OneStep`."""

    def __init__(
        self, tensor: Tensor, form: Format, layout: Layout, found: Survey, threads: int
    ) -> None:
        """Choose what has to be chosen before the first block."""
        self.n_scales = layout.n_blocks
        self.coder = Coder(
            form,
            layout,
            tensor.block,
            found.absmax,
            lambda function, items: parallel.mapped(function, items, threads),
        )
        self.small_errors = form.element.keeps_zero
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

    def round_trip(self, start: int, stop: int) -> FloatArray:
        """Return what some elements come back as."""
        return self.coder.round_trip(start, stop)[0].x_hat

    def relative_error(self, x: np.float32) -> float | None:
        """Return the relative error of a value, None where it could be in one block or another."""
        if self.n_scales > 1:
            return None
        params = per_value(self.coder.known_params)
        back = self.coder.form.element.round_trip(np.reshape(x, (1, 1)), params).x_hat
        return float(np.abs(back[0, 0] - x) / x)

    def scales(self) -> Scales:
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
        reason = MANY.format(n=self.n_scales) if self.n_scales > 1 else "the grid has none"
        return params, {key: reason for key, value in params.items() if value is None}


def trip_of(tensor: Tensor, form: Format, found: Survey, threads: int) -> OneStep | AnySteps:
    """Return how a tensor goes through a format, its parameters chosen."""
    layout = form.block.layout(tensor.shape)
    element = form.element
    if layout.n_blocks > 1 or not isinstance(element, Uniform):
        return AnySteps(tensor, form, layout, found, threads)
    if form.range.name == "absmax" and form.scale_type.name == "float32":
        params = element.choose(found.lo, found.hi)
        scale, vanished = (
            float(params.scale),
            params.scale_replaced and 0 < found.absmax < uniform.HALF,
        )
        scales = Scales(1, scale, scale, 0, int(vanished))
    else:
        trip = AnySteps(tensor, form, layout, found, threads)
        scales = trip.coder.known_scales
        if not scales.least:  # it vanished: there is no step to count in
            return trip
        params = uniform.first(trip.coder.known_params)
    return OneStep(tensor, params, form.n_bits, found, scales)
