import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.formats.blocks import Group, PerTensor
from quantlab.formats.floats import Float
from quantlab.formats.format import Format
from quantlab.formats.quantizer import BlockQuantizer
from quantlab.formats.uniform import Asymmetric, Symmetric, dequantize, quantize, value_range
from quantlab.sources.source import VerbProbs
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled, rank, survey
from quantlab.stats import measure as module
from quantlab.stats.rank import bits_sufficient, leading_rows, require_k
from tests.conftest import measure

finite = st.floats(-1e3, 1e3, width=32)
vectors = arrays(np.float32, st.integers(1, 60), elements=finite)


def round_trip(x, quantizer):
    params = quantizer.choose(*value_range(x))
    return dequantize(quantize(x, params, quantizer.n_bits), params)


def stability(x, x_hat, k=10):
    """The answers of rank.py for whole arrays, the round trip being any."""
    k, everywhere = min(k, x.size), np.arange(x.size)
    before, after = (
        rank.select_top(values, everywhere, n) for values, n in ((x, k + 1), (x_hat, k))
    )
    edge = after.values[-1]
    return rank.compare_tops(
        before,
        after,
        x=x[after.indices],
        x_hat=x_hat[before.indices],
        reached=np.count_nonzero(x >= before.values[k - 1]),
        above=np.count_nonzero(x_hat > edge),
        at_edge=np.count_nonzero(x_hat == edge),
        absmax=float(np.abs(x).max()),
    )


def f32(*values):
    return np.array(values, dtype=np.float32)


def test_verb_probs_keep_the_set_but_not_the_order_and_every_change_is_a_merge():
    x = next(VerbProbs(42, 600, 1.5).tensors()).array
    answer = stability(x, round_trip(x, Symmetric(8)))
    assert answer["top_same_set"]
    assert not answer["top_same_order"]
    assert answer["top_merged"] > 0
    assert answer["top_swapped"] == 0


def test_sorted_data_does_not_score_one_where_codes_merge():
    x = np.linspace(1, 0, 1000, dtype=np.float32)
    answer = stability(x, round_trip(x, Symmetric(4)))
    assert answer["top_same_order"]  # a stable sort of sorted data is lucky by construction
    assert answer["top_merged"] == 9
    assert answer["top_worst"] == 0
    assert answer["top_expected"] == pytest.approx(10 / np.count_nonzero(x > 6.5 / 7))
    assert answer["top_best"] == 1


def test_swaps_are_distinguished_from_merges():
    answer = stability(f32(4, 3, 2, 1), f32(3, 4, 2, 2), k=3)
    assert (answer["top_swapped"], answer["top_merged"]) == (1, 0)
    answer = stability(f32(4, 3, 2, 1), f32(3, 3, 2, 2), k=3)
    assert (answer["top_swapped"], answer["top_merged"]) == (0, 1)


def test_an_outsider_that_overtakes_counts_as_a_swap():
    answer = stability(f32(3, 2, 1), f32(3, 1, 2), k=2)
    assert answer["top_swapped"] == 1
    assert not answer["top_same_set"]
    assert answer["top_worst"] == answer["top_best"] == 0.5


def test_a_tie_at_the_edge_is_an_interval():
    answer = stability(f32(9, 5, 4, 1), f32(9, 5, 5, 1), k=2)
    assert (answer["top_worst"], answer["top_expected"], answer["top_best"]) == (0.5, 0.75, 1.0)


def test_values_tied_before_are_not_merged():
    assert stability(f32(2, 2, 1), f32(2, 2, 1), k=2)["top_merged"] == 0


def test_fewer_values_than_k_are_compared_whole():
    answer = stability(f32(1, 2), f32(1, 2))
    assert answer["top_k"] == 2
    assert answer["top_bits_sufficient"] == 2


def test_no_width_parts_equal_values():
    assert stability(f32(2, 1, 1), f32(2, 1, 1), k=2)["top_bits_sufficient"] is None


def test_a_gap_of_exactly_one_step_is_not_enough():
    x = f32(3, 2.5, 1.5)  # 3 bits: step 1, and 2.5 and 1.5 both round to 2
    assert stability(x, round_trip(x, Symmetric(3)), k=2)["top_worst"] < 1
    assert bits_sufficient(3.0, 1.0) == 4


@given(vectors, st.integers(2, 16), st.booleans(), st.integers(1, 12))
def test_a_per_tensor_quantizer_never_swaps(x, n_bits, symmetric, k):
    quantizer = Symmetric(n_bits) if symmetric else Asymmetric(n_bits)
    answer = stability(x, round_trip(x, quantizer), k)
    assert answer["top_swapped"] == 0
    assert answer["top_worst"] <= answer["top_expected"] <= answer["top_best"] == 1


@given(vectors, st.integers(2, 16), st.integers(1, 12))
@example(f32(5.579151e-39, 0), 3, 1)  # the step underflows and becomes 1
def test_the_certificate_holds(x, n_bits, k):
    answer = stability(x, round_trip(x, Symmetric(n_bits)), k)
    sufficient = answer["top_bits_sufficient"]
    if sufficient is not None and n_bits >= sufficient and len(set(x.tolist())) > 1:
        assert answer["top_worst"] == 1


