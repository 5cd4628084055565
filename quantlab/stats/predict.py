"""What theory says of rounding to a step, before any tensor is seen.

The error of rounding to a step `s` is uniform over [-s/2, s/2] (Bennett, "Spectra of quantized
signals", 1948), hence max s/2, mean magnitude s/4, rms s/sqrt(12).
"""

import math


def predict(step: float, rms: float, landmark: float) -> dict[str, float]:
    """Return the figures to expect at a step, under the keys of what is measured later.

    A landmark below half a step comes back as 0, an error of 100 %; above, its mean error is s/4.

    Examples
    --------
    >>> predict(step=0.5, rms=1.0, landmark=1.0)["landmark_rel_err"]
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
