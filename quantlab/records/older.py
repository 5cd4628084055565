"""Records and configs of older versions, brought to today's.

A config names its classes under ``_target_``, and a run's key is a hash of its config. Both outlive
a module that moves: old names are read as today's, and keys are made of the oldest name there is,
so that the same question keeps its key. Whoever moves a class appends its new name to `NAMES`.

A figure that an older version did not measure, and that cannot be derived, is null with the reason.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from quantlab.formats.format import PLAIN

NAMES = (  # of a class, the oldest first and today's last
    ("quantlab.dist.Hidden", "quantlab.sources.lab.Hidden", "quantlab.sources.source.Hidden"),
    (
        "quantlab.dist.TenseLogits",
        "quantlab.sources.lab.TenseLogits",
        "quantlab.sources.source.TenseLogits",
    ),
    (
        "quantlab.dist.VerbProbs",
        "quantlab.sources.lab.VerbProbs",
        "quantlab.sources.source.VerbProbs",
    ),
    ("quantlab.files.Gguf", "quantlab.sources.gguf.Gguf"),
    ("quantlab.files.Npy", "quantlab.sources.npy.Npy", "quantlab.sources.numpy.Npy"),
    ("quantlab.files.Npz", "quantlab.sources.npz.Npz", "quantlab.sources.numpy.Npz"),
    ("quantlab.files.Safetensors", "quantlab.sources.safetensors.Safetensors"),
    ("quantlab.formats.gptq.GptqSymmetric", "quantlab.formats.uniform.GptqSymmetric"),
    ("quantlab.formats.levels.NormalFloat4", "quantlab.formats.floats.NormalFloat4"),
    (
        "quantlab.predict.LognormalShares",
        "quantlab.sources.expected.LognormalShares",
        "quantlab.sources.source.ExpectedLognormalShares",
    ),
    (
        "quantlab.predict.Normal",
        "quantlab.sources.expected.Normal",
        "quantlab.sources.source.ExpectedNormal",
    ),
    (
        "quantlab.predict.Uniform",
        "quantlab.sources.expected.Uniform",
        "quantlab.sources.source.ExpectedUniform",
    ),
    ("quantlab.formats.log.Log", "quantlab.formats.floats.Log"),
    ("quantlab.quant.Asymmetric", "quantlab.formats.uniform.Asymmetric"),
    ("quantlab.quant.Symmetric", "quantlab.formats.uniform.Symmetric"),
    ("quantlab.sources.input_scaling.Awq", "quantlab.sources.calibration.Awq"),
    ("quantlab.sources.input_scaling.Smooth", "quantlab.sources.calibration.Smooth"),
    ("quantlab.sources.stored.gguf.GgufFile", "quantlab.sources.gguf.GgufFile"),
    ("quantlab.sources.stored.onnx.OnnxFile", "quantlab.sources.onnx.OnnxFile"),
    (
        "quantlab.sources.stored.safetensors.SafetensorsFile",
        "quantlab.sources.safetensors.SafetensorsFile",
    ),
)
CURRENT = {old: names[-1] for names in NAMES for old in names[:-1]}
ORIGINAL = {later: names[0] for names in NAMES for later in names[1:]}


def current_name(target: str) -> str:
    """Translate an old name of a class to today's; any other name is returned as it is."""
    return CURRENT.get(target, target)


DEFAULTS = {  # of the groups that schema 3 did not have
    "block": {"_target_": "quantlab.formats.blocks.PerTensor", "scale": "float32"},
    "range": {"_target_": "quantlab.formats.ranges.AbsMax"},
}


