"""verdict.json: whether each tensor of a sweep meets the bar in some format of those tried."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.records import disk
from quantlab.records.manifest import read_artefact, read_artefact_hashes
from quantlab.records.table import require_directory
from quantlab.report.answers import OutputChoice
from quantlab.report.bar import Bar
from quantlab.report.check import Check
from quantlab.report.choices import StoredRows, TensorChoice

NAME = "verdict.json"
SCHEMA = 1
FORMAT_FIGURES = {  # of the format, and their types
    "mode": "string",
    "n_bits": "Int64",
    "bits_per_value": "float64",
    "sqnr_db": "float64",
    "rel_err": "float64",
}
OUTPUT_FIGURES = ("kl", "top1_same", "accuracy", "accuracy_before", "sqnr_db", "cos_sim")
COVERAGE_KEYS = ("coverage", "coverage_bytes", "unpaired")  # of the row of a stored file
TYPES = {
    "dist": "string",
    "tensor": "string",
    "meets": "boolean",
    "missed": "string",
    "format": "string",
    **FORMAT_FIGURES,
}


def verdict(directory: str | Path) -> pd.DataFrame:
    """Load the verdict of a sweep from its verdict.json, one row a tensor.

    `format` is the cheapest that meets the bar, else the nearest, with its mode, `n_bits` and
    `bits_per_value` in bits, `sqnr_db` in dB, and `rel_err` as a share; `missed` are the criteria
    that it does not meet, missing where it meets all. Of a stored file there are the shares of its
    original's values (`coverage`) and of its own bytes (`coverage_bytes`) that were compared. What
    else the sweep varied stands beside the names. Raises ValueError if the directory holds no
    verdict, or one that is not as it was aggregated.
    """
    tensors = read_verdict(Path(directory))["tensors"]
    table = pd.DataFrame(
        [tensor | {"missed": "; ".join(tensor["missed"]) or None} for tensor in tensors],
        columns=list(dict.fromkeys(key for tensor in tensors for key in tensor)) or list(TYPES),
    )
    return table.astype(TYPES)


def verdict_json(
    choices: Sequence[TensorChoice],
    bars: Sequence[Bar],
    failures: Mapping[str, str],
    files: Sequence[StoredRows] = (),
    outputs: Sequence[OutputChoice] = (),
) -> bytes:
    """Write verdict.json: the bars, whether all tensors meet theirs, each of them, failed runs.

    `bar` is null where runs have different bars; each tensor then has its own. Of stored files
    there is the `coverage` of each, of models the `answers`, each output.
    """
    check = Check(choices, bars, failures, files, outputs=outputs)
    tensors = [_tensor_json(choice, own_bar=len(bars) > 1) for choice in choices]
    coverage = [
        {"file": file.name, **{key: file.rows[0][key] for key in COVERAGE_KEYS}}
        for file in files
        if file.rows[0].get("coverage") is not None
    ]
    return disk.to_json(
        {
            "schema": SCHEMA,
            "bar": _bar_json(bars[0]) if len(bars) == 1 else None,
            "meets": check.has_passed,
            **({"coverage": coverage} if coverage else {}),
            **({"answers": [_output_json(output) for output in outputs]} if outputs else {}),
            "tensors": tensors,
            "failures": dict(failures),
        }
    )


def read_verdict(directory: Path) -> dict[str, Any]:
    """Read verdict.json of a sweep; raises ValueError where there is none to read."""
    require_directory(directory)
    text = read_artefact(directory, NAME, read_artefact_hashes(directory))
    try:
        content = json.loads(text)
        if isinstance(content["meets"], bool) and isinstance(content["tensors"], list):
            return dict(content)
        raise KeyError("meets")
    except (ValueError, KeyError, TypeError, RecursionError):
        again = f"quantlab aggregate {directory} writes it again"
        raise ValueError(f"{directory / NAME} is no verdict: {again}") from None


def _bar_json(bar: Bar) -> dict[str, float | bool | None]:
    """Return the thresholds as they are written: 30 and 30.0 are one."""
    return {
        key: value if value is None or isinstance(value, bool) else float(value)
        for key, value in bar.thresholds().items()
    }


def _output_json(output: OutputChoice) -> dict[str, Any]:
    """Describe the fewest bits that keep the answers of an output, else the nearest format."""
    best = output.best
    return {
        "dist": output.dist,
        "output": output.output,
        **output.settings,
        "meets": output.meets,
        "missed": list(best.missed),
        "format": best.name,
        "bits_per_value": best.row["bits_per_value"],
        **{key: best.row[key] for key in OUTPUT_FIGURES},
    }


def _tensor_json(choice: TensorChoice, *, own_bar: bool) -> dict[str, Any]:
    best = choice.best
    return {
        "dist": choice.dist,
        "tensor": choice.tensor,
        **choice.settings,
        "meets": choice.meets,
        "missed": list(best.missed),
        "format": best.name,
        **{key: best.row.get(key) for key in FORMAT_FIGURES},
        **{key: best.row[key] for key in COVERAGE_KEYS[:2] if best.row.get(key) is not None},
        **({"bar": _bar_json(Bar.from_row(best.row))} if own_bar else {}),
    }
