import pytest

from quantlab.plans.originals import originals, width
from tests.plans.samples import original, sweep, two


def test_the_size_is_that_of_the_dtype_or_of_the_file():
    tensors = [
        original("a", (3, 4), dtype="bfloat16"),
        original("b", (3, 4), dtype="int64", n_bytes=96, reason="int64 is no float"),
        original("c", (), dtype="float64"),
        original("d", (0, 4)),
    ]
    found = originals(sweep(two(), tensors))
    assert [each.bits for each in found] == [192, 768, 64, 0]
    assert [each.size for each in found] == [12, 12, 1, 0]
    assert [each.reason for each in found] == [None, "int64 is no float", None, None]


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", ""])
def test_only_floats_say_their_width(dtype):
    assert width("float4_e2m1fn") == 4
    with pytest.raises(ValueError, match="is no floating-point dtype"):
        width(dtype)


def test_two_sources_may_have_a_tensor_of_one_name():
    tensors = [original("w", dist="x"), original("w", dist="y")]
    assert [each.key for each in originals(sweep(two(), tensors))] == [("x", "w"), ("y", "w")]


def test_two_tensors_of_one_source_and_name_are_refused():
    tensors = [original("w", sha256=digit * 64) for digit in "123"]
    with pytest.raises(
        ValueError, match="holds 3 tensors 'w' of file/safetensors: a plan is of on"
    ):
        originals(sweep(two(), tensors))


def test_a_sweep_without_tensors_has_none():
    assert originals(sweep([])) == []
