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

MAX_CONFIGS = 256  # in the cache, of 0.1 MB each
_composed: dict[tuple[str, ...], DictConfig] = {}  # of a process: Composers travel to workers


class Composer:
    """Hydra's own config loader, called once for each choice of config groups.

    What a plain ``key=value`` changes is changed in a copy of what Hydra composed, which takes a
    tenth of the time. The configs equal those that Hydra composes one by one.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self.sweep = uuid4().hex  # two sweeps of one process may differ in everything else

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """Compose the config of one run; raises Hydra's errors where that is impossible."""
        groups = master_config.hydra.runtime.choices
        overrides = [_parse_override(text) for text in sweep_overrides]
        kinds = [_classify_override(override, groups) for override in overrides]
        n_ordered = max((n for n, kind in enumerate(kinds, 1) if kind == "other"), default=0)
        settings = [n for n in range(n_ordered, len(kinds)) if kinds[n] == "setting"]
        structure = [text for n, text in enumerate(sweep_overrides) if n not in settings]
        config = deepcopy(self._compose(master_config, structure))
        try:
            for override in (overrides[n] for n in settings):
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:  # Hydra's own error names the override
            return self.loader.load_sweep_config(master_config, list(sweep_overrides))
        _set_overrides(config, overrides, as_typed(master_config.hydra.overrides.hydra))
        return config

    def _compose(self, master_config: DictConfig, structure: list[str]) -> DictConfig:
        key = (self.sweep, *structure)
        if key not in _composed:
            if len(_composed) == MAX_CONFIGS:
                _composed.clear()
            _composed[key] = self.loader.load_sweep_config(master_config, structure)
        return _composed[key]

    def __getattr__(self, name: str) -> Any:
        """Look up anything else in the loader."""
        if name.startswith("__") or name == "loader":  # while being unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.loader, name)


@cache
def _parse_override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def _classify_override(override: Override, groups: Collection[str]) -> str:
    """Classify an override: the choice of a "group", a "setting", or "other".

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
    task = [override for override in overrides if not override.is_hydra_override()]
    hydra = [str(override.input_line) for override in overrides if override.is_hydra_override()]
    config.hydra.overrides.task = [str(override.input_line) for override in task]
    config.hydra.overrides.hydra = launched + hydra
    how = config.hydra.job.config.override_dirname
    shown = [str(item.input_line) for item in task if item.key_or_group not in how.exclude_keys]
    config.hydra.job.override_dirname = how.item_sep.join(sorted(shown)).replace("=", how.kv_sep)
