"""``hydra/sweeper=quantlab``, where Hydra looks for plugins.

Hydra imports this module at the start of every app of an environment: the work is imported late.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class QuantlabSweeperConf:
    """What can be set: `params` as for Hydra's basic sweeper, or a list of such mappings.

    Each mapping of a list is a product of its own. The sweeper sets the others itself: `position`
    is that of a run in its sweep, counting from 0 (of a resumed sweep a launcher sees only the runs
    to do, and its ``hydra.job.num`` counts those); `n_jobs` is the number of runs of the sweep.
    """

    _target_: str = "hydra_plugins.quantlab_sweeper.QuantlabSweeper"
    params: Any = None  # a mapping would not give way to a list
    position: int | None = None
    n_jobs: int | None = None


ConfigStore.instance().store("quantlab", QuantlabSweeperConf, "hydra/sweeper", provider="quantlab")


class QuantlabSweeper(Sweeper):
    """Every combination of the values swept; see `quantlab.sweep`."""

    def __init__(self, params: Any, **_: Any) -> None:
        self.products = list(params) if isinstance(params, Sequence) else [params or {}]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Give the launcher a loader that composes each choice of groups once."""
        from quantlab.sweep.jobs import Composer

        self.loader = cast("ConfigLoader", Composer(hydra_context.config_loader))
        self.sweep_config = config
        self.engine = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(self.loader, hydra_context.callbacks),
            task_function=task_function,
            config=config,
        )

    def sweep(self, arguments: list[str]) -> None:
        """Launch the runs that are not done yet, aggregate, print; raise an error if one failed."""
        from quantlab.sweep import launch

        if not self.products:
            raise HydraException("hydra.sweeper.params=[] asks for nothing: give it a mapping")

        products = [
            [*(f"{key}={value}" for key, value in values.items()), *arguments]
            for values in self.products
        ]
        launch.sweep(products, self.sweep_config, self.loader, self.engine)
