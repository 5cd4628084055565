from quantlab.report.numbers import format_widths
from quantlab.report.texts import Texts

T = Texts("en")
LEVELS = ["dist", "mode", "n_bits"]


def test_widths_in_a_row_are_given_by_their_ends():
    messages = [format_widths(each, T) for each in ([8], [4, 5], [4, 8, 16], [2, 3, 4], [2, 4, 6])]
    assert messages == ["8", "4, 5", "4, 8, 16", "2 to 4", "2, 4, 6"]
