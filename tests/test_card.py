from quantlab.card import places
from quantlab.texts import Texts

T = Texts("en")


def told(x, x_hat, k):
    top = {"indices": list(range(len(x))), "x": x, "x_hat": x_hat}
    return [(place.after, place.merged) for place in places(top, k, T)]


def test_values_that_became_equal_share_their_places():
    assert told([9.0, 8.0, 7.9, 5.0, 3.0], [9.0, 8.0, 8.0, 5.0, 3.0], 4) == [
        ("1", False),
        ("2–3", True),
        ("2–3", True),
        ("4", False),
    ]


def test_the_next_value_is_shown_where_it_ties_with_the_last():
    assert told([9.0, 8.0, 7.0], [9.0, 8.0, 8.0], 2) == [
        ("1", False),
        ("2 or out", True),
        ("2 or out", True),
    ]
    assert told([9.0, 8.0, 7.0], [8.0, 8.0, 8.0], 2) == [("1–2 or out", True)] * 3


def test_values_that_were_equal_are_not_marked():
    assert told([9.0, 5.0, 5.0, 5.0], [9.0, 5.0, 5.0, 5.0], 3) == [
        ("1", False),
        ("2–3 or out", False),
        ("2–3 or out", False),
    ]


def test_a_tensor_of_k_values_has_no_next():
    assert told([9.0, 8.0], [8.0, 8.0], 2) == [("1–2", True)] * 2
