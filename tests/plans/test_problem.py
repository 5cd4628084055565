import math

import pytest

from quantlab.plans.mixture import plan_within_budget
from quantlab.plans.options import slot_name
from quantlab.plans.problem import (
    Request,
    build_problem,
    parse_bits,
)
from quantlab.plans.runtimes import RUNTIMES
from tests.plans.samples import LEVELS, original, row, sweep, two


def formats(slot):
    return [option.format for option in slot]


def test_each_tensor_may_take_what_was_tried_or_stay():
    found = build_problem(sweep(two()), Request())
    assert [slot_name(slot) for slot in found.slots] == ["a.weight", "b.weight"]
    assert formats(found.slots[0]) == [
        "float32", "sym 4 bits, group 32", "sym 8 bits", "sym 8 bits, channel",
    ]  # fmt: skip
    stay, low, *_ = found.slots[1]
    assert (stay.bits, stay.noise) == (32_000, 0)
    assert (low.bits, low.noise) == (4500, pytest.approx(0.1))


def test_noise_is_weighted():
    found = build_problem(sweep(two()), Request(weights={"b.weight": 3.0}))
    assert found.slots[0][1].noise == pytest.approx(10**-1.9)
    assert found.slots[1][1].noise == pytest.approx(0.3)


def test_noise_and_another_plan_are_no_options():
    others = [
        row(name, "sym 8 bits", 32.0, 30.0, mode=mode, n_bits=None, format=mode)
        for name in ("a.weight", "b.weight")
        for mode in ("noise", "plan")
    ]
    problem = build_problem(sweep([*two(), *others]), Request(bits=8))
    assert {option.format for slot in problem.slots for option in slot} == {
        "float32", "sym 4 bits, group 32", "sym 8 bits, channel", "sym 8 bits",
    }  # fmt: skip


def test_what_loses_nothing_has_no_noise_and_what_has_no_figure_is_no_option():
    rows = [
        row("a", "sym 8 bits", 8, None, max_err=0.0),
        row("a", "sym 4 bits, group 32", 4, None, max_err=0.5),
        row("b", "sym 4 bits, group 32", 4, 20.0),
    ]
    first, second = build_problem(sweep(rows), Request()).slots
    assert [(each.format, each.noise) for each in first] == [
        ("float32", 0.0), ("sym 8 bits", 0.0),
    ]  # fmt: skip
    assert formats(second) == ["float32", "sym 4 bits, group 32"]


def test_tensors_that_were_left_out_are_listed_with_their_size():
    out = original("c", (7,), sha256=None, n_bytes=56, dtype="i64", reason="no float")
    found = build_problem(
        sweep(two(), [original("a.weight"), out, original("b.weight")]), Request()
    )
    assert [each.name for each in found.tensors] == ["a.weight", "c", "b.weight"]
    assert found.tensors[1].bits == 448
    assert len(found.slots) == 2


def test_the_error_of_outputs_counts_where_it_is_known():
    rows = [*two(out_sqnr_db=30.0), row("c", "sym 8 bits", 8, 40.0)]
    found = build_problem(sweep(rows), Request(by="out_sqnr_db"))
    assert found.slots[0][1].noise == pytest.approx(1e-3)
    assert found.slots[2][1].noise == pytest.approx(1e-4)
    assert found.stand_ins == ["c"]
    exact = [each | {"sqnr_db": None, "max_err": 0.0} for each in rows]
    assert build_problem(sweep(exact), Request()).stand_ins == []
    with pytest.raises(ValueError, match=r"has no out_sqnr_db: sweep with metrics.imatrix=FILE"):
        build_problem(sweep(two()), Request(by="out_sqnr_db"))


def test_only_formats_of_the_runtime_may_be_chosen():
    rows = [*two(), *(row(n, "ggml/q4_k", 4.5, 20.0) for n in ("a.weight", "b.weight"))]
    tensors = [original(n, dist="file/gguf") for n in ("a.weight", "b.weight")]
    rows = [each | {"dist": "file/gguf"} for each in rows]
    found = build_problem(sweep(rows, tensors), Request(runtime=RUNTIMES["llama.cpp"]))
    assert formats(found.slots[0]) == ["float32", "ggml/q4_k"]
    assert found.refused == ["sym 4 bits, group 32", "sym 8 bits, channel", "sym 8 bits"]
    with pytest.raises(ValueError, match=r"llama\.cpp has none of the formats tried \(sym 4 bits"):
        build_problem(sweep(two()), Request(runtime=RUNTIMES["llama.cpp"]))


def test_a_plan_takes_two_formats_and_no_other_level():
    rows = [each for each in two() if each["mode"] == "symmetric" and each["n_bits"] == 4]
    range_ = "with this one it has from 4.5 to 32 bits per value"
    with pytest.raises(ValueError, match=rf"has one format, sym 4 bits, group 32: .*{range_}"):
        build_problem(sweep(rows), Request())
    with pytest.raises(ValueError, match="varies seed, which is no part of a format"):
        build_problem(
            sweep([each | {"seed": 1} for each in two()], levels=[*LEVELS, "seed"]), Request()
        )
    with pytest.raises(ValueError, match=r"holds 2 tensors 'a.weight' of file/safetensors"):
        build_problem(sweep(two(), [original("a.weight"), original("a.weight")]), Request())


def test_tensors_that_the_runtime_leaves_have_no_figure_that_counts():
    rows = [*two(), row("n.weight", "sym 8 bits", 8, 30.0)]
    tensors = [original("a.weight"), original("b.weight"), original("n.weight", (1000,))]
    asked = Request(by="out_sqnr_db", runtime=RUNTIMES["torchao"])
    with pytest.raises(ValueError, match=r"has no out_sqnr_db: sweep with metrics.imatrix=FILE"):
        build_problem(sweep(rows, tensors), asked)


