import pytest

from quantlab.plans.runtimes.registry import RUNTIMES
from quantlab.plans.slots import Request, find_slots
from tests.plans.samples import LEVELS, original, row, sweep, two


def formats(slot):
    return [option.format for option in slot.options]


def test_each_tensor_may_take_what_was_tried_or_stay():
    found = find_slots(sweep(two()), Request())
    assert [slot.name for slot in found.slots] == ["a.weight", "b.weight"]
    assert formats(found.slots[0]) == [
        "float32", "sym 4 bits, group 32", "sym 8 bits, channel", "sym 8 bits",
    ]  # fmt: skip
    stay, low, *_ = found.slots[1].options
    assert (stay.bits, stay.noise) == (32_000, 0)
    assert (low.bits, low.noise) == (4500, pytest.approx(0.1))


def test_noise_is_weighted():
    found = find_slots(sweep(two()), Request(weights={"b.weight": 3.0}))
    assert found.slots[0].options[1].noise == pytest.approx(10**-1.9)
    assert found.slots[1].options[1].noise == pytest.approx(0.3)


def test_what_loses_nothing_has_no_noise_and_what_has_no_figure_is_no_option():
    rows = [
        row("a", "sym 8 bits", 8, None, max_err=0.0),
        row("a", "sym 4 bits, group 32", 4, None, max_err=0.5),
        row("b", "sym 4 bits, group 32", 4, 20.0),
    ]
    first, second = find_slots(sweep(rows), Request()).slots
    assert [(each.format, each.noise) for each in first.options] == [
        ("float32", 0.0), ("sym 8 bits", 0.0),
    ]  # fmt: skip
    assert formats(second) == ["float32", "sym 4 bits, group 32"]


def test_tensors_that_were_left_out_are_listed_with_their_size():
    out = original("c", (7,), sha256=None, n_bytes=56, dtype="i64", reason="no float")
    found = find_slots(sweep(two(), [original("a.weight"), out, original("b.weight")]), Request())
    assert [each.name for each in found.tensors] == ["a.weight", "c", "b.weight"]
    assert found.tensors[1].bits == 448
    assert len(found.slots) == 2


def test_the_error_of_outputs_counts_where_it_is_known():
    rows = [*two(out_sqnr_db=30.0), row("c", "sym 8 bits", 8, 40.0)]
    found = find_slots(sweep(rows), Request(by="out_sqnr_db"))
    assert found.slots[0].options[1].noise == pytest.approx(1e-3)
    assert found.slots[2].options[1].noise == pytest.approx(1e-4)
    assert found.stand_ins == ["c"]
    with pytest.raises(ValueError, match=r"has no out_sqnr_db: sweep with metrics.imatrix=FILE"):
        find_slots(sweep(two()), Request(by="out_sqnr_db"))


def test_only_formats_of_the_runtime_may_be_chosen():
    rows = [*two(), *(row(n, "ggml/q4_k", 4.5, 20.0) for n in ("a.weight", "b.weight"))]
    tensors = [original(n, dist="file/gguf") for n in ("a.weight", "b.weight")]
    rows = [each | {"dist": "file/gguf"} for each in rows]
    found = find_slots(sweep(rows, tensors), Request(runtime=RUNTIMES["llama.cpp"]))
    assert formats(found.slots[0]) == ["float32", "ggml/q4_k"]
    assert found.refused == ["sym 4 bits, group 32", "sym 8 bits, channel", "sym 8 bits"]
    with pytest.raises(ValueError, match=r"llama\.cpp has none of the formats tried \(sym 4 bits"):
        find_slots(sweep(two()), Request(runtime=RUNTIMES["llama.cpp"]))


def test_a_plan_takes_two_formats_and_no_other_level():
    rows = [each for each in two() if each["mode"] == "symmetric" and each["n_bits"] == 4]
    range_ = "with this one it has from 4.5 to 32 bits per value"
    with pytest.raises(ValueError, match=rf"has one format, sym 4 bits, group 32: .*{range_}"):
        find_slots(sweep(rows), Request())
    with pytest.raises(ValueError, match="varies seed, which is no part of a format"):
        find_slots(
            sweep([each | {"seed": 1} for each in two()], levels=[*LEVELS, "seed"]), Request()
        )
    with pytest.raises(ValueError, match=r"holds 2 tensors 'a.weight' of file/safetensors"):
        find_slots(sweep(two(), [original("a.weight"), original("a.weight")]), Request())


def test_tensors_that_the_runtime_leaves_have_no_figure_that_counts():
    rows = [*two(), row("n.weight", "sym 8 bits", 8, 30.0)]
    tensors = [original("a.weight"), original("b.weight"), original("n.weight", (1000,))]
    asked = Request(by="out_sqnr_db", runtime=RUNTIMES["torchao"])
    with pytest.raises(ValueError, match=r"has no out_sqnr_db: sweep with metrics.imatrix=FILE"):
        find_slots(sweep(rows, tensors), asked)
