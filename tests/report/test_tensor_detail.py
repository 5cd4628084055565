import numpy as np
import pytest

from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.report.plots import plot_style, svg, tensor_plot
from quantlab.report.tensor_detail import places, tensor_detail
from quantlab.report.texts import Texts
from tests.conftest import measure

T = Texts("en")


def printed(x, x_hat, k):
    top = {"indices": list(range(len(x))), "x": x, "x_hat": x_hat}
    return [(place.after, place.merged) for place in places(top, k, T)]


def test_values_that_became_equal_share_their_places():
    assert printed([9.0, 8.0, 7.9, 5.0, 3.0], [9.0, 8.0, 8.0, 5.0, 3.0], 4) == [
        ("1", False),
        ("2–3", True),
        ("2–3", True),
        ("4", False),
    ]


def test_the_next_value_is_shown_where_it_ties_with_the_last():
    assert printed([9.0, 8.0, 7.0], [9.0, 8.0, 8.0], 2) == [
        ("1", False),
        ("2 or lower", True),
        ("2 or lower", True),
    ]
    assert printed([9.0, 8.0, 7.0], [8.0, 8.0, 8.0], 2) == [("1–2 or lower", True)] * 3


def test_values_that_were_equal_are_not_marked():
    assert printed([9.0, 5.0, 5.0, 5.0], [9.0, 5.0, 5.0, 5.0], 3) == [
        ("1", False),
        ("2–3 or lower", False),
        ("2–3 or lower", False),
    ]


def test_a_tensor_of_k_values_has_no_next():
    assert printed([9.0, 8.0], [8.0, 8.0], 2) == [("1–2", True)] * 2


def test_of_a_long_top_the_first_places_are_shown():
    values = [float(100 - n) for n in range(21)]
    shown = printed(values, values, 1000)
    assert shown == [(str(n), False) for n in range(1, 21)]


@pytest.mark.parametrize(
    ("x", "quantizer", "said"),
    [
        (
            [1.2, 4.7, 3.1, 0.5, 2.9],
            Asymmetric(8, "clip"),
            ["the errors reach 61 times s/2", "20% of the values lay beyond the code range"],
        ),
        ([1.0, 2.0, 127.0], Symmetric(8), ["nothing is lost", "No non-zero value became 0."]),
        (
            [0.001, 1.0, 127.0],
            Symmetric(8),
            ["stay within 0.002 times s/2", "33.3% of the non-zero values became 0"],
        ),
    ],
)
def test_what_is_said_of_a_tensor(x, quantizer, said):
    entry = measure(np.float32(x), quantizer)
    with plot_style():
        drawn = svg(tensor_plot(entry, T), "x")
    shown = tensor_detail("x", 8, entry, drawn, T)
    assert shown.heading == "x, 8 bits"
    text = " ".join(shown.sentences)
    assert all(each in text for each in said), text
    assert ("clipped" in text) == (entry["measured"]["clipped"] > 0)


def test_of_many_scales_no_half_step_is_said():
    entry = measure(np.float32([0.001, 1.0, 126.7]), Symmetric(8))
    none = dict.fromkeys(("bound_ratio", "rmse_over_scale"))
    many = entry | {
        "params": entry["params"] | {"scale": None, "zero_point": None},
        "measured": entry["measured"] | none,
    }
    with plot_style():
        drawn = svg(tensor_plot(many, T), "x")
    shown = tensor_detail("x", 8, many, drawn, T)
    largest = f"{entry['measured']['max_err']:.3g}"
    assert shown.sentences[0] == f"Errors: the largest error is {largest}."
    assert shown.sentences[2] == "33.3% of the non-zero values became 0."
    assert "s/2" not in " ".join([*shown.sentences, shown.picture])


def test_with_many_scales_ranks_are_those_among_the_values_listed():
    entry = measure(np.float32([9.0, 8.0, 7.0, 6.9]), Symmetric(8), k=2)
    top = {"indices": [0, 1, 2], "x": [9.0, 8.0, 7.0], "x_hat": [8.0, 8.5, 8.0]}
    many = entry | {"params": entry["params"] | {"scale": None, "zero_point": None}, "top": top}
    with plot_style():
        drawn = svg(tensor_plot(many, T), "x")
    shown = tensor_detail("x", 8, many, drawn, T)
    assert [place.after for place in shown.places] == ["2", "1"]
    assert shown.caption.endswith("ranks are those among the values listed.")
    one = tensor_detail("x", 8, entry, drawn, T)
    assert "many scales" not in one.caption
