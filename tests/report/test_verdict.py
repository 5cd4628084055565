import json

import pandas as pd
import pytest

from quantlab.report.bar import Bar
from quantlab.report.choices import find_choices
from quantlab.report.verdict import NAME, TYPES, read_verdict, verdict, verdict_json
from tests.report.samples import (
    FORMAT_LEVELS,
    GROUP,
    LEVELS,
    SQNR,
    answer,
    choices_of,
    judged,
    outputs_of,
    row,
    some,
    stored,
)


def test_the_file_says_all_of_it():
    rows = [*some(tensor="a"), stored("nf4", 4, 4.5, 20.0, tensor="b", **GROUP)]
    content = json.loads(verdict_json(choices_of(rows), [SQNR], {}))
    assert content["bar"] == {"top_order": None, "rel_err": None, "sqnr_db": 30.0}
    assert (content["meets"], content["failures"]) == (False, {})
    assert content["tensors"] == [
        {
            "dist": "verb_probs", "tensor": "a", "meets": True, "missed": [],
            "format": "sym 8 bits", "mode": "symmetric", "n_bits": 8, "bits_per_value": 8.01,
            "sqnr_db": 34.0, "rel_err": 0.001,
        },
        {
            "dist": "verb_probs", "tensor": "b", "meets": False, "missed": ["sqnr_db"],
            "format": "nf4, group 32", "mode": "nf4", "n_bits": 4, "bits_per_value": 4.5,
            "sqnr_db": 20.0, "rel_err": 0.001,
        },
    ]  # fmt: skip


def test_a_run_that_failed_fails_the_whole():
    good = choices_of([row(8)], LEVELS)
    assert json.loads(verdict_json(good, [SQNR], {}))["meets"] is True
    assert json.loads(verdict_json(good, [SQNR], {"run": "no"}))["meets"] is False


def test_the_answers_of_a_model_have_a_verdict_of_their_own():
    rows = [answer("sym 8 bits", 8.0, 0.001), answer("sym 4 bits", 4.0, 0.1, 0.5)]
    good = choices_of([row(8)], LEVELS)
    content = json.loads(verdict_json(good, [SQNR], {}, outputs=outputs_of(rows, kl=0.01)))
    assert content["meets"] is True
    assert content["answers"] == [
        {
            "dist": "file/onnx", "output": "probs", "meets": True, "missed": [],
            "format": "sym 8 bits", "bits_per_value": 8.0, "kl": 0.001, "top1_same": 0.99,
            "accuracy": None, "accuracy_before": None, "sqnr_db": 30.0, "cos_sim": 0.999,
        },
    ]  # fmt: skip
    outputs = outputs_of(rows, kl=0.0001, top1_same=0.999)
    content = json.loads(verdict_json(good, [SQNR], {}, outputs=outputs))
    assert content["meets"] is False
    assert content["answers"][0]["missed"] == ["kl", "top1_same"]
    asking = Bar(sqnr_db=30.0, kl=0.01)
    assert json.loads(verdict_json(good, [asking], {}))["meets"] is False


def test_30_and_30_0_are_one_bar():
    assert verdict_json([], [Bar(sqnr_db=30)], {}) == verdict_json([], [Bar(sqnr_db=30.0)], {})


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"meets": 1, "tensors": []}', '{"meets": true, "tensors": {}}'],
)
def test_what_is_no_verdict_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=r"verdict\.json does not exist: quantlab aggregate "):
        read_verdict(tmp_path)
    with pytest.raises(ValueError, match=r"none does not exist: give the directory of a sweep$"):
        read_verdict(tmp_path / "none")
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ValueError, match=r"verdict\.json is no verdict: quantlab aggregate .* aga"):
        read_verdict(tmp_path)


def test_where_runs_have_several_bars_each_tensor_has_its_own():
    fifty = Bar(sqnr_db=50.0)
    rows = [*judged(some(tensor="a"), SQNR), *judged(some(tensor="b"), fifty)]
    content = json.loads(verdict_json(find_choices(rows, FORMAT_LEVELS), [SQNR, fifty], {}))
    assert content["bar"] is None
    assert [tensor["bar"]["sqnr_db"] for tensor in content["tensors"]] == [30.0, 50.0]


def written(directory, rows, levels=FORMAT_LEVELS):
    choices = choices_of(rows, levels)
    (directory / NAME).write_bytes(verdict_json(choices, [SQNR], {}))
    return verdict(directory)


def kinds(table):
    return {key: str(dtype) for key, dtype in table.dtypes.items()}


def test_a_tensor_is_a_row(tmp_path):
    exact = stored("log", 16, 16.0, None, tensor="exact", max_err=0.0)
    poor = stored("ggml/q4_0", None, 4.5, 20.0, tensor="poor")
    table = written(tmp_path, [*some(tensor="a"), exact, poor])
    assert kinds(table) == TYPES
    assert table["tensor"].tolist() == ["a", "exact", "poor"]
    assert table["meets"].tolist() == [True, True, False]
    assert table["format"].tolist() == ["sym 8 bits", "log 16 bits", "ggml/q4_0"]
    assert table["missed"].isna().tolist() == [True, True, False]
    assert table["missed"][2] == "sqnr_db"
    assert table["sqnr_db"].isna().tolist() == [False, True, False]
    assert pd.isna(table["n_bits"][2])


def test_what_else_was_swept_stands_beside_the_names(tmp_path):
    rows = [each | {"seed": n} for n in (1, 2) for each in some()]
    table = written(tmp_path, rows, [*FORMAT_LEVELS, "seed"])
    assert list(table)[:4] == ["dist", "tensor", "seed", "meets"]
    assert table["seed"].tolist() == [1, 2]
    assert kinds(table) | TYPES == kinds(table)


def test_a_sweep_without_figures_has_the_columns(tmp_path):
    table = written(tmp_path, [])
    assert (len(table), kinds(table)) == (0, TYPES)


def test_a_directory_without_a_verdict_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{NAME} does not exist: quantlab aggregate {tmp_path} "):
        verdict(str(tmp_path))
