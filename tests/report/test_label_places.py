from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from quantlab.report.label_places import FAR, GAP, LINE, Box, around, place_labels

PAPER = Box(0, 0, 300, 200)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200)), max_size=8), st.integers(1, 9))
def test_no_label_hides_a_point_or_another_or_leaves_the_paper(points, length):
    apart = [around(*point, 3) for point in points]
    placed = place_labels(["x" * length] * len(points), points, PAPER, apart=apart)
    if placed is not None:
        assert not any(one.meets(other) for one, other in combinations(placed, 2))
        assert not any(one.meets(other) for one in placed for other in apart)
        assert all(map(PAPER.holds, placed))
        for box, (x, y) in zip(placed, points, strict=True):
            assert around(x, y, GAP + FAR * LINE).meets(box)


def test_one_point_has_its_label_above_to_the_left():
    (box,) = place_labels(["1"], [(50, 50)], PAPER)
    assert (box.right, box.bottom) == (50 - GAP, 50 + GAP)


def test_a_thin_line_is_avoided_only_where_there_is_room():
    (above,) = place_labels(["1"], [(50, 50)], PAPER)
    (aside,) = place_labels(["1"], [(50, 50)], PAPER, rather=[above])
    assert not aside.meets(above)
    assert place_labels(["1"], [(50, 50)], PAPER, rather=[PAPER]) == [above]


def test_a_label_without_room_is_no_label():
    assert place_labels(["1"], [(50, 50)], PAPER, apart=[PAPER]) is None
    assert place_labels(["x" * 60], [(50, 50)], PAPER) is None
    assert place_labels([], [], PAPER) == []
