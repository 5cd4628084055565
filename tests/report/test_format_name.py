import pytest

from quantlab.report.format_name import (
    format_name,
    has_formats,
    is_of_format,
    is_plain,
    level_text,
    varied_choices,
    with_format,
)

GROUP = {"block": "group", "block_size": 32}
PLAIN = {"block": "tensor", "block_size": None, "scale_dtype": "float32", "range": "absmax"}


def row(mode, n_bits=4, **change):
    return {"mode": mode, "n_bits": n_bits, **PLAIN} | change


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (row("symmetric", 8), "sym 8 bits"),
        (row("asymmetric", 8, block="channel"), "asym 8 bits, channel"),
        (row("log", 10, range=None), "log 10 bits"),
        (row("nf4", **GROUP), "nf4, group 32"),
        (row("fp8_e4m3", 8, scale_dtype="bfloat16"), "fp8_e4m3, bfloat16"),
        (
            row("symmetric", **GROUP, scale_dtype="float16", range="mse"),
            "sym 4 bits, group 32, float16, mse",
        ),
        (row("mx/fp4", **GROUP, scale_dtype="e8m0"), "mx/fp4"),
        ({"mode": "symmetric", "n_bits": 8}, "sym 8 bits"),  # recorded by an older version
        (row("weights_of_mine", 5), "weights_of_mine"),
    ],
)
def test_a_format_is_named_without_its_defaults(one, name):
    assert format_name(one) == name


def test_further_settings_of_a_format_are_part_of_its_name():
    one = row("symmetric", range="percentile") | {"range.p": 99.9, "seed": 3}
    assert format_name(one, ["dist", "mode", "range", "range.p", "seed"]) == (
        "sym 4 bits, percentile, range.p=99.9"
    )
    assert [each for each in ("mode", "block_size", "mode.x", "tensor", "dist.path", "seed")
            if is_of_format(each)] == ["mode", "block_size", "mode.x"]  # fmt: skip


def test_plain_is_what_the_lab_teaches():
    assert is_plain(row("symmetric"))
    assert is_plain({"mode": "asymmetric", "n_bits": 8})
    others = [row("nf4"), row("symmetric", **GROUP), row("asymmetric", range="mse")]
    assert not any(map(is_plain, [*others, row("symmetric", scale_dtype="float16")]))


def test_formats_are_there_where_one_says_what_it_costs():
    assert not has_formats([row("symmetric", bits_per_value=4.0), row("nf4")])
    assert has_formats([row("symmetric"), row("nf4", bits_per_value=4.5)])


def test_only_what_varies_is_said_of_a_row():
    one = row("symmetric", **GROUP, scale_dtype="float16", range="mse")
    assert varied_choices(one, ["mode", "block_size", "range"]) == ["group 32", "mse"]
    assert varied_choices(one, ["mode"]) == []
    assert varied_choices(row("symmetric"), ["block", "range"]) == []


def test_the_terminal_has_one_column_for_a_format():
    levels = ["dist", "mode", "n_bits", "tensor", "block", "block_size", "seed"]
    (one,), shown = with_format([row("nf4", **GROUP)], levels)
    assert shown == ["dist", "format", "tensor", "seed"]
    assert one["format"] == "nf4, group 32"


def test_what_a_format_does_not_have_is_a_dash():
    one = row("log", range=None) | {"dist.batch": None}
    texts = [level_text(one, key) for key in ("range", "block_size", "dist.batch", "n_bits")]
    assert texts == ["–", "–", "null", "4"]
