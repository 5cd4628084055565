"""What classes were called when older configs and records were written.

A config names its classes under ``_target_``, and a run's key is a hash of its config. Both outlive
a module that moves: old names are read as today's, and keys are made of the oldest name there is,
so that the same question keeps its key. Whoever moves a class appends its new name.
"""

from collections.abc import Mapping
from typing import Any, cast

NAMES = (  # of a class, the oldest first and today's last
    ("quantlab.dist.Hidden", "quantlab.sources.lab.Hidden"),
    ("quantlab.dist.TenseLogits", "quantlab.sources.lab.TenseLogits"),
    ("quantlab.dist.VerbProbs", "quantlab.sources.lab.VerbProbs"),
    ("quantlab.files.Gguf", "quantlab.sources.gguf.Gguf"),
    ("quantlab.files.Npy", "quantlab.sources.npy.Npy"),
    ("quantlab.files.Npz", "quantlab.sources.npz.Npz"),
    ("quantlab.files.Safetensors", "quantlab.sources.safetensors.Safetensors"),
    ("quantlab.predict.LognormalShares", "quantlab.sources.expected.LognormalShares"),
    ("quantlab.predict.Normal", "quantlab.sources.expected.Normal"),
    ("quantlab.predict.Uniform", "quantlab.sources.expected.Uniform"),
    ("quantlab.quant.Asymmetric", "quantlab.formats.uniform.Asymmetric"),
    ("quantlab.quant.Symmetric", "quantlab.formats.uniform.Symmetric"),
)
CURRENT = {old: names[-1] for names in NAMES for old in names[:-1]}
ORIGINAL = {later: names[0] for names in NAMES for later in names[1:]}


def current_name(target: str) -> str:
    """Return what the class of an old name is called today; any other name as it is."""
    return CURRENT.get(target, target)


DEFAULTS = {  # what groups that schema 3 did not have do when nobody chooses
    "block": {"_target_": "quantlab.formats.blocks.PerTensor", "scale": "float32"},
    "range": {"_target_": "quantlab.formats.ranges.AbsMax"},
}


def as_first_asked(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as the oldest version that could ask the same would have written it.

    Classes have their oldest names, groups that are newer are left out where they have their
    defaults, and so are beliefs in words, which change no figure.
    """
    kept = {key: value for key, value in config.items() if DEFAULTS.get(key) != value}
    if isinstance(metrics := kept.get("metrics"), dict) and metrics.get("imatrix") is None:
        kept["metrics"] = {key: value for key, value in metrics.items() if key != "imatrix"}
    renamed = with_original_names(kept)
    dist = renamed.get("dist")
    if isinstance(dist, dict) and isinstance(dist.get("expected"), dict):
        beliefs = {key: value for key, value in dist["expected"].items() if key != "remedies"}
        renamed["dist"] = dist | {"expected": beliefs}
    return cast("dict[str, Any]", renamed)


def with_current_names(config: Any) -> Any:
    """Return a config, in plain containers, with its classes under today's names."""
    return _renamed(config, CURRENT)


def with_original_names(config: Any) -> Any:
    """Return a config, in plain containers, with its classes under their oldest names."""
    return _renamed(config, ORIGINAL)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: names.get(each, each)
            if key == "_target_" and isinstance(each, str)
            else _renamed(each, names)
            for key, each in value.items()
        }
    return [_renamed(each, names) for each in value] if isinstance(value, list) else value