def oldest_config(config: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a config as the oldest version that had its settings would have written it.

    Classes get their oldest names. Newer groups and settings are left out where they have their
    defaults, and so are expectations in words, which change no figure.
    """
    older = {key: value for key, value in config.items() if DEFAULTS.get(key) != value}
    if isinstance(metrics := older.get("metrics"), dict):
        defaults = [{"imatrix": None}, {"inputs": None}, {"extra": {}}]
        older["metrics"] = {k: v for k, v in metrics.items() if {k: v} not in defaults}
    if isinstance(mode := older.get("mode"), dict):
        mode = {k: v for k, v in mode.items() if (k, v) != ("scale_rule", "floor")}
        if isinstance(scale := mode.get("scale"), dict):
            mode["scale"] = {k: v for k, v in scale.items() if (k, v) != ("clamp", None)}
        older["mode"] = mode
    renamed = _renamed(older, ORIGINAL)
    dist = renamed.get("dist")
    if isinstance(dist, dict) and dist.get("select") == "all":  # what was measured before it was
        renamed["dist"] = dist = {key: value for key, value in dist.items() if key != "select"}
    if isinstance(dist, dict) and isinstance(dist.get("expected"), dict):
        expected = {key: value for key, value in dist["expected"].items() if key != "remedies"}
        renamed["dist"] = dist | {"expected": expected}
    return cast("dict[str, Any]", renamed)


def as_recorded(config: dict[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Give a config the selection of a record that was made before there was one."""
    dist = config.get("dist", {})
    if "select" in dist and "select" not in recorded.get("dist", {}):
        return config | {"dist": dist | {"select": "all"}}
    return config


def with_current_names(config: Any) -> Any:
    """Rename the classes in a config, in plain containers, to today's names."""
    return _renamed(config, CURRENT)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: names.get(node, node)
            if key == "_target_" and isinstance(node, str)
            else _renamed(node, names)
            for key, node in value.items()
        }
    return [_renamed(node, names) for node in value] if isinstance(value, list) else value


OLDEST = 3
REASON = "recorded with schema 3"
UNKNOWN = "unknown"  # the dtype of a tensor that was left out, without its size, until schema 5
UNSIZED = {"dtype": UNKNOWN, "shape": [0], "n_bytes": 0}
BUDGET = ("clip_share", "zero_share", "round_share")
NARROW = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
SINCE_4 = ("underflowed", "storage", "error_budget")  # keys of a tensor
SINCE_9 = ("worst_row_sqnr_db", "worst_matrix_sqnr_db", "worst_matrix")  # measured


def upgraded(record: Any) -> Any:
    """Bring a record, as JSON has it, to schema 6; a later one is returned as it is."""
    try:
        if record["schema"] < 6:
            reasons = {**record["skipped"], **record["failed"]}
            record = {"unmeasured": dict.fromkeys(reasons, UNSIZED)} | record
        if record["schema"] > OLDEST:
            return record
        tensors = {name: _upgraded(tensor, record) for name, tensor in record["tensors"].items()}
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
    """Compute the storage of one float32 scale, and of a zero point unless the mode has none."""
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


def without_new(outcome: dict[str, Any], schema: int) -> dict[str, Any]:
    """Reduce the outcome in a record to what an older schema had."""
    if schema < 9 and outcome["failed"]:  # in other words
        outcome = outcome | {"error": None, "failed": [*outcome["failed"]]}
    tensors = {}
    for name, tensor in outcome["tensors"].items():
        if schema < 9:
            figures = {k: v for k, v in tensor["measured"].items() if k not in SINCE_9}
            tensor = tensor | {"measured": figures}
        if schema == OLDEST:
            reasons = {key: why for key, why in tensor["reasons"].items() if why != REASON}
            older = {key: value for key, value in tensor.items() if key not in SINCE_4}
            tensor = older | {"reasons": reasons}
        tensors[name] = tensor
    return outcome | {"tensors": tensors}


def common_figures(older: Any, results: Any) -> Any:
    """Reduce results.json to the figures that an older one has, and their reasons."""
    if not (isinstance(older, dict) and isinstance(results, dict)):
        return results
    common = {k: common_figures(older[k], value) for k, value in results.items() if k in older}
    if isinstance(common.get("reasons"), str):
        reasons = [text for text in common["reasons"].split("; ") if not text.endswith(REASON)]
        common["reasons"] = "; ".join(reasons) or None
    return common
