import pandas as pd
import pytest

from quantlab.report.tensor_verdict import NAME, tensor_verdicts, verdict_json
from quantlab.report.verdict_table import TYPES, verdict
from tests.report.test_storage import LEVELS, SQNR, some, stored


def written(directory, rows, levels=LEVELS):
    found = tensor_verdicts(rows, levels, SQNR)
    (directory / NAME).write_bytes(verdict_json(found, SQNR, {}))
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
    table = written(tmp_path, rows, [*LEVELS, "seed"])
    assert list(table)[:4] == ["dist", "tensor", "seed", "meets"]
    assert table["seed"].tolist() == [1, 2]
    assert kinds(table) | TYPES == kinds(table)


def test_a_sweep_without_figures_has_the_columns(tmp_path):
    table = written(tmp_path, [])
    assert (len(table), kinds(table)) == (0, TYPES)


def test_a_directory_without_a_verdict_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{NAME} does not exist: quantlab aggregate {tmp_path} "):
        verdict(str(tmp_path))
