"""The verdict of a sweep, for pandas."""

from pathlib import Path

import pandas as pd

from quantlab.report.tensor_verdict import read_verdict

TYPES = {
    "dist": "string",
    "tensor": "string",
    "meets": "boolean",
    "missed": "string",
    "format": "string",
    "mode": "string",
    "n_bits": "Int64",
    "bits_per_value": "float64",
    "sqnr_db": "float64",
    "rel_err": "float64",
}


def verdict(directory: str | Path) -> pd.DataFrame:
    """Return whether each tensor of a sweep meets the bar, one row a tensor, from verdict.json.

    `format` is the cheapest that meets it, else the nearest, with its mode, `n_bits` and
    `bits_per_value` in bits, `sqnr_db` in dB, and `rel_err` as a share; `missed` are the criteria
    that it does not meet, missing where it meets all. What else the sweep varied stands beside the
    names. Raises ValueError when the directory holds no verdict.
    """
    tensors = read_verdict(Path(directory))["tensors"]
    table = pd.DataFrame(
        [each | {"missed": "; ".join(each["missed"]) or None} for each in tensors],
        columns=list(tensors[0]) if tensors else list(TYPES),
    )
    return table.astype(TYPES)
