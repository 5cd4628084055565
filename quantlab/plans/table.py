"""A plan as files: plan.csv, a row a tensor, and plan.json, with what it was made of."""

import hashlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from quantlab.plans.mixture import Plan, Planned
from quantlab.plans.options import OF_FORMAT
from quantlab.records import disk

SCHEMA = 1
TEXT = (
    "dist", "tensor", "dtype", "format", "mode", "block", "scale_dtype", "range", "stored_dtype",
    "reason",
)  # fmt: skip
WHOLE = ("n_elements", "n_bytes", "n_bits", "block_size")
NUMBERS = ("bits_per_value", "sqnr_db", "noise")


def plan_table(plan: Plan) -> pd.DataFrame:
    """Return a plan, one row a tensor of the checkpoint.

    Text is ``string``, counts are ``Int64``, `bits_per_value`, `sqnr_db` in dB and `noise`, the
    weighted relative squared error, ``float64``. Settings of the format are missing of a tensor
    that stays as it is, and `reason` says why one was not measured.
    """
    columns = (
        "dist", "tensor", "dtype", "n_elements", "format", "bits_per_value", "n_bytes", "sqnr_db",
        "noise", *OF_FORMAT, "reason",
    )  # fmt: skip
    table = pd.DataFrame([_row(each) for each in plan.tensors], columns=columns)
    types = dict.fromkeys(TEXT, "string") | dict.fromkeys(WHOLE, "Int64")
    return table.astype(types | dict.fromkeys(NUMBERS, "float64"))


def _row(each: Planned) -> dict[str, Any]:
    row: Mapping[str, Any] = each.part.row or {}
    return {
        "dist": each.tensor.dist,
        "tensor": each.tensor.name,
        "dtype": each.tensor.dtype,
        "n_elements": each.tensor.size,
        "format": each.part.format,
        "bits_per_value": each.bits_per_value,
        "n_bytes": -(-each.part.bits // 8),
        "sqnr_db": row.get("sqnr_db"),
        "noise": each.part.noise,
        **{key: row.get(key) for key in OF_FORMAT},
        "reason": each.tensor.reason,
    }


def to_csv(table: pd.DataFrame) -> bytes:
    """Return plan.csv."""
    return table.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace")


def plan_json(
    plan: Plan, asked: Mapping[str, Any], results_sha256: str, files: Mapping[str, bytes]
) -> bytes:
    """Return plan.json: what was asked, the sums, the tensors, and the sha256 of other files.

    `results_sha256` is that of the results.json which the plan was made from.
    """
    best = plan.best_uniform
    return disk.to_json(
        {
            "schema": SCHEMA,
            "results_sha256": results_sha256,
            "asked": dict(asked),
            "bits_per_value": plan.bits / max(plan.n_values, 1),
            "n_bytes": -(-plan.bits // 8),
            "noise": plan.noise,
            "gap": plan.gap if plan.budget is not None else None,
            "best_uniform": best and {"format": best.name, "bits": best.bits, "noise": best.noise},
            "unmet": list(plan.unmet),
            "tensors": [_entry(each) for each in plan.tensors],
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
    )


def _entry(each: Planned) -> dict[str, Any]:
    return {key: value for key, value in _row(each).items() if value is not None}
