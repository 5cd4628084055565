import numpy as np
import pytest

from quantlab.formats.noise import CHUNK_VALUES, Noise
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure, reconstruct


def draw(size, name="w"):
    return Tensor(name, np.random.default_rng(3).standard_normal(size).astype(np.float32))


@pytest.mark.parametrize("sqnr_db", [-3, 20, 40.5])
def test_noise_has_the_sqnr_that_it_is_named_after(sqnr_db):
    tensor = draw(3 * CHUNK_VALUES + 17)
    result = measure(tensor, Noise(sqnr_db).open(tensor))
    assert result["measured"]["sqnr_db"] == pytest.approx(sqnr_db, abs=0.05)
    assert result["storage"]["bits_per_value"] == 32


def test_any_stretch_has_the_same_values():
    tensor = draw(3 * CHUNK_VALUES + 17)
    form = Noise(30)
    whole = form.open(tensor).read(0, tensor.size)
    for start, stop in ((0, 1), (CHUNK_VALUES - 3, CHUNK_VALUES + 5), (7, tensor.size), (40, 41)):
        assert np.array_equal(form.open(tensor).read(start, stop), whole[start:stop])
    for threads in (1, 3):
        assert np.array_equal(reconstruct(tensor, form.open(tensor), threads), whole)


def test_noise_is_of_the_name_and_scales_with_the_tensor():
    tensor = draw(5000)
    noise = {name: Noise(20).open(draw(5000, name)).read(0, 5000) - tensor.array for name in "ab"}
    assert abs(np.corrcoef(noise["a"], noise["b"])[0, 1]) < 0.1
    less = Noise(40).open(draw(5000, "a")).read(0, 5000) - tensor.array
    assert less * 10 == pytest.approx(noise["a"], abs=1e-5)


def test_zeros_come_back_as_they_are():
    zeros = Tensor("z", np.zeros(100, np.float32))
    assert not reconstruct(zeros, Noise(10).open(zeros)).any()


def test_values_that_are_not_finite_are_named():
    bad = Tensor("bad", np.array([1, np.nan, 2], np.float32))
    with pytest.raises(ValueError, match=r"tensor 'bad'.*\[1\]"):
        measure(bad, Noise(30).open(bad))


@pytest.mark.parametrize("sqnr_db", [True, "30", float("inf"), None])
def test_a_size_that_is_none_is_refused(sqnr_db):
    with pytest.raises(ValueError, match="must be a number of dB"):
        Noise(sqnr_db)
