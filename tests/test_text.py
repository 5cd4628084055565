from quantlab.text import label


def test_a_label_fits_a_line_and_plays_no_tricks():
    assert label("encoder.weight") == "encoder.weight"
    assert label("w\x1b[2J") == r"w\x1b[2J"
    assert label("a" * 20 + "x" * 300 + "b" * 27) == "a" * 20 + "…" + "b" * 27
