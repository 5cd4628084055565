import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.models.figures import FIGURES, OriginalAnswers, OutputComparison, find_kind, wilson

RNG = np.random.default_rng(0)


def softmax(rows):
    odds = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def compare(before, after, kind, k=3, labels=None, step=None):
    comparison = OutputComparison("y", kind)
    step = step or len(before)
    for start in range(0, len(before), step):
        batch = slice(start, start + step)
        own = None if labels is None else labels[batch]
        comparison.add(OriginalAnswers("y", before[batch], kind, k, start), after[batch], own)
    return comparison.to_json()


def exact_kl(p, q):
    """The definition in fractions of the probabilities, logarithms apart."""
    p, q = ([Fraction(float(v)) for v in row] for row in (p, q))
    p, q = ([v / sum(row) for v in row] for row in (p, q))
    return math.fsum(float(a) * math.log2(a / b) for a, b in zip(p, q, strict=True) if a)


def test_kl_is_that_of_the_definition():
    p, q = softmax(RNG.standard_normal((2, 50, 7)))
    figures = compare(p, q, "probabilities")["figures"]
    kl = [exact_kl(*rows) for rows in zip(p, q, strict=True)]
    assert figures["kl"] == pytest.approx(math.fsum(kl) / 50, rel=1e-12)
    assert figures["kl_median"] == pytest.approx(np.median(kl), rel=1e-12)
    assert figures["kl_p99"] == pytest.approx(np.quantile(kl, 0.99), rel=1e-12)
    assert figures["kl_max"] == pytest.approx(max(kl), rel=1e-12)


def test_logits_answer_as_their_probabilities_do():
    x = 5 * RNG.standard_normal((40, 9))
    x_hat = x + 0.1 * RNG.standard_normal(x.shape)
    of_logits = compare(x, x_hat, "logits")["figures"]
    of_probabilities = compare(softmax(x), softmax(x_hat), "probabilities")["figures"]
    for key in FIGURES:
        if key not in ("sqnr_db", "cos_sim"):  # which are of the numbers themselves
            expected = of_probabilities[key]
            assert of_logits[key] == (expected if expected is None else pytest.approx(expected)), (
                key
            )


def test_the_rows_of_a_sample_are_averaged_before_samples_are_compared():
    p, q = softmax(RNG.standard_normal((2, 6, 5, 4)))
    answer = compare(p, q, "probabilities")
    per_row = [exact_kl(*r) for r in zip(p.reshape(-1, 4), q.reshape(-1, 4), strict=True)]
    per_sample = np.reshape(per_row, (6, 5)).mean(axis=1)
    assert (answer["rows"], answer["samples"]) == (30, 6)
    assert answer["figures"]["kl_max"] == pytest.approx(per_sample.max(), rel=1e-12)


def test_a_probability_of_0_counts_as_the_least_float32():
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[1.0, 0.0, 0.0]])
    figures = compare(p, q, "probabilities")["figures"]
    assert figures["kl"] == pytest.approx(0.5 * (-1 - 0) + 0.5 * (-1 + 149))
    assert compare(q, p, "probabilities")["figures"]["kl"] == 1.0


@given(
    arrays(np.int64, (4, 5), elements=st.integers(0, 3)),
    arrays(np.int64, (4, 5), elements=st.integers(0, 3)),
    st.integers(1, 6),
)
def test_ranks_are_those_of_every_breaking_of_ties(x, x_hat, k):
    figures = compare(x, x_hat, "logits", k)["figures"]
    k, shares = min(k, 5), []
    for row, row_hat in zip(x.tolist(), x_hat.tolist(), strict=True):
        top = sorted(range(5), key=lambda n: -row[n])[:k]
        top_hat = sorted(range(5), key=lambda n: -row_hat[n])[:k]
        kept = [
            len(set(top) & set(sorted(order, key=lambda n: -row_hat[n])[:k])) / k
            for order in permutations(range(5))
        ]
        same = top[0] == top_hat[0], set(top) == set(top_hat), top == top_hat
        shares.append([*same, min(kept), max(kept)])
    names = "top1_same", "top_same_set", "top_same_order", "top_worst", "top_best"
    assert [figures[name] for name in names] == pytest.approx(np.mean(shares, axis=0))


