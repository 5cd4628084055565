import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.sources.npz import Npz
from quantlab.sources.parts import divide, require_part


@given(st.lists(st.integers(1, 10**12), max_size=30), st.integers(1, 40))
def test_parts_differ_by_no_more_than_one_tensor(sizes, parts):
    found = divide(sizes, parts)
    assert len(found) == len(sizes)
    loads = [0] * parts
    for size, part in zip(sizes, found, strict=True):
        loads[part] += size
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert found == divide(sizes, parts)


def test_the_largest_goes_first_and_the_order_of_the_file_decides_between_equals():
    assert divide([1, 4, 2, 3], 2) == [0, 0, 1, 1]
    assert divide([5, 5, 5, 5, 5], 3) == [0, 1, 2, 0, 1]
    assert divide([2, 1], 10**12) == [0, 1]  # nothing is made for parts that stay empty


@pytest.mark.parametrize(
    ("part", "parts", "said"),
    [
        (4, 4, r"dist\.part must be a whole number from 0 to 3 with dist\.parts=4, got 4"),
        (-1, 4, "from 0 to 3 with .* got -1"),
        (1.0, 4, "from 0 to 3 with .* got 1.0"),
        (True, 4, "from 0 to 3 with .* got True"),
        ("1", 4, "from 0 to 3 with .* got '1'"),
        (0, 0, r"dist\.parts must be a whole number of 1 or more, got 0"),
        (0, 1.5, "1 or more, got 1.5"),
        (0, None, "1 or more, got None"),
        (
            None,
            4,
            r"dist\.parts=4 takes dist\.part=range\(4\) in a sweep, or the number of one part",
        ),
        (2, 1, r"dist\.part=2 takes dist\.parts=N, the number of parts: add it"),
    ],
)
def test_a_part_that_cannot_be_is_refused(part, parts, said):
    with pytest.raises(ValueError, match=said):
        require_part(part, parts)
    require_part(0, 1)
    require_part(None, 1)
    require_part(3, 4)


def test_the_parts_of_a_file_are_its_chosen_tensors_each_once_in_its_order(tmp_path):
    sizes = {"b": 30, "ids": 90, "a": 40, "c": 20, "left": 500, "d": 10}
    arrays = {
        name: np.ones(n, np.int64 if name == "ids" else np.float32) for name, n in sizes.items()
    }
    path = str(tmp_path / "w.npz")
    np.savez(path, **arrays)
    parts = [Npz(path, exclude="left", parts=2, part=n) for n in range(2)]
    assert [[each.name for each in part.tensors()] for part in parts] == [["a", "d"], ["b", "c"]]
    assert [[each.name for each in part.others()] for part in parts] == [["b", "c"], ["a", "d"]]
    assert [part.n_bytes() for part in parts] == [200, 200]
    for part in parts:
        assert part.skipped() == {
            "ids": "int64 is no floating-point type",
            "left": "in dist.exclude",
        }
        assert part.places() == {name: n for n, name in enumerate(sizes)}
    whole = Npz(path, exclude="left")
    assert [each.name for each in whole.tensors()] == ["b", "a", "c", "d"]
    assert (list(whole.others()), whole.places()) == ([], {})
