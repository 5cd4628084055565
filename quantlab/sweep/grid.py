"""The runs of a sweep: every combination of the values that are typed, none of them nonsense."""

from collections.abc import Sequence
from itertools import product

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from quantlab.errors import options_hint
from quantlab.records.record import has_effect
from quantlab.sweep.job import require_valid

Job = list[str]  # the overrides of one run


def grid(arguments: Sequence[str], config: DictConfig, loader: ConfigLoader) -> list[Job]:
    """Return the runs that arguments ask for, each with its position in the sweep.

    Raises ValueError or an error of Hydra's where a value makes no sense.
    """
    overrides = OverridesParser.create(loader).parse_overrides(list(arguments))
    _require_options(overrides, loader)
    jobs = combinations(overrides)
    _require_valid(jobs, config, loader)
    return [[*job, f"hydra.sweeper.position={number}"] for number, job in enumerate(jobs)]


def combinations(overrides: Sequence[Override]) -> list[Job]:
    """Return the overrides of each run, the last key varying fastest; raises ValueError.

    A key given twice takes its last values, as in Hydra's basic sweeper; a value given twice is
    one run.
    """
    choices = {}
    for each in overrides:
        key = each.get_key_element()
        if each.is_interval_sweep():
            raise ValueError(f"{each.input_line}: an interval has no end, list values or use range")
        swept = each.is_discrete_sweep()
        values = [f"{key}={value}" for value in each.sweep_string_iterator()] if swept else []
        choices[key] = list(dict.fromkeys(values)) if swept else [str(each.input_line)]
    return [list(each) for each in product(*choices.values())]


def _require_options(overrides: Sequence[Override], loader: ConfigLoader) -> None:
    """Raise ValueError where a sweep has no value, or its values make no difference."""
    for each in overrides:
        key = each.key_or_group
        if each.is_sweep_override() and not has_effect(key):
            raise ValueError(f"{each.input_line}: {key} changes no figure, give it one value")
        if each.is_discrete_sweep() and not list(each.sweep_iterator()):
            options = loader.get_group_options(key)
            hint = options_hint(key, options) if options else "name at least one value"
            raise ValueError(f"{each.input_line} matches nothing: {hint}")


def _require_valid(jobs: Sequence[Job], config: DictConfig, loader: ConfigLoader) -> None:
    """Raise the error of a wrong override: build each value and each choice of groups once."""
    groups = config.hydra.runtime.choices
    seen: set[str | tuple[str, ...]] = set()
    for job in jobs:
        chosen = tuple(each for each in job if each.partition("=")[0] in groups)
        news: set[str | tuple[str, ...]] = {chosen, *job}
        if not news <= seen:
            require_valid(loader.load_sweep_config(config, job))
            seen |= news
