"""What a sweep's directory already holds of a run."""

import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from omegaconf import DictConfig, OmegaConf

from quantlab import record
from quantlab.errors import MISTAKES
from quantlab.job import build, settings

STATES = ("complete", "failed", "missing", "unreadable", "changed")
NUMBERED = re.compile(r"hydra[:.]job\.(num|id)\b")


def state(config: DictConfig, sweep: Path) -> str:
    """Return what became of the run with this config: one of `STATES`.

    It is "complete" only where a record of this schema answers this very config with these very
    tensors, "changed" where it answers others.
    """
    HydraConfig.instance().set_config(config)  # a setting may name any of Hydra's values
    try:
        with env_override(config.hydra.job.env_set):
            path = sweep / config.hydra.sweep.subdir / record.NAME
            if not path.exists():
                return "missing"
            try:
                one = record.read(path)
            except ValueError:
                return "unreadable"
            if one["status"] == "failed":
                return "failed"
            source = build(config).dist
            tensors = [tensor.identity() for tensor in source.tensors()]
            key = record.run_key(settings(config), tensors, source.skipped())
    except MISTAKES:  # the run will say it better
        return "changed"
    return "complete" if one["key"] == key else "changed"


def is_numbered(config: DictConfig) -> bool:
    """Return whether directories are named by launch number, which says nothing of their run."""
    return bool(NUMBERED.search(OmegaConf.to_yaml(config.hydra.sweep)))
