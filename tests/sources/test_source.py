import numpy as np
import pytest

from quantlab.sources.source import (
    ExpectedLognormalShares,
    ExpectedNormal,
    ExpectedUniform,
    Hidden,
    TenseLogits,
    VerbProbs,
)

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


def block_b(seed):
    """The lab's block B, run top to bottom."""
    rng = np.random.default_rng(seed)
    raw = np.exp(rng.normal(0, 1.5, 600)).astype(np.float32)
    return {
        "tense_logits": np.array([1.2, 4.7, 3.1, 0.5, 2.9], dtype=np.float32),
        "verb_probs": raw / raw.sum(),
        "hidden": rng.standard_normal(1024).astype(np.float32),
    }


@pytest.mark.parametrize("seed", [42, 0, 7])
def test_each_tensor_alone_is_the_labs_bit_for_bit(seed):
    for source in (TenseLogits(seed, None), VerbProbs(seed, 600, 1.5), Hidden(seed, 1024, 600)):
        (tensor,) = source.tensors()
        expected = block_b(seed)[tensor.name]
        assert tensor.array.dtype == np.float32
        assert tensor.array.tobytes() == expected.tobytes()


def test_the_batch_of_logits_is_the_labs():
    (tensor,) = TenseLogits(42, 64).tensors()
    batch = np.random.default_rng(42).uniform(-3, 5, size=(64, 5)).astype(np.float32)
    assert tensor.array.tobytes() == batch.tobytes()
    assert tensor.shape == (64, 5)


@pytest.mark.parametrize(
    ("source", "settings", "key"),
    [
        (Hidden, {"seed": 1, "n": -5, "skip": 0}, "dist.n"),
        (Hidden, {"seed": 1, "n": 5, "skip": -1}, "dist.skip"),
        (VerbProbs, {"seed": 1, "n": 2.5, "sigma": 1}, "dist.n"),
        (VerbProbs, {"seed": 1, "n": 2, "sigma": 0}, "dist.sigma"),
        (VerbProbs, {"seed": -1, "n": 2, "sigma": 1}, "seed"),
        (TenseLogits, {"seed": 1, "batch": 0}, "dist.batch"),
    ],
)
def test_a_bad_setting_is_named(source, settings, key):
    with pytest.raises(ValueError, match=rf"^{key} must be .*, got "):
        source(**settings)
