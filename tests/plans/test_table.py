import hashlib
import json

import pandas as pd

from quantlab.plans.choose import within_budget
from quantlab.plans.slots import Request, find_slots
from quantlab.plans.table import plan_json, plan_table, to_csv
from tests.plans.samples import original, sweep, two

OUT = original("c", (5,), sha256=None, dtype="int32", n_bytes=20, reason="int32 is no float")
TENSORS = [original("a.weight"), OUT, original("b.weight")]


def made():
    return within_budget(find_slots(sweep(two(), TENSORS), Request()), 13_000)


def test_a_row_a_tensor_says_what_it_is_stored_as():
    table = plan_table(made()).set_index("tensor")
    assert table.index.tolist() == ["a.weight", "c", "b.weight"]
    assert table.loc["b.weight", "format"] == "sym 8 bits, channel"
    assert table.loc["b.weight", ["n_bytes", "bits_per_value", "sqnr_db"]].tolist() == [
        1032, 8.25, 33.0,
    ]  # fmt: skip
    assert table.loc["c", ["format", "n_bytes", "noise"]].tolist() == ["int32", 20, 0]
    assert table.loc["c", "reason"] == "int32 is no float"
    assert table["mode"].isna().tolist() == [False, True, False]


def test_every_column_has_its_dtype():
    kinds = {key: str(dtype) for key, dtype in plan_table(made()).dtypes.items()}
    for key in ("n_elements", "n_bytes", "n_bits", "block_size"):
        assert kinds.pop(key) == "Int64"
    for key in ("bits_per_value", "sqnr_db", "noise"):
        assert kinds.pop(key) == "float64"
    assert set(kinds.values()) == {"string"}


def test_the_csv_holds_the_table(tmp_path):
    table = plan_table(made())
    (tmp_path / "plan.csv").write_bytes(to_csv(table))
    again = pd.read_csv(tmp_path / "plan.csv", dtype={k: str(v) for k, v in table.dtypes.items()})
    pd.testing.assert_frame_equal(again, table, check_dtype=False)


def test_the_json_says_what_was_asked_and_hashes_what_stands_beside_it():
    plan, asked = made(), {"bits": 6.5}
    content = json.loads(plan_json(plan, asked, "1" * 64, {"plan.csv": b"x"}))
    assert (content["asked"], content["results_sha256"]) == (asked, "1" * 64)
    assert content["files"] == {"plan.csv": hashlib.sha256(b"x").hexdigest()}
    assert content["n_bytes"] == sum(each["n_bytes"] for each in content["tensors"]) - 1  # rounded
    assert content["best_uniform"]["format"] == "sym 4 bits, group 32"
    assert content["noise"] == plan.noise
    assert content["gap"] >= 0
