import numpy as np
import pytest

from quantlab.formats.blocks import Group, PerTensor
from quantlab.formats.coder import Coder, one_by_one
from quantlab.formats.floats import Float
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled, order, rank, stream
from tests.conftest import measure
from tests.stats.test_rank import stability

FORMATS = [
    Format(Symmetric(3), Group(size=32)),
    Format(Symmetric(4), Group(size=100)),
    Format(Float(4, 2, 1, 6.0), Group(size=64)),
    Format(Float(4, 2, 1, 6.0), PerTensor()),
    Format(Symmetric(4)),
]


def round_trip(x, form):
    """Return what a whole array comes back as."""
    tensor, layout = Tensor("x", x), form.block.layout(x.shape)
    coder = Coder(form, layout, tensor.block, float(np.abs(x).max()), one_by_one)
    return coder.round_trip(0, x.size)[0].x_hat


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("levels", [9, 200, 0])
@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("small", [-1, 2**62])
def test_the_answers_are_those_of_the_whole_array(form, levels, k, small, monkeypatch):
    monkeypatch.setattr(compiled, "SMALL", small)
    monkeypatch.setattr(order, "ROWS", 3)
    x = np.random.default_rng(0).standard_normal((300, 100)).astype(np.float32)
    if levels:  # so that many values are equal
        x = np.round(x * levels / 9) / np.float32(levels)
    monkeypatch.setattr(rank, "ROW", 2**6)
    x_hat = round_trip(x, form)
    answers = measure(x, form, k=k)["rank"]
    expected = stability(x.ravel(), x_hat, k)
    assert {key: answers[key] for key in answers if key != "top_bits_sufficient"} == {
        key: expected[key] for key in expected if key != "top_bits_sufficient"
    }


@pytest.mark.parametrize("small", [-1, 2**62])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_so_many_th_error_is_sampled(small, threads, monkeypatch):
    monkeypatch.setattr(compiled, "SMALL", small)
    monkeypatch.setattr(stream, "SAMPLE", 1000)
    x = np.random.default_rng(0).standard_normal(5 * 2**18 + 77).astype(np.float32)
    form = Format(Symmetric(4), Group(size=32))
    result = measure(x, form, threads=threads)
    stride = result["error_histogram"]["stride"]
    sample = np.abs(round_trip(x, form) - x)[::stride].astype(np.float64)
    assert 900 < sample.size <= 1000
    for key, share in (("err_p50", 0.5), ("err_p95", 0.95)):
        assert result["measured"][key] == pytest.approx(np.quantile(sample, share), rel=1e-12)


def test_equal_values_at_the_edge_keep_their_order():
    x = np.array([7, 5, 3, 3, 3, 0], np.float32)  # codes of themselves
    assert measure(x, Symmetric(4), k=3)["rank"]["top_order_kept"]
