"""The configs of a sweep's runs, composed once for each choice of config groups."""

from collections.abc import Collection, Sequence
from copy import deepcopy
from functools import cache
from typing import Any
from uuid import uuid4

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from quantlab.sweep.job import as_typed

MOST = 256  # configs kept, of 0.1 MB each
_composed: dict[tuple[str, ...], DictConfig] = {}  # of a process: Composers travel to workers


class Composer:
    """Hydra's own config loader, asked once for each choice of config groups.

    What a plain ``key=value`` changes is changed in a copy of what Hydra composed, which takes a
    tenth of the time. The configs equal those that Hydra composes one by one.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self.sweep = uuid4().hex  # two sweeps of one process may differ in everything else

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """Return the config of one run; raises Hydra's errors where it cannot be composed."""
        groups = master_config.hydra.runtime.choices
        parsed = [_parse(each) for each in sweep_overrides]
        kinds = [_kind(each, groups) for each in parsed]
        ordered = max((n for n, kind in enumerate(kinds) if kind == "other"), default=-1) + 1
        settings = [n for n, kind in enumerate(kinds) if n >= ordered and kind == "setting"]
        structure = [each for n, each in enumerate(sweep_overrides) if n not in settings]
        config = deepcopy(self._compose(master_config, structure))
        try:
            for each in (parsed[n] for n in settings):
                OmegaConf.update(config, each.key_or_group, each.value(), merge=True)
        except OmegaConfBaseException:
            # Hydra says why it cannot be
            return self.loader.load_sweep_config(master_config, list(sweep_overrides))
        _set_overrides(config, parsed, as_typed(master_config.hydra.overrides.hydra))
        return config

    def _compose(self, master_config: DictConfig, structure: list[str]) -> DictConfig:
        key = (self.sweep, *structure)
        if key not in _composed:
            if len(_composed) == MOST:
                _composed.clear()
            _composed[key] = self.loader.load_sweep_config(master_config, structure)
        return _composed[key]

    def __getattr__(self, name: str) -> Any:
        """Be the loader in everything else."""
        if name.startswith("__") or name == "loader":  # while being unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.loader, name)


@cache
def _parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _kind(override: Override, groups: Collection[str]) -> str:
    """Return what an override changes: which "group" option, a "setting", or something "other".

    Only a plain ``key=value`` may be made up for in a copy, and only after all that is "other":
    ``x=1 ++x=2`` is not ``++x=2 x=1``.
    """
    key = override.key_or_group
    plain = override.type == OverrideType.CHANGE and override.package is None
    if not plain or "/" in key or key == "hydra.searchpath":
        return "other"
    return "group" if key in groups else "setting"


def _set_overrides(config: DictConfig, overrides: Sequence[Override], launched: list[str]) -> None:
    """Write the overrides of a run where Hydra keeps them."""
    task = [each for each in overrides if not each.is_hydra_override()]
    hydra = [str(each.input_line) for each in overrides if each.is_hydra_override()]
    config.hydra.overrides.task = [str(each.input_line) for each in task]
    config.hydra.overrides.hydra = launched + hydra
    how = config.hydra.job.config.override_dirname
    named = [str(each.input_line) for each in task if each.key_or_group not in how.exclude_keys]
    config.hydra.job.override_dirname = how.item_sep.join(sorted(named)).replace("=", how.kv_sep)
