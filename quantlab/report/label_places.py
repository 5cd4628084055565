"""Where labels stand in a picture, so that none hides a point or another label."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

GAP, LINE = 3.0, 10.0  # of a label from its point, and its height, in points of 1/72 inch
CHARACTER = 6.0  # the width of a character, of which only capitals are wider
FAR = 2  # distances that are tried, a line apart: from farther off one cannot tell whose it is


class Box(NamedTuple):
    """A rectangle on the paper, in points of 1/72 inch."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "Box") -> bool:
        """Return whether two rectangles have an area in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def holds(self, other: "Box") -> bool:
        """Return whether a rectangle lies inside this one."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


def around(x: float, y: float, half: float) -> Box:
    """Return the square around a point; `half` is half its side."""
    return Box(x - half, y - half, x + half, y + half)


def place_labels(
    texts: Sequence[str],
    points: Sequence[tuple[float, float]],
    within: Box,
    *,
    apart: Iterable[Box] = (),
    rather: Sequence[Box] = (),
) -> list[Box] | None:
    """Return where each label stands beside its point; None where one finds no room.

    Labels keep apart from each other and from what is in `apart`; from what is in `rather`, such as
    thin lines, they do where that takes them no farther off.

    >>> above, below = place_labels(["a", "b"], [(50, 50), (51, 50)], Box(0, 0, 99, 99))
    >>> above
    Box(left=41.0, bottom=53.0, right=47.0, top=63.0)
    """
    taken, placed = list(apart), []
    for text, (x, y) in zip(texts, points, strict=True):
        width = CHARACTER * len(text)
        near_first = (list(_candidates(x, y, width, far)) for far in range(FAR))
        free = [
            [each for each in boxes if within.holds(each) and not any(map(each.meets, taken))]
            for boxes in near_first
        ]
        ranked = [sorted(boxes, key=lambda each: any(map(each.meets, rather))) for boxes in free]
        box = next((each for boxes in ranked for each in boxes), None)
        if box is None:
            return None
        taken.append(box)
        placed.append(box)
    return placed


def _candidates(x: float, y: float, width: float, far: int) -> Iterator[Box]:
    """Yield places around a point, above to the left first, some lines farther off than need be."""
    away = GAP + far * LINE
    lefts, bottoms = (x - GAP - width, x + GAP, x - width / 2), (y + away, y - away - LINE)
    beside = [(x - away - width, y - LINE / 2), (x + away, y - LINE / 2)]
    for left, bottom in (*product(lefts, bottoms), *beside):
        yield Box(left, bottom, left + width, bottom + LINE)
