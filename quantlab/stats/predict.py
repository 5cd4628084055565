"""What to expect of a format, before any tensor is seen.

With one scale over the whole range the error of rounding to a step `s` is uniform over
[-s/2, s/2] (Bennett, "Spectra of quantized signals", 1948), hence max s/2, mean magnitude s/4, rms
s/sqrt(12). For any other format the quantiles of the believed distribution, within the range that
a block of its size is expected to have, are taken through the format itself.
"""

import math
from typing import Any

import numpy as np

from quantlab.formats.blocks import Layout, PerTensor
from quantlab.formats.coder import Coder
from quantlab.formats.element import per_value
from quantlab.formats.format import Format
from quantlab.formats.uniform import Uniform
from quantlab.sources.source import Expected

GRID = 4096  # quantiles


def predict(form: Format, expected: Expected) -> dict[str, Any] | None:
    """Return the figures to expect, under the keys of what is measured later; None where none are.

    Nothing looks at a tensor.
    """
    if isinstance(form.element, Uniform) and form.plain:
        step = float(form.element.choose(*expected.range()).scale)
        figures = by_step(step, expected.rms(), expected.landmark)
    else:
        quantiles = expected.quantiles((np.arange(GRID) + 0.5) / GRID)
        if quantiles is None:
            return None
        figures = by_quantiles(form, quantiles, expected)
    return figures | {"landmark": expected.landmark, "words": expected.words}


def by_step(step: float, rms: float, landmark: float) -> dict[str, float]:
    """Return the figures to expect at a step.

    A landmark below half a step comes back as 0, an error of 100 %; above, its mean error is s/4.

    Examples
    --------
    >>> by_step(step=0.5, rms=1.0, landmark=1.0)["landmark_rel_err"]
    0.125
    """
    rmse = step / math.sqrt(12)
    return {
        "scale": step,
        "max_err": step / 2,
        "mae": step / 4,
        "rmse": rmse,
        "sqnr_db": 20 * math.log10(rms / rmse),
        "landmark_rel_err": 1.0 if landmark < step / 2 else step / 4 / landmark,
    }


def by_quantiles(form: Format, quantiles: Any, expected: Expected) -> dict[str, Any]:
    """Return the figures of one block of quantiles, cut to the range that it should have."""
    lo, hi = expected.range(form.block.block_size)
    block = np.clip([lo, *quantiles, hi], lo, hi).astype(np.float32)
    one = Format(form.element, PerTensor(scale=form.block.scale), form.range, form.scale)
    layout, absmax = Layout(block.size, block.size, block.size), max(map(abs, expected.range()))
    coder = Coder(
        one, layout, lambda start, stop: block[start:stop], absmax, lambda f, i: [*map(f, i)]
    )
    trip, _ = coder.round_trip(0, block.size)
    err = (trip.x_hat - block).astype(np.float64)
    value = np.array([[expected.landmark]], np.float32)
    back = form.element.round_trip(value, per_value(coder.known_params)).x_hat
    return {
        "scale": float(coder.known_scales.greatest),
        "max_err": float(np.abs(err).max()),
        "mae": float(np.abs(err).mean()),
        "rmse": math.sqrt(np.square(err).mean()),
        "sqnr_db": _sqnr_db(block.astype(np.float64), err),
        "landmark_rel_err": float(np.abs(back - value)[0, 0] / value[0, 0]),
    }


def _sqnr_db(x: Any, err: Any) -> float | None:
    noise = float(np.square(err).sum())
    return 10 * math.log10(float(np.square(x).sum()) / noise) if noise else None
