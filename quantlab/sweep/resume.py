"""What a sweep's directory already holds of a run."""

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from quantlab.errors import USER_ERRORS
from quantlab.records import record
from quantlab.sweep.job import build, run_environment, settings

STATES = ("complete", "failed", "missing", "unreadable", "changed")
NUMBERED = re.compile(r"hydra[:.]job\.(num|id)\b")


def state(config: DictConfig, sweep: Path) -> str:
    """Return what became of the run with this config: one of `STATES`.

    It is "complete" only where a record of this schema answers this very config with these very
    tensors, "changed" where it answers others.
    """
    try:
        with run_environment(config):
            return _state(config, sweep / config.hydra.sweep.subdir / record.NAME)
    except USER_ERRORS:  # the run will say it better
        return "changed"


def _state(config: DictConfig, path: Path) -> str:
    if not path.exists():
        return "missing"
    try:
        one = record.read(path)
    except ValueError:
        return "unreadable"
    if one["status"] == "failed":
        return "failed"
    experiment = build(config)
    key = record.run_key(settings(config), *experiment.identify(), experiment.listing)
    return "complete" if one["key"] == key else "changed"


def is_numbered(config: DictConfig) -> bool:
    """Return whether directories are named by launch number, which says nothing of their run."""
    return bool(NUMBERED.search(OmegaConf.to_yaml(config.hydra.sweep)))
