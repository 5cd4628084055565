import json
import re

import numpy as np
import pandas as pd
import pytest

import quantlab
from quantlab.records.table import load
from tests.conftest import ROOT, aggregate, measure
from tests.report.test_aggregate import keep

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def loaded(lab_sweep):
    return quantlab.load(lab_sweep[0])


def test_the_table_holds_what_results_json_holds(lab_sweep, loaded):
    nested = json.loads((lab_sweep[0] / "results.json").read_text())
    assert len(loaded) == 6
    for row in loaded.to_dict("records"):
        for key, value in nested[row["dist"]][row["mode"]].items():
            assert pd.isna(row[key]) if value is None else row[key] == value, key


def test_every_column_has_its_dtype_and_is_documented(loaded):
    kinds = {key: str(dtype) for key, dtype in loaded.dtypes.items()}
    for key in (
        "dist",
        "mode",
        "tensor",
        "dtype",
        "reasons",
        "block",
        "scale_dtype",
        "range",
        "settings",
        "format",
        "missed",
    ):
        assert kinds.pop(key) == "string"
    for key in ("top_same_set", "top_same_order", "top_order_kept", "bar_top_order"):
        assert kinds.pop(key) == "boolean"
    for key in ("scale_replaced", "zero_point_clipped"):
        assert kinds.pop(key) == "boolean"
    for key in ("n_bits", "n_codes", "n_elements", "zero_point", "qmin", "qmax", "top_k"):
        assert kinds.pop(key) == "Int64"
    for key in ("underflowed", "n_scales", "scales_saturated", "scales_vanished"):
        assert kinds.pop(key) == "Int64"
    for key in ("top_merged", "top_swapped", "top_bits_sufficient"):
        assert kinds.pop(key) == "Int64"
    assert set(kinds.values()) == {"float64"}
    words = set(re.findall(r"\w+", load.__doc__))
    assert set(loaded.columns) <= words


def test_a_tensor_may_be_called_na_or_1(tmp_path):
    from quantlab.formats.format import PLAIN
    from quantlab.formats.uniform import Symmetric
    from quantlab.records.record import Outcome

    x = np.float32([1, 2, 3])
    entry = measure(x, Symmetric(8)) | {"sha256": "0" * 64, "predicted": None}
    names = ["NA", "1", "null", "nan", "", "a\rb", "a,b"]
    keep(tmp_path / "a", work=lambda: Outcome(dict.fromkeys(names, entry), format=PLAIN))
    aggregate(tmp_path)
    assert quantlab.load(tmp_path)["tensor"].tolist() == names


def test_the_committed_table_loads():
    assert quantlab.load(ROOT / "multirun" / "lab")["sqnr_db"].notna().all()


def test_a_directory_without_a_table_is_named(tmp_path):
    why = rf"{tmp_path}/results.csv does not exist: quantlab aggregate {tmp_path} writes it"
    with pytest.raises(ValueError, match=why):
        quantlab.load(tmp_path)