@given(
    arrays(np.float32, st.integers(1, 30), elements=st.sampled_from([-2, 0, 1, 1.5, 3])),
    st.integers(1, 12),
)
def test_the_order_is_kept_where_no_smaller_value_comes_back_equal(x, k):
    x_hat = np.floor(x)
    top = np.sort(x)[::-1][:k]
    kept = all(
        x_hat[i] > x_hat[j] for i in np.flatnonzero(x >= top[-1]) for j in np.flatnonzero(x < x[i])
    )
    assert stability(x, x_hat, k)["top_order_kept"] == kept


def test_ties_of_the_data_are_no_loss():
    for x in (f32(*[1] * 50), f32(*[0] * 50), f32(7, 5, *[3] * 20, 1)):
        answer = stability(x, x)
        assert answer["top_order_kept"]
        assert answer["top_worst"] < 1  # which of them is taken is luck, before as after


@pytest.mark.parametrize("k", [0, -1, 2.5, None])
def test_a_bad_k_is_named(k):
    with pytest.raises(ValueError, match=r"^rank.k must be a whole number of 1 or more, got "):
        require_k(k)


@given(
    arrays(np.float32, st.integers(1, 80), elements=st.sampled_from([-2, 0, 1, 1.5, 3])),
    st.integers(1, 9),
    st.integers(1, 12),
)
def test_the_leading_rows_hold_the_top(x, width, k):
    starts = range(0, x.size, width)
    rows = leading_rows(np.array([x[start : start + width].max() for start in starts]), k)
    among = np.concatenate([np.arange(x.size)[row * width : (row + 1) * width] for row in rows])
    assert len(rows) < 2 * k
    found = rank.select_top(x[among], among, k)
    assert found.indices.tolist() == np.argsort(-x, kind="stable")[:k].tolist()


TINY_STEP = (
    float(np.finfo(np.float32).tiny) * 2**15
)  # the absmax whose 16-bit step is the least normal


@pytest.mark.parametrize(
    ("absmax", "gap", "bits"),
    [
        (1.0, np.inf, 2),
        (1.0, 2.0, 2),  # 1 + log2(1.5)
        (1.0, 1 / 127 + 2.0**-24, 9),  # 8 but for what float32 rounds
        (1.0, 1 / 127 + 2.0**-22, 8),
        (1.0, 2.0**-23, None),
        (1.0, 0.0, None),
        (TINY_STEP, TINY_STEP, 3),
        (TINY_STEP * 0.99, TINY_STEP, None),
    ],
)
def test_the_width_that_suffices(absmax, gap, bits):
    assert bits_sufficient(absmax, gap) == bits


def test_values_that_were_or_became_equal_are_no_swap():
    answer = stability(f32(3, 3, 2, 1), f32(2, 3, 3, 1), k=3)
    assert answer["top_swapped"] == 1  # the first 3 came back below the 2
    assert stability(f32(3, 3, 2, 1), f32(3, 2, 2, 1), k=3)["top_swapped"] == 0


def test_the_least_k_is_one():
    require_k(1)


FORMATS = [
    Format(Symmetric(3), Group(size=32)),
    Format(Symmetric(4), Group(size=100)),
    Format(Float(4, 2, 1, 6.0), Group(size=64)),
    Format(Float(4, 2, 1, 6.0), PerTensor()),
    Format(Symmetric(4)),
]


def reconstruct(x, form):
    """Return what a whole array comes back as."""
    tensor, layout = Tensor("x", x), form.block.layout(x.shape)
    quantizer = BlockQuantizer(form, layout, tensor.block, float(np.abs(x).max()))
    return quantizer.round_trip(0, x.size)[0].x_hat


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("levels", [9, 200, 0])
@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("small", [-1, 2**62])
def test_the_answers_are_those_of_the_whole_array(form, levels, k, small, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_NUMPY_SIZE", small)
    monkeypatch.setattr(rank, "ROWS_AT_ONCE", 3)
    x = np.random.default_rng(0).standard_normal((300, 100)).astype(np.float32)
    if levels:  # so that many values are equal
        x = np.round(x * levels / 9) / np.float32(levels)
    monkeypatch.setattr(survey, "ROW_WIDTH", 2**6)
    x_hat = reconstruct(x, form)
    answers = measure(x, form, k=k)["rank"]
    expected = stability(x.ravel(), x_hat, k)
    assert {key: answers[key] for key in answers if key != "top_bits_sufficient"} == {
        key: expected[key] for key in expected if key != "top_bits_sufficient"
    }


@pytest.mark.parametrize("small", [-1, 2**62])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_so_many_th_error_is_sampled(small, threads, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_NUMPY_SIZE", small)
    monkeypatch.setattr(module, "SAMPLE", 1000)
    x = np.random.default_rng(0).standard_normal(5 * 2**18 + 77).astype(np.float32)
    form = Format(Symmetric(4), Group(size=32))
    result = measure(x, form, threads=threads)
    stride = result["error_histogram"]["stride"]
    sample = np.abs(reconstruct(x, form) - x)[::stride].astype(np.float64)
    assert 900 < sample.size <= 1000
    for key, share in (("err_p50", 0.5), ("err_p95", 0.95)):
        assert result["measured"][key] == pytest.approx(np.quantile(sample, share), rel=1e-12)


def test_equal_values_at_the_edge_keep_their_order():
    x = np.array([7, 5, 3, 3, 3, 0], np.float32)  # codes of themselves
    assert measure(x, Symmetric(4), k=3)["rank"]["top_order_kept"]
