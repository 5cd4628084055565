import numpy as np
import pytest

from quantlab.sources.source import ExpectedLognormalShares, ExpectedNormal, ExpectedUniform

SAID = {"landmark": 1.0, "words": ""}


@pytest.mark.parametrize(
    ("believed", "draw"),
    [
        (ExpectedUniform(low=-3, high=5, **SAID), lambda rng: rng.uniform(-3, 5, 10**5)),
        (ExpectedNormal(n=1024, sigma=2, **SAID), lambda rng: rng.normal(0, 2, 1024)),
        (
            ExpectedLognormalShares(n=600, sigma=0.5, **SAID),
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
