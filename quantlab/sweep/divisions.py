"""The runs of a sweep that measure parts of one source."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict

from quantlab.records import parts, record
from quantlab.sweep.job import run_environment, settings

Job = list[str]  # the overrides of one run


def without_parts(jobs: Sequence[Job], config: DictConfig, loader: ConfigLoader) -> list[Job]:
    """Return runs without the overrides that divide their source, where it can be divided."""

    @cache
    def is_divisible(source: tuple[str, ...]) -> bool:
        dist = loader.load_sweep_config(config, list(source)).get("dist")
        return parts.read_division(dist) is not None

    wholes = []
    for job in jobs:
        own = [each for each in job if not parts.is_part_override(each)]
        source = tuple(each for each in job if each.startswith(("dist=", "experiment=")))
        wholes.append(own if len(own) < len(job) and is_divisible(source) else job)
    return wholes


def require_apart(
    jobs: Sequence[Job], directory: Path, config: DictConfig, loader: ConfigLoader
) -> None:
    """Raise ValueError where runs, or what a directory holds, measure the same tensors in parts.

    Only a sweep of parts, or into a directory with names of parts, is looked at: whatever else
    there may be, the aggregate refuses too.
    """
    found = {path.parent: path for path in record.find(directory)}
    typed = any(parts.is_part_override(each) for job in jobs for each in job)
    if not typed and not any(parts.PART_SUFFIX.search(each.name) for each in found):
        return
    asked = [_claim(loader.load_sweep_config(config, job), n) for n, job in enumerate(jobs)]
    again = {directory / each.directory for each in asked}
    others = (path for where, path in found.items() if where not in again)
    parts.require_disjoint([*_recorded(others, directory), *asked], directory)


def _claim(config: DictConfig, number: int) -> parts.RunIdentity:
    with open_dict(config):
        config.hydra.job.num, config.hydra.job.id = number, str(number)
    with run_environment(config):
        dist = config.hydra.runtime.choices.dist
        return parts.identify_run(config.hydra.sweep.subdir, dist, settings(config))


def _recorded(paths: Iterator[Path], directory: Path) -> Iterator[parts.RunIdentity]:
    """Yield what the runs of records answer; what cannot be read answers nothing."""
    for path in paths:
        try:
            one = record.read(path)
        except ValueError:
            continue
        where = path.parent.relative_to(directory).as_posix()
        yield parts.identify_run(where, one["dist"], one["config"])
