"""Predict the figures of a format, before any tensor is seen.

With one scale over the whole range the error of rounding to a step `s` is uniform over
[-s/2, s/2] (Bennett, "Spectra of quantized signals", 1948), hence max s/2, mean magnitude s/4, rms
s/sqrt(12). For any other format the quantiles of the believed distribution, within the range that
a block of its size is expected to have, are taken through the format itself.
"""

import math
from typing import Any

import numpy as np

from quantlab.formats.blocks import Layout, PerTensor, read_flat
from quantlab.formats.element import per_value
from quantlab.formats.format import Format
from quantlab.formats.quantizer import BlockQuantizer
from quantlab.formats.uniform import Uniform
from quantlab.sources.source import Expected
from quantlab.stats.metrics import decibels

QUANTILES = 4096


def predict(form: Format, expected: Expected) -> dict[str, Any] | None:
    """Predict figures, under the keys of the measured ones; None where there is no distribution."""
    if isinstance(form.element, Uniform) and form.plain:
        step = float(form.element.choose(*expected.range()).scale)
        figures = predict_from_step(step, expected.rms(), expected.landmark)
    else:
        quantiles = expected.quantiles((np.arange(QUANTILES) + 0.5) / QUANTILES)
        if quantiles is None:
            return None
        figures = predict_from_quantiles(form, quantiles, expected)
    return figures | {"landmark": expected.landmark, "words": expected.words}


def predict_from_step(step: float, rms: float, landmark: float) -> dict[str, float]:
    """Predict the figures of a step.

    A landmark below half a step comes back as 0, an error of 100 %; above, its mean error is s/4.

    Examples
    --------
    >>> predict_from_step(step=0.5, rms=1.0, landmark=1.0)["landmark_rel_err"]
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


def predict_from_quantiles(form: Format, quantiles: Any, expected: Expected) -> dict[str, Any]:
    """Predict the figures from one block of quantiles, cut to the range that it should have."""
    lo, hi = expected.range(form.block.block_size)
    block = np.clip([lo, *quantiles, hi], lo, hi).astype(np.float32)
    block_form = Format(form.element, PerTensor(scale=form.block.scale), form.range, form.scale)
    layout, absmax = Layout(block.size, block.size, block.size), max(map(abs, expected.range()))
    quantizer = BlockQuantizer(block_form, layout, read_flat(block), absmax)
    quantized, _ = quantizer.round_trip(0, block.size)
    err = (quantized.x_hat - block).astype(np.float64)
    value = np.array([[expected.landmark]], np.float32)
    value_hat = form.element.round_trip(value, per_value(quantizer.chosen_params)).x_hat
    noise = float(np.square(err).sum())
    signal = float(np.square(block.astype(np.float64)).sum())
    return {
        "scale": float(quantizer.chosen_scales.largest),
        "max_err": float(np.abs(err).max()),
        "mae": float(np.abs(err).mean()),
        "rmse": math.sqrt(np.square(err).mean()),
        "sqnr_db": decibels(signal, noise) if noise else None,
        "landmark_rel_err": float(np.abs(value_hat - value)[0, 0] / value[0, 0]),
    }