def slots(**asked):
    return build_problem(sweep(two()), Request(**asked)).slots


def test_a_kept_format_is_all_there_is():
    first, second = slots(keep=[("a*", "SYM 8 bits")])
    assert [each.format for each in first] == ["sym 8 bits"]
    assert len(second) == 4
    first, _ = slots(keep=[("*", "sym 8 bits"), ("a*", "float32")])  # the last that matches
    assert [each.format for each in first] == ["float32"]


def test_a_format_may_be_named_by_the_type_that_is_stored():
    rows = [*two(), row("a.weight", "ggml/q4_k", 4.5, 20.0)]
    first, _ = build_problem(sweep(rows), Request(keep=[("a*", "Q4_K")])).slots
    assert [each.format for each in first] == ["ggml/q4_k"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"keep": [("a*", "nf4")]},
            "keep a*=nf4: 'a.weight' has no such format, only float32; s",
        ),
        ({"keep": [("c*", "nf4")]}, "keep c* matches none of the 2 tensors measured"),
        ({"same": ["A*"]}, "same A* matches none of the 2 tensors measured"),
        ({"same": ["a*", "*weight"]}, "'a.weight' fits same a* and same *weight"),
        (
            {"same": ["*"], "keep": [("a*", "sym 8 bits"), ("b*", "float32")]},
            "the tensors of same * have no format in common",
        ),
    ],
)
def test_a_demand_that_cannot_be_met_is_named(asked, said):
    with pytest.raises(ValueError, match=r"same|keep") as caught:
        slots(**asked)
    assert said in str(caught.value)


def test_tensors_that_match_take_one_format_together():
    (both,) = slots(same=["*.weight"])
    assert [part.tensor.name for part in both[0].assignments] == ["a.weight", "b.weight"]
    stay, low, *_ = both
    assert (stay.bits, stay.format) == (64_000, "float32")
    assert (low.bits, low.noise) == (9000, pytest.approx(10**-1.9 + 10**-1.0))


def test_of_two_dtypes_to_stay_is_one_choice():
    tensors = [original("a.weight"), original("b.weight", dtype="float16")]
    (both,) = build_problem(sweep(two(), tensors), Request(same=["*"])).slots
    assert (both[0].format, both[0].bits) == ("float32, float16", 48_000)


def test_formats_of_one_name_or_of_other_settings_are_told_apart():
    rows = [
        row("a.weight", "sym 8 bits", 4.0 + n, 20.0 + n, settings=settings, mode=mode, format=name)
        for n, (mode, settings, name) in enumerate(
            [
                ("power_of_two", None, "power_of_two"),
                ("power_of_two", '{"mode.base": 2}', "power_of_two"),
                ("asymmetric", None, "asym 8 bits"),
                ("asymmetric", '{"mode.zero_point": "clip"}', "asym 8 bits, mode.zero_point=clip"),
            ]
        )
    ]
    (slot,) = build_problem(sweep(rows), Request()).slots
    assert [each.bits for each in slot] == [32_000, 4000, 5000, 6000, 7000]
    keep = [("*", "ASYM 8 bits, mode.zero_point=CLIP")]
    (slot,) = build_problem(sweep(rows), Request(keep=keep)).slots
    assert [each.bits for each in slot] == [7000]


def test_what_a_runtime_leaves_is_grouped_by_the_reason():
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    rows = [row(name, form, 5, 20) for name in names for form in ("ggml/q4_k", "ggml/q8_0")]
    others = [
        original("embeddings.position_ids", (1, 512), dtype="int64", n_bytes=4096, reason="int"),
        original("model.norm.weight", (10,), n_bytes=40, reason="short"),
        original("pooler.dense.weight", n_bytes=4000, reason="left out by dist.exclude"),
        original("model.layers.0.input_layernorm.weight", n_bytes=4000, reason="why not"),
    ]
    tensors = [*map(original, names), *others]
    runtime = RUNTIMES["llama.cpp"]
    problem = build_problem(sweep(rows, tensors), Request(runtime=runtime))
    assert problem.untaken == {
        "dtype": ["embeddings.position_ids"],
        "axes": ["model.norm.weight"],
        "name": ["pooler.dense.weight"],
        "rule": ["model.layers.0.input_layernorm.weight"],
    }
    recipe = runtime.recipe(plan_within_budget(problem, 10**9).assignments).decode()
    assert [line.split("=")[0] for line in recipe.splitlines()] == [
        r"^blk\.0\.ffn_up\.weight$", r"^blk\.1\.ffn_up\.weight$",
    ]  # fmt: skip


def test_a_runtime_that_takes_no_tensor_says_what_to_sweep():
    rows = [each | {"tensor": each["tensor"] + "_ih"} for each in two()]
    tensors = [original(name, (100, 32)) for name in ("a.weight_ih", "b.weight_ih")]
    said = r"quantizes none of the 2 tensors measured \('a.weight_ih', 'b.weight_ih'\).*: sweep a"
    with pytest.raises(ValueError, match=said):
        build_problem(sweep(rows, tensors), Request(runtime=RUNTIMES["torchao"]))


@pytest.mark.parametrize("bits", [0, -1, math.nan, math.inf])
def test_bits_are_a_number_above_0(bits):
    assert parse_bits(4.5) == 4.5
    with pytest.raises(ValueError, match="bits takes a number of bits per value above 0, got"):
        parse_bits(bits)
