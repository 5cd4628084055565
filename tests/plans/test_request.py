import math

import pytest

from quantlab.plans.request import parse_bits, parse_keep, parse_size, parse_weights


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1B", 1),
        ("60MB", 60e6),
        ("60 mb", 60e6),
        ("1.5GiB", 1.5 * 2**30),
        (".5kB", 500),
        ("2TB", 2e12),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["4.5XB", "", "MB", "60", "-1MB", "0MB", "1e3MB", "1.2.3MB", "nanMB"]
)
def test_any_other_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size takes a number and one of B, kB, MB, .*, got "):
        parse_size(text)


@pytest.mark.parametrize("bits", [0, -1, math.nan, math.inf])
def test_bits_are_a_number_above_0(bits):
    assert parse_bits(4.5) == 4.5
    with pytest.raises(ValueError, match="bits takes a number of bits per value above 0, got"):
        parse_bits(bits)


NAMES = ["a.weight", "b,c"]


def test_what_is_listed_is_read(tmp_path):
    path = tmp_path / "w.csv"
    path.write_text('tensor,alpha\na.weight,2.5\n\n"b,c",0\n')
    assert parse_weights(path, NAMES) == {"a.weight": 2.5, "b,c": 0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must begin with the line tensor,alpha"),
        ("a.weight,2\n", "must begin with the line tensor,alpha"),
        ("tensor,alpha\nx,1\n", "line 2: the sweep has no tensor 'x': near"),
        (
            "tensor,alpha\na.weight,-1\n",
            "line 2: the alpha of 'a.weight' must be from 0 up, got '-1'",
        ),
        ("tensor,alpha\na.weight,nan\n", "must be from 0 up, got 'nan'"),
        ("tensor,alpha\na.weight,much\n", "must be from 0 up, got 'much'"),
        ("tensor,alpha\na.weight,1\na.weight,1\n", "line 3: 'a.weight' stands there twice"),
        ("tensor,alpha\na.weight\n", "line 2: a line is a tensor and its alpha, got 'a.weight'"),
        ("\xff", "w.csv cannot be read"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, content, said):
    path = tmp_path / "w.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{path}") as caught:
        parse_weights(path, NAMES)
    assert said.replace("near", "") in str(caught.value)


def test_weights_given_in_python_are_held_to_the_same():
    assert parse_weights({"a.weight": 1.0}, NAMES) == {"a.weight": 1.0}
    with pytest.raises(ValueError, match=r"weights: the alpha of 'a.weight' must be from 0 up"):
        parse_weights({"a.weight": -1.0}, NAMES)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a*=nf4", ("a*", "nf4")),
        ("a=b=nf4", ("a=b", "nf4")),
        ("a=sym 4 bits, range.p=99.0", ("a", "sym 4 bits, range.p=99.0")),
    ],
)
def test_a_demand_is_split_where_a_format_follows(text, pair):
    assert parse_keep(text, ["sym 4 bits, range.p=99.0"]) == pair
    with pytest.raises(ValueError, match="--keep takes PATTERN=FORMAT"):
        parse_keep("=nf4", [])
