"""A sweep from the values typed to its table: which runs, which are left, launch, aggregate."""

import logging
import os
import platform
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import product
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from quantlab import record, report, resume
from quantlab.errors import INTERRUPTED, one_of, sentence
from quantlab.job import build, typed
from quantlab.progress import Progress

LOCK = ".lock"
Job = list[str]  # the overrides of one run


def sweep(
    arguments: Sequence[str], config: DictConfig, loader: ConfigLoader, launcher: Launcher
) -> None:
    """Do every combination of the values in `arguments` that is not done yet, then aggregate.

    Raises ValueError or an error of Hydra's before the first run where a value makes no sense, and
    where another sweep holds the directory; SystemExit with code 1 where a run failed, 130 where
    Ctrl-C ended the sweep.
    """
    directory = Path(config.hydra.sweep.dir)
    overrides = OverridesParser.create(loader).parse_overrides(list(arguments))
    _require_options(overrides, loader)
    jobs = combinations(overrides)
    _require_sound(jobs, config, loader)
    jobs = [[*job, f"hydra.sweeper.position={number}"] for number, job in enumerate(jobs)]
    directory.mkdir(parents=True, exist_ok=True)
    with held(directory):
        record.write(directory / "multirun.yaml", OmegaConf.to_yaml(config).encode())
        left = _left(jobs, directory, config, loader)
        stopped = _launch(left, directory, launcher)
        _finish(directory, config, stopped)


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each run, the last key varying fastest; raises ValueError.

    A key given twice takes its last values, as in Hydra's basic sweeper.
    """
    choices = {}
    for each in overrides:
        key = each.get_key_element()
        if each.is_interval_sweep():
            raise ValueError(f"{each.input_line}: an interval has no end, list values or use range")
        swept = each.is_discrete_sweep()
        values = [f"{key}={value}" for value in each.sweep_string_iterator()] if swept else []
        choices[key] = values if swept else [str(each.input_line)]
    return [list(each) for each in product(*choices.values())]


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a sweep's directory against a second sweep; raises ValueError, naming who holds it.

    The system gives the lock back when the process that holds it ends, however it ends.
    """
    path = directory / LOCK
    try:
        with FileLock(path, timeout=0):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
            yield
    except Timeout:
        raise ValueError(
            f"{directory} is in use by another sweep, {path.read_text()}: wait for it to end, or "
            "sweep into another directory with hydra.sweep.dir=..."
        ) from None


def _require_options(overrides: Sequence[Override], loader: ConfigLoader) -> None:
    """Raise ValueError where a pattern like ``glob(*)`` matches none of a group's options."""
    for each in overrides:
        if each.is_discrete_sweep() and not list(each.sweep_iterator()):
            options = loader.get_group_options(each.key_or_group)
            raise ValueError(
                f"{each.key_or_group} matches nothing: {one_of(each.key_or_group, options)}"
            )


def _require_sound(jobs: Sequence[Job], config: DictConfig, loader: ConfigLoader) -> None:
    """Raise the error of a wrong override: build each value and each choice of groups once."""
    groups = config.hydra.runtime.choices
    seen: set[str | tuple[str, ...]] = set()
    for job in jobs:
        chosen = tuple(each for each in job if each.partition("=")[0] in groups)
        news: set[str | tuple[str, ...]] = {chosen, *job}
        if not news <= seen:
            build(loader.load_sweep_config(config, job))
            seen |= news


def _left(
    jobs: Sequence[Job], directory: Path, config: DictConfig, loader: ConfigLoader
) -> Sequence[Job]:
    """Return the runs that have no complete record of theirs, and say how many have one."""
    if not config.resume or resume.is_numbered(config) or not any(record.find(directory)):
        return jobs
    states = [
        resume.state(loader.load_sweep_config(config, each), directory)
        for each in tqdm(jobs, desc="looking for what is done", delay=1, disable=None, leave=False)
    ]
    found = Counter(states)
    counts = ", ".join(f"{found[each]} {each}" for each in resume.STATES if found[each])
    left = [job for job, state in zip(jobs, states, strict=True) if state != "complete"]
    print(f"resuming {len(jobs)} runs: {counts}; {len(left)} to do (resume=false does all again)")
    return left


def _launch(jobs: Sequence[Job], directory: Path, launcher: Launcher) -> BaseException | None:
    """Do runs and return what stopped them, or kept one from leaving its record."""
    if not jobs:
        return None
    try:
        with _without_sacct(), Progress(directory, len(jobs)):
            results = launcher.launch(jobs, initial_job_idx=0)
        for each in results:
            _ = each.return_value  # Hydra raises here what a run raised
    except (Exception, KeyboardInterrupt) as error:  # what is complete is still aggregated
        return error
    return None


@contextmanager
def _without_sacct() -> Iterator[None]:
    """Keep a Slurm without accounts from complaining each time that submitit asks after its jobs.

    The complaints are those of a command, sacct, that inherits our standard error.
    """
    logging.getLogger("submitit").addFilter(lambda line: line.levelno > logging.WARNING)
    if shutil.which("sacct") is None:
        yield
        return
    with os.fdopen(os.dup(2), "w") as terminal, Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        with redirect_stderr(terminal):
            try:
                yield
            finally:
                os.dup2(terminal.fileno(), 2)


def _finish(directory: Path, config: DictConfig, stopped: BaseException | None) -> None:
    """Aggregate what is complete, print it, and end the program where something went wrong."""
    from quantlab.aggregate import aggregate  # pandas and matplotlib cost a run its start-up

    failures: dict[str, str] = {}
    try:
        done = aggregate(directory)
        failures = done.failures
        print(f"\n{report.sweep(done)}")
    except (ValueError, OSError) as error:  # none is complete, or what stopped the runs persists
        stopped = stopped or error
    if stopped or failures:
        why = sentence(stopped) if stopped else f"{len(failures)} runs failed"
        print(f"quantlab: {why}; to do the rest: {_again(config)}", file=sys.stderr)
        raise SystemExit(INTERRUPTED if isinstance(stopped, KeyboardInterrupt) else 1)


def _again(config: DictConfig) -> str:
    """Return the command that resumes a sweep: as typed, with its directory."""
    overrides = typed(config.hydra.overrides.task) + typed(config.hydra.overrides.hydra)
    kept = [each for each in overrides if not each.startswith(("resume=", "hydra.mode="))]
    if not any(each.startswith("hydra.sweep.dir=") for each in kept):
        kept.append(f"hydra.sweep.dir={config.hydra.sweep.dir}")
    return shlex.join(["python", "run.py", "-m", *kept])