@given(st.integers(1, 12))
def test_batches_change_no_figure(step):
    x = np.random.default_rng(1).standard_normal((12, 3, 6))
    x_hat = x + np.random.default_rng(2).standard_normal(x.shape)
    labels = np.arange(36).reshape(12, 3) % 6
    whole = compare(x, x_hat, "logits", labels=labels)
    parts = compare(x, x_hat, "logits", labels=labels, step=step)
    assert parts["changes"] == whole["changes"]
    for key, value in whole["figures"].items():
        assert parts["figures"][key] == pytest.approx(value, rel=1e-12), key


def test_the_change_of_the_first_answer_is_llama_cpp_s():
    p = np.array([[0.7, 0.3], [0.4, 0.6]])
    q = np.array([[0.6, 0.4], [0.4, 0.6]])
    assert compare(p, q, "probabilities")["figures"]["dp_rms"] == pytest.approx(math.sqrt(0.005))


def test_labels_say_how_often_the_answer_is_right():
    x = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    figures = compare(x, x[:, ::-1], "logits", labels=np.array([1, 0, 0]))["figures"]
    assert figures["accuracy_before"] == pytest.approx(2 / 3)
    assert figures["accuracy"] == pytest.approx(1 / 3)


def test_of_values_there_is_noise_and_no_kl():
    x, error = RNG.standard_normal((2, 5, 8))
    figures = compare(x, x + error, "values")["figures"]
    assert figures["sqnr_db"] == pytest.approx(10 * np.log10((x**2).sum() / (error**2).sum()))
    cosine = (x * (x + error)).sum() / np.linalg.norm(x) / np.linalg.norm(x + error)
    assert figures["cos_sim"] == pytest.approx(cosine, rel=1e-12)
    assert {key for key, value in figures.items() if value is not None} == {"sqnr_db", "cos_sim"}


def test_answers_that_did_not_change_lost_nothing():
    p = softmax(RNG.standard_normal((5, 4)))
    figures = compare(p, p, "probabilities")["figures"]
    assert figures["kl"] == figures["kl_max"] == figures["dp_rms"] == 0
    assert figures["top1_same"] == figures["top_same_order"] == 1
    assert figures["sqnr_db"] is None


def test_the_surest_changes_are_listed_first():
    p = np.array([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]])
    changes = compare(p, p[:, ::-1], "probabilities")["changes"]
    assert changes[0] == {
        "sample": 1, "row": 0, "before": 1, "after": 0, "p_before": 0.9, "p_after": 0.9,
    }  # fmt: skip
    assert [change["sample"] for change in changes] == [1, 0]


def test_answers_that_are_the_same_for_all_inputs_are_doubted():
    p = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert "for all inputs" in compare(p, p, "probabilities")["remark"]
    assert compare(np.eye(2), np.eye(2), "probabilities")["remark"] is None


@pytest.mark.parametrize(
    ("name", "rows", "kind"),
    [
        ("y", [[0.25, 0.75]], "probabilities"),
        ("y", [[0.25, 0.70]], "values"),
        ("y", [[-0.25, 1.25]], "values"),
        ("logits", [[0.25, 0.70]], "logits"),
        ("start_Logits", [[3.0, -1.0]], "logits"),
        ("logit", [[1.0]], "values"),  # of one class there is no first
    ],
)
def test_what_the_rows_of_an_output_are_is_found_out(name, rows, kind):
    assert find_kind(name, np.array(rows)) == kind


def test_what_cannot_be_compared_is_named_with_its_output():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"output 'y' has the shape \[2, 2\] after, and \[2, 3\]"):
        compare(x, x[:, :2], "values")
    bad = x.copy()
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"output 'y' is not finite after .* at \[1, 2\]"):
        compare(x, bad, "values", step=1)


@pytest.mark.parametrize(("n_same", "n"), [(0, 5), (5, 5), (95, 100)])
def test_the_interval_of_wilson_solves_its_equation(n_same, n):
    for end in wilson(n_same, n):
        if 0 < end < 1:
            deviation = abs(n_same / n - end) / math.sqrt(end * (1 - end) / n)
            assert deviation == pytest.approx(1.959964, abs=1e-6)
