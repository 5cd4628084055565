import numpy as np
import pytest

from quantlab.formats.blocks import Group
from quantlab.formats.format import Format, Reconstruction
from quantlab.formats.scales import TwoLevel
from quantlab.formats.uniform import Symmetric
from quantlab.sources.tensor import Tensor
from quantlab.stats import survey as module
from quantlab.stats.measure import measure
from quantlab.stats.reference import NumpyEngine
from quantlab.stats.survey import survey

ENGINE = NumpyEngine()
X = np.random.default_rng(0).standard_normal(3 * 2**18 + 5).astype(np.float32)


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch):
    monkeypatch.setattr(module, "_surveys", {})


def looks(monkeypatch):
    """Return a list that grows with each block that is looked at."""
    seen, look = [], module.Surveyor.survey
    monkeypatch.setattr(
        module.Surveyor, "survey", lambda self, start, x: seen.append(start) or look(self, start, x)
    )
    return seen


def test_a_tensor_is_what_it_is():
    found = survey(Tensor("x", X), 2, ENGINE)
    assert (found.lo, found.hi, found.absmax) == (X.min(), X.max(), np.abs(X).max())
    assert found.maxima.max() == X.max()
    assert found.maxima[3] == X[3 * found.width : 4 * found.width].max()
    assert found.moments.n == X.size
    assert found.moments.sq_x == pytest.approx(float(np.square(X, dtype=float).sum()), rel=1e-13)


def test_a_zero_of_either_sign_is_zero():
    found = survey(Tensor("x", np.float32([-0.0, 0.0, -0.0])), 1, ENGINE)
    assert not np.signbit([found.lo, found.hi]).any()


def test_a_state_of_a_file_is_looked_at_once(monkeypatch):
    seen = looks(monkeypatch)
    first = survey(Tensor("x", X, state="file"), 1, ENGINE)
    assert len(seen) == 4
    assert survey(Tensor("x", X, state="file"), 2, ENGINE) is first
    assert len(seen) == 4
    for other in (Tensor("x", X, state="changed"), Tensor("y", X, state="file"), Tensor("x", X)):
        survey(other, 1, ENGINE)
    assert len(seen) == 16


def test_no_more_is_kept_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(module, "_room", 1000)
    survey(Tensor("x", X, state="file"), 1, ENGINE)
    assert module.cached_survey(Tensor("x", X, state="file"))
    survey(Tensor("y", X, state="file"), 1, ENGINE)
    assert not module.cached_survey(Tensor("y", X, state="file"))


def test_a_format_that_needs_no_range_first_reads_a_tensor_once(monkeypatch):
    seen = looks(monkeypatch)
    tensor = Tensor("x", X, state="file")
    monkeypatch.setattr("quantlab.stats.measure.survey", None)  # which is not called
    measure(tensor, Format(Symmetric(4), Group()))
    assert len(seen) > 0
    known = len(seen)
    measure(tensor, Reconstruction(tensor.block, "itself", 1))
    assert len(seen) == known
    with pytest.raises(TypeError):
        measure(Tensor("x", X), Format(Symmetric(4), Group(), scale=TwoLevel()))
