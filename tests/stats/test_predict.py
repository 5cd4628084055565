import math

import numpy as np
import pytest

from quantlab.sources.expected import LognormalShares, Normal, Uniform
from quantlab.stats.predict import predict

SAID = {"landmark": 1.0, "words": ""}


def test_the_figures_follow_from_the_step():
    figures = predict(step=0.5, rms=1.0, landmark=1.0)
    assert figures["max_err"] == 0.25
    assert figures["mae"] == 0.125
    assert figures["rmse"] == pytest.approx(0.5 / math.sqrt(12))
    assert figures["sqnr_db"] == pytest.approx(10 * math.log10(12 / 0.25))


def test_a_landmark_below_half_a_step_is_lost_whole():
    assert predict(step=0.5, rms=1.0, landmark=0.2)["landmark_rel_err"] == 1.0
    assert predict(step=0.5, rms=1.0, landmark=0.5)["landmark_rel_err"] == 0.25


def test_one_bit_more_is_six_db_more():
    coarse, fine = (predict(step, 1.0, 1.0)["sqnr_db"] for step in (0.5, 0.25))
    assert fine - coarse == pytest.approx(20 * math.log10(2))


@pytest.mark.parametrize(
    ("believed", "draw"),
    [
        (Uniform(low=-3, high=5, **SAID), lambda rng: rng.uniform(-3, 5, 10**5)),
        (Normal(n=1024, sigma=2, **SAID), lambda rng: rng.normal(0, 2, 1024)),
        (
            LognormalShares(n=600, sigma=0.5, **SAID),
            lambda rng: (v := np.exp(rng.normal(0, 0.5, 600))) / v.sum(),
        ),
    ],
)
def test_beliefs_hold_on_average(believed, draw):
    draws = [draw(np.random.default_rng(seed)) for seed in range(200)]
    lo, hi = believed.range()
    assert np.median([d.max() for d in draws]) == pytest.approx(hi, rel=0.03)
    assert np.median([d.min() for d in draws]) == pytest.approx(lo, rel=0.03)
    assert np.mean([np.sqrt(np.mean(d**2)) for d in draws]) == pytest.approx(
        believed.rms(), rel=0.02
    )
