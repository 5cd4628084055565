import numpy as np
import pytest

from quantlab.sources import numpy
from quantlab.sources.safetensors import Safetensors
from quantlab.text import label, parse_size
from tests.sources.samples import X, read, write_safetensors


def test_a_label_fits_a_line_and_plays_no_tricks():
    assert label("encoder.weight") == "encoder.weight"
    assert label("w\x1b[2J") == r"w\x1b[2J"
    assert label("a" * 20 + "x" * 300 + "b" * 27) == "a" * 20 + "…" + "b" * 27


def test_a_name_with_brackets_matches_itself(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", **{"w[0]": X, "w0": X})
    assert list(read(Safetensors(path, include="w[0]"))) == ["w0", "w[0]"]


def test_patterns_choose(tmp_path):
    path = write_safetensors(
        tmp_path / "m.safetensors",
        **{"enc.0.weight": X, "enc.0.bias": X, "enc.1.weight": X, "dec.weight": X},
    )
    assert set(read(Safetensors(path, include="enc*weight"))) == {"enc.0.weight", "enc.1.weight"}
    assert set(read(Safetensors(path, include=["dec*", "*bias"]))) == {"dec.weight", "enc.0.bias"}
    left = Safetensors(path, include="enc*", exclude=["*bias", "*1*"])
    assert set(read(left)) == {"enc.0.weight"}
    assert left.skipped() == {
        "dec.weight": "not in dist.include",
        "enc.0.bias": "in dist.exclude",
        "enc.1.weight": "in dist.exclude",
    }


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        ({"include": "encodr.weight"}, "dist.include=encodr.weight matches none of the 2 tensors"),
        ({"include": "encodr.weight"}, ": near misses are encoder.weight"),
        ({"include": "QQQ"}, "none comes close"),
        ({"include": "weight"}, "patterns match whole names in their case, and encoder.weight hol"),
        ({"include": ["head", "*HEAD*"]}, r"dist.include=\*HEAD\* matches none"),
        ({"exclude": ["*encdr*"]}, r"dist.exclude=\*encdr\* matches none of the 2 tensors in "),
        ({"exclude": "*"}, "holds no tensor to measure: encoder.weight: in dist.exclude"),
    ],
)
def test_a_pattern_without_a_match_is_told_with_near_misses(tmp_path, patterns, told):
    path = write_safetensors(tmp_path / "m.safetensors", **{"encoder.weight": X, "head": X})
    with pytest.raises(ValueError, match=told):
        Safetensors(path, **patterns).require_tensors()


@pytest.mark.parametrize("given", [0, ["a", 1.5], [True], [float("nan")]])
@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_yaml_took_for_something_else_is_named(tmp_path, key, given):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(
        ValueError, match=rf"^dist\.{key} takes names or patterns, got .*: quote it"
    ):
        numpy.Npz(str(tmp_path / "x.npz"), **{key: given})


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
