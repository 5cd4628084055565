"""A sweep from the values typed to its table: which runs, which are left, launch, aggregate."""

import logging
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from quantlab import interrupt
from quantlab.errors import UnfinishedError, error_sentence
from quantlab.records import disk, record
from quantlab.records.parts import without_part_overrides
from quantlab.report.bar import read_settings, typed_settings
from quantlab.sweep.job import make_directory, program
from quantlab.sweep.jobs import STATES, Job, expand, is_numbered, require_disjoint
from quantlab.sweep.progress import Progress

SWEEP_CONFIG = "multirun.yaml"
LOCK_NAME = ".lock"
BATCH = 1000  # runs launched at once: Hydra keeps 0.1 MB of each, and Slurm's arrays end there


def sweep(
    products: Sequence[Sequence[str]],
    config: DictConfig,
    loader: ConfigLoader,
    launcher: Launcher,
) -> None:
    """Launch every combination of the values in each product that is not done yet, then aggregate.

    Raises ValueError or an error of Hydra's before the first run if a value makes no sense, or if
    another sweep holds the directory; ValueError in the end if the directory holds another answer
    to the same question; UnfinishedError if a run failed, parts are missing, or the sweep was
    interrupted.
    """
    directory = Path(config.hydra.sweep.dir)
    jobs = expand(products, config, loader)
    require_disjoint(jobs, directory)
    make_directory(directory)
    with lock_directory(directory):
        disk.clear(directory)
        with open_dict(config):
            config.hydra.sweeper.n_jobs = len(jobs)
        disk.write(directory / SWEEP_CONFIG, OmegaConf.to_yaml(config).encode())
        stopped = _launch(_pending_jobs(jobs, directory, config), directory, launcher)
        _finish(jobs, directory, stopped)


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold a sweep's directory against a second sweep; raises ValueError, naming who holds it.

    The system gives the lock back when the process that holds it ends, however it ends.
    """
    path = directory / LOCK_NAME
    try:
        with FileLock(path, timeout=0):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
            yield
    except Timeout:
        raise ValueError(
            f"{directory} is in use by another sweep, {path.read_text()}: wait for it to end, or "
            "sweep into another directory with hydra.sweep.dir=..."
        ) from None


def _pending_jobs(jobs: Sequence[Job], directory: Path, config: DictConfig) -> Sequence[Job]:
    """Select the jobs that have no complete record, and print how many have one."""
    if not config.resume or is_numbered(config) or not any(record.find(directory)):
        return jobs
    states = [
        job.state(directory)
        for job in tqdm(jobs, desc="looking for what is done", delay=1, disable=None, leave=False)
    ]
    n_of = Counter(states)
    counts = ", ".join(f"{n_of[state]} {state}" for state in STATES if n_of[state])
    pending = [job for job, state in zip(jobs, states, strict=True) if state != "complete"]
    print(f"resuming: {counts}; {len(pending)} to do (resume=false repeats all)")
    return pending


def _launch(jobs: Sequence[Job], directory: Path, launcher: Launcher) -> BaseException | None:
    """Launch jobs; return the exception that ended the sweep early, if any."""
    slurm = "submitit" in type(launcher).__module__
    overrides = [job.launched for job in jobs]
    directories = set()
    try:
        with _without_sacct() if slurm else nullcontext(), Progress(directory, len(jobs)):
            for start in range(0, len(jobs), BATCH):
                batch = overrides[start : start + BATCH]
                for run in launcher.launch(batch, initial_job_idx=start):
                    _ = run.return_value  # Hydra raises here what a run raised
                    directories.add(cast("DictConfig", run.hydra_cfg).hydra.runtime.output_dir)
    except (Exception, KeyboardInterrupt) as error:  # what is complete is still aggregated
        _kill_workers(launcher)
        return KeyboardInterrupt() if interrupt.requested.is_set() else error
    lost = len(jobs) - len(directories)
    if lost:
        return ValueError(
            f"{lost} of {len(jobs)} runs left no record of their own: hydra.sweep.subdir is the "
            "same for several"
        )
    return None


def _kill_workers(launcher: Launcher) -> None:
    """Kill the workers of joblib: a signal to this process alone would leave them at work."""
    if "joblib" in type(launcher).__module__:
        loky = import_module("joblib.externals.loky")
        loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def _without_sacct() -> Iterator[None]:
    """Keep a Slurm without accounts from complaining each time that submitit asks after its jobs.

    The complaints are those of a command, sacct, that inherits our standard error.
    """
    logging.getLogger("submitit").addFilter(lambda line: line.levelno > logging.WARNING)
    with os.fdopen(os.dup(2), "w") as terminal, Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        with redirect_stderr(terminal):
            try:
                yield
            finally:
                os.dup2(terminal.fileno(), 2)


def _finish(jobs: Sequence[Job], directory: Path, stopped: BaseException | None) -> None:
    """Aggregate what is complete and print it; raise UnfinishedError if something went wrong."""
    from quantlab.report.aggregate import aggregate  # pandas and matplotlib cost a run its start-up
    from quantlab.report.terminal import sweep_summary

    n_failed, missing = 0, []
    try:
        settings = read_settings(directory, typed_settings(directory))
        done = aggregate(directory, settings)
        print(f"\n{sweep_summary(done.findings, done.files, settings.texts)}")
        typed = {job.typed for job in jobs}
        n_failed = sum(tuple(overrides) in typed for overrides in done.failed)
        wholes = {without_part_overrides(overrides) for overrides in typed}
        missing = [source for source in done.gaps if source.overrides in wholes]
    except ValueError as error:  # resuming would end here too
        if not stopped:
            raise
        print(f"quantlab: {error_sentence(error)}", file=sys.stderr)
    except BrokenPipeError:  # nobody reads on, and everything is written
        raise
    except (OSError, KeyboardInterrupt) as error:  # such as a second Ctrl-C
        stopped = stopped or error
    command = _resume_command(directory)
    if stopped:
        raise UnfinishedError(
            f"{error_sentence(stopped)}; to finish the sweep, run: {command}",
            interrupted=isinstance(stopped, KeyboardInterrupt),
        )
    if n_failed:
        why = f"{n_failed} of {len(jobs)} runs failed"
        raise UnfinishedError(f"{why}; to retry them, run: {command}")
    if missing:
        source, n_others = missing[0], len(missing) - 1
        why = f"{source.source}: {source.problem}{f', and {n_others} more' if n_others else ''}"
        command = _resume_command(directory, source.override)
        raise UnfinishedError(f"{why}; to finish the sweep, run: {command}")


def count_missing_runs(directory: Path) -> tuple[int, int]:
    """Count the runs without a record of the sweep that a directory holds, and all of its runs.

    A directory of several sweeps knows the runs of the last. Both are 0 if it does not say.
    """
    path = directory / SWEEP_CONFIG
    config = OmegaConf.load(path) if path.exists() else OmegaConf.create()
    n_jobs = OmegaConf.select(config, "hydra.sweeper.n_jobs") or 0
    return max(0, n_jobs - sum(1 for _ in record.find(directory))), n_jobs


def _resume_command(directory: Path, part: str | None = None) -> str:
    """Compose the command that resumes a sweep: as typed, with its directory, of another `part`."""
    replaced = ("resume=", "dist.part=") if part else ("resume=",)
    typed = [argument for argument in sys.argv[1:] if not argument.startswith(replaced)]
    typed += [part] if part else []
    if not any(argument.startswith("hydra.sweep.dir=") for argument in typed):
        typed.append(f"hydra.sweep.dir={directory}")
    return f"{program()} {shlex.join(typed)}"
