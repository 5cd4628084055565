"""A sweep from the values typed to its table: which runs, which are left, launch, aggregate."""

import logging
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from quantlab import interrupt
from quantlab.errors import INTERRUPTED, error_sentence
from quantlab.records import disk, record
from quantlab.records.parts import without_part_overrides
from quantlab.report.bar import read_settings, typed_settings
from quantlab.sweep import resume
from quantlab.sweep.divisions import require_apart
from quantlab.sweep.grid import Job, grid
from quantlab.sweep.job import make_directory, program
from quantlab.sweep.progress import Progress

LOCK_NAME = ".lock"
BATCH = 1000  # runs launched at once: Hydra keeps 0.1 MB of each, and Slurm's arrays end there


def sweep(
    products: Sequence[Sequence[str]],
    config: DictConfig,
    loader: ConfigLoader,
    launcher: Launcher,
) -> None:
    """Do every combination of the values in each product that is not done yet, then aggregate.

    Raises ValueError or an error of Hydra's before the first run where a value makes no sense, and
    where another sweep holds the directory; ValueError in the end where the directory holds another
    answer to the same question; SystemExit with code 1 where a run failed, 130 where Ctrl-C ended
    the sweep.
    """
    directory = Path(config.hydra.sweep.dir)
    jobs = grid(products, config, loader)
    require_apart(jobs, directory, config, loader)
    make_directory(directory)
    with lock_directory(directory):
        disk.clear(directory)
        disk.write(directory / "multirun.yaml", OmegaConf.to_yaml(config).encode())
        pending = _pending_jobs(jobs, directory, config, loader)
        stopped = _launch(pending, directory, launcher)
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


def _pending_jobs(
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
    pending = [job for job, state in zip(jobs, states, strict=True) if state != "complete"]
    print(f"resuming: {counts}; {len(pending)} to do (resume=false repeats all)")
    return pending


def _launch(jobs: Sequence[Job], directory: Path, launcher: Launcher) -> BaseException | None:
    """Do runs and return what stopped them, or kept one from leaving its record."""
    slurm = "submitit" in type(launcher).__module__
    directories = set()
    try:
        with _without_sacct() if slurm else nullcontext(), Progress(directory, len(jobs)):
            for start in range(0, len(jobs), BATCH):
                for each in launcher.launch(jobs[start : start + BATCH], initial_job_idx=start):
                    _ = each.return_value  # Hydra raises here what a run raised
                    directories.add(cast("DictConfig", each.hydra_cfg).hydra.runtime.output_dir)
    except (Exception, KeyboardInterrupt) as error:  # what is complete is still aggregated
        return KeyboardInterrupt() if interrupt.requested.is_set() else error
    lost = len(jobs) - len(directories)
    if lost:
        return ValueError(
            f"{lost} of {len(jobs)} runs left no record of their own: hydra.sweep.subdir is the "
            "same for several"
        )
    return None


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
    """Aggregate what is complete, print it, and end the program where something went wrong."""
    from quantlab.report.aggregate import aggregate  # pandas and matplotlib cost a run its start-up
    from quantlab.report.terminal import sweep_summary

    failed, gaps = 0, []
    try:
        settings = read_settings(directory, typed_settings(directory))
        done = aggregate(directory, settings)
        print(f"\n{sweep_summary(done.findings, done.files, settings.texts)}")
        asked = {tuple(job[:-1]) for job in jobs}  # the last says which run of the sweep it is
        failed = sum(tuple(each) in asked for each in done.failed)
        wholes = {without_part_overrides(each) for each in asked}
        gaps = [each for each in done.gaps if each.overrides in wholes]
    except ValueError as error:  # resuming would end here too
        if not stopped:
            raise
        print(f"quantlab: {error_sentence(error)}", file=sys.stderr)
    except BrokenPipeError:  # nobody reads on, and everything is written
        raise
    except (OSError, KeyboardInterrupt) as error:  # such as a second Ctrl-C
        stopped = stopped or error
    if stopped or failed:
        why = error_sentence(stopped) if stopped else f"{failed} of {len(jobs)} runs failed"
        advice = "to finish the sweep, run" if stopped else "to retry them, run"
        print(f"quantlab: {why}; {advice}: {_resume_command(directory)}", file=sys.stderr)
        raise SystemExit(INTERRUPTED if isinstance(stopped, KeyboardInterrupt) else 1)
    if gaps:
        gap, others = gaps[0], len(gaps) - 1
        command = _resume_command(directory, gap.override)
        why = f"{gap.source}: {gap.problem}{f', and {others} more' if others else ''}"
        print(f"quantlab: {why}; to finish the sweep, run: {command}", file=sys.stderr)
        raise SystemExit(1)


def _resume_command(directory: Path, part: str | None = None) -> str:
    """Return the command that resumes a sweep: as typed, with its directory, of another `part`."""
    replaced = ("resume=", "dist.part=") if part else "resume="
    kept = [each for each in sys.argv[1:] if not each.startswith(replaced)]
    kept += [part] if part else []
    if not any(each.startswith("hydra.sweep.dir=") for each in kept):
        kept.append(f"hydra.sweep.dir={directory}")
    return f"{program()} {shlex.join(kept)}"
