import math

import pytest

from quantlab.plans.budget import parse_size, require_bits


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
    with pytest.raises(ValueError, match=r"--size takes a number and one of B, kB, MB, .*, got "):
        parse_size(text)


@pytest.mark.parametrize("bits", [0, -1, math.nan, math.inf])
def test_bits_are_a_number_above_0(bits):
    assert require_bits(4.5) == 4.5
    with pytest.raises(ValueError, match="--bits takes a number of bits per value above 0, got"):
        require_bits(bits)
