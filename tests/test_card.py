from quantlab import card


def test_merges_are_marked_and_places_told():
    top = {
        "indices": [7, 3, 5, 1, 4],
        "x": [9.0, 8.0, 7.9, 5.0, 5.0],
        "x_hat": [9.0, 8.0, 8.0, 5.0, 5.0],
        "indices_after": [7, 3, 5, 0, 1],
    }
    places = list(card.places(top))
    assert [place.merged for place in places] == [False, True, True, False, False]
    assert [place.after for place in places] == [1, 2, 3, 5, None]
    assert [place.element for place in places] == top["indices"]
