"""Records of older schemas, brought to today's.

What an older version did not measure and cannot be derived is null, with the reason.
"""

import math
from typing import Any

from quantlab.formats.format import PLAIN

OLDEST = 3
REASON = "recorded with schema 3"
BUDGET = ("clip_share", "zero_share", "round_share")
NARROW = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
SINCE_4 = ("underflowed", "storage", "error_budget")  # keys of a tensor


def upgraded(record: Any) -> Any:
    """Return a record, as JSON has it, with what schema 3 lacks; any other as it is."""
    try:
        if record["schema"] != OLDEST:
            return record
        tensors = {name: _upgraded(each, record) for name, each in record["tensors"].items()}
    except (AttributeError, KeyError, TypeError):
        return record  # its schema says what is wrong with it
    return record | {"format": PLAIN if tensors else {}, "tensors": tensors}


def _upgraded(tensor: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    missing = [key for key in BUDGET if tensor["measured"]["max_err"]]
    narrow = tensor["dtype"] in NARROW  # nothing of these underflows in float32
    if not narrow:
        missing.append("underflowed")
    return tensor | {
        "reasons": tensor["reasons"] | dict.fromkeys(missing, REASON),
        "underflowed": 0 if narrow else None,
        "storage": _storage(tensor, record),
        "error_budget": dict.fromkeys(BUDGET),
    }


def _storage(tensor: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Return what one float32 scale costs, and a zero point unless it is 0 by the mode's rule."""
    n_bits, params = record["n_bits"], tensor["params"]
    wide = record["config"]["mode"].get("zero_point") == "wide_int"
    zero_point = 0 if record["mode"] == "symmetric" else 32 if wide else n_bits
    bits = n_bits + (32 + zero_point) / tensor["n_elements"]
    sqnr_db = tensor["measured"]["sqnr_db"]
    lo, hi = tensor["range"]
    vanished = params.get("scale_replaced") and 0 < max(-lo, hi) < 0.5
    return {
        "bits_per_value": bits,
        "bits_above_bound": None if sqnr_db is None else bits - sqnr_db / (20 * math.log10(2)),
        "n_scales": 1,
        "scale_min": params["scale"],
        "scale_max": params["scale"],
        "scales_saturated": 0,
        "scales_vanished": int(bool(vanished)),
    }


def without_new(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of its outcome, but for what schema 3 did not say."""
    tensors = {}
    for name, tensor in outcome["tensors"].items():
        reasons = {key: why for key, why in tensor["reasons"].items() if why != REASON}
        kept = {key: value for key, value in tensor.items() if key not in SINCE_4}
        tensors[name] = kept | {"reasons": reasons}
    return outcome | {"tensors": tensors}


def known_to(older: Any, results: Any) -> Any:
    """Return results.json but for new figures and their reasons, which an older one lacks."""
    if not (isinstance(older, dict) and isinstance(results, dict)):
        return results
    kept = {key: known_to(older[key], value) for key, value in results.items() if key in older}
    if isinstance(kept.get("reasons"), str):
        reasons = [each for each in kept["reasons"].split("; ") if not each.endswith(REASON)]
        kept["reasons"] = "; ".join(reasons) or None
    return kept
