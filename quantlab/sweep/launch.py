"""A sweep from its command line to its table: lock, resume, launch, show progress, aggregate."""

import logging
import os
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import cast

from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from quantlab import interrupt
from quantlab.errors import UnfinishedError, error_sentence
from quantlab.records import disk, record
from quantlab.records.manifest import SWEEP_CONFIG, require_one_sweep
from quantlab.records.parts import MissingParts, without_part_overrides
from quantlab.report.bar import read_settings, typed_settings
from quantlab.sources.hub import find_located, has_located
from quantlab.sweep.job import format_program, make_directory
from quantlab.sweep.jobs import (
    STATES,
    Job,
    expand,
    is_numbered,
    require_disjoint,
    require_one_selection,
)
from quantlab.sweep.workers import Workers

ELSEWHERE = ", or sweep into another directory with hydra.sweep.dir=..."
BATCH_RUNS = 1000  # launched at once: Hydra keeps 0.1 MB of each, and Slurm's arrays end there
COMMIT_CHARS = 10  # of a commit in a sentence
LOOK_SECONDS = 0.5  # between two looks at the disk, at least
LINE_SECONDS = 10.0  # between two lines of progress in a log


def sweep(
    products: Sequence[Sequence[str]],
    config: DictConfig,
    loader: ConfigLoader,
    launcher: Launcher,
) -> None:
    """Launch every combination of the values in each product that is not done yet, then aggregate.

    Raises ValueError or an error of Hydra's before the first run if a value makes no sense, or if
    another sweep, or runs of other tensors, hold the directory; ValueError in the end if it holds
    another answer to the same question; UnfinishedError if a run failed, parts are missing, or the
    sweep was interrupted.
    """
    directory = Path(config.hydra.sweep.dir)
    require_one_sweep(directory, begins=True)
    jobs = expand(products, config, loader)
    require_disjoint(jobs, directory)
    require_one_selection(jobs, directory)
    make_directory(directory)
    with disk.lock_directory(directory, ELSEWHERE):
        disk.clear(directory)
        with open_dict(config):
            config.hydra.sweeper.n_jobs = len(jobs)
        disk.write(directory / SWEEP_CONFIG, OmegaConf.to_yaml(config).encode())
        stopped = _launch(_pending_jobs(jobs, directory, config), directory, launcher)
        _finish(jobs, directory, stopped)


def _pending_jobs(jobs: Sequence[Job], directory: Path, config: DictConfig) -> Sequence[Job]:
    """Select the jobs that have no complete record, and print how many have one."""
    if not config.resume or is_numbered(config) or not any(record.find(directory)):
        return jobs
    states = [
        job.find_state(directory)
        for job in tqdm(jobs, desc="looking for what is done", delay=1, disable=None, leave=False)
    ]
    counts = Counter(states)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    pending = [job for job, state in zip(jobs, states, strict=True) if state != "complete"]
    print(f"resuming: {summary}; {len(pending)} to do (resume=false repeats all)")
    for sentence in _moved_revisions(directory):
        print(sentence)
    return pending


def _moved_revisions(directory: Path) -> list[str]:
    """Describe the ids of the hub that name another commit than when runs were recorded."""
    sentences = {}
    for path in record.find(directory) if has_located() else ():
        with suppress(ValueError):
            for key, about in record.read(path, directory).get("hub", {}).items():
                before, now = about["commit"], find_located(key)
                if now and now[0].commit != before:
                    commits = before[:COMMIT_CHARS], now[0].commit[:COMMIT_CHARS]
                    sentences[key] = f"{key} has moved from commit {' to '.join(commits)}"
    return [*sentences.values()]


def _launch(jobs: Sequence[Job], directory: Path, launcher: Launcher) -> BaseException | None:
    """Launch jobs; return the exception that ended the sweep early, if any."""
    slurm = "submitit" in type(launcher).__module__
    overrides = [job.launched for job in jobs]
    directories = set()
    workers = Workers(launcher)
    try:
        with _without_sacct() if slurm else nullcontext(), Progress(directory, len(jobs)):
            for start in range(0, len(jobs), BATCH_RUNS):
                batch = overrides[start : start + BATCH_RUNS]
                for run in launcher.launch(batch, initial_job_idx=start):
                    _ = run.return_value  # Hydra raises here what a run raised
                    directories.add(cast("DictConfig", run.hydra_cfg).hydra.runtime.output_dir)
    except (Exception, KeyboardInterrupt) as error:  # what is complete is still aggregated
        workers.stop()
        return KeyboardInterrupt() if interrupt.requested.is_set() else error
    n_lost = len(jobs) - len(directories)
    if n_lost:
        return ValueError(
            f"{n_lost} of {len(jobs)} runs left no record of their own: hydra.sweep.subdir is the "
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


class Progress:
    """Show how many records appear below a directory: one line that moves or, in a log, several.

    It looks at the disk, which is all that a laptop's process and a cluster's node share.
    """

    def __init__(self, directory: Path, n_runs: int) -> None:
        self.directory, self.n_runs = directory, n_runs
        self.stamps = {path: _read_stamp(path) for path in record.find(directory) if path.exists()}
        self.failed: dict[Path, bool] = {}  # by record: a cluster may repeat a run
        self.n_printed = 0
        self.started = self.printed = time.monotonic()
        self.bar = tqdm(total=n_runs, unit="run", disable=None, leave=False)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        """Start to look."""
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        """Look a last time and print the state."""
        self.ended.set()
        self.thread.join()
        self._count_records()
        self.bar.close()
        self._print_line()

    def _watch(self) -> None:
        pause = LOOK_SECONDS
        while not self.ended.wait(pause):
            start = time.monotonic()
            self._count_records()
            is_due = len(self.failed) > self.n_printed and start - self.printed > LINE_SECONDS
            if self.bar.disable and is_due:
                self._print_line()
            pause = max(LOOK_SECONDS, 20 * (time.monotonic() - start))  # a look costs the runs time

    def _count_records(self) -> None:
        """Count the records that are new since the last look."""
        for path in record.find(self.directory):
            with suppress(OSError):  # gone, or never to be read
                stamp = _read_stamp(path)
                if self.stamps.get(path) != stamp:
                    self.stamps[path] = stamp
                    self.failed[path] = _has_failed(path)
        self.bar.set_postfix_str(f"{sum(self.failed.values())} failed", refresh=False)
        self.bar.update(len(self.failed) - self.bar.n)

    def _print_line(self) -> None:
        n_done = len(self.failed)
        self.n_printed, self.printed = n_done, time.monotonic()
        line = f"{n_done}/{self.n_runs} runs, {sum(self.failed.values())} failed"
        if 0 < n_done < self.n_runs:
            seconds = (self.printed - self.started) / n_done * (self.n_runs - n_done)
            line += f", {tqdm.format_interval(seconds)} left"
        print(line, flush=True)


def _read_stamp(path: Path) -> tuple[int, int]:
    """Identify a version of a record: every write makes a new file."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _has_failed(path: Path) -> bool:
    """Test whether a run has no figures; one that lacks those of some tensors is done."""
    with suppress(ValueError, OSError, AttributeError, KeyError):
        content = disk.read_json(path)
        return content.get("status") == "failed" and not content["tensors"]
    return False


def _finish(jobs: Sequence[Job], directory: Path, stopped: BaseException | None) -> None:
    """Aggregate what is complete and print it; raise UnfinishedError if something went wrong."""
    n_failed = 0
    incomplete: list[str] = []
    missing: list[MissingParts] = []
    try:
        n_failed, incomplete, missing = _aggregate(jobs, directory)
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
    if incomplete:  # the same command would end the same way
        done = f"{len(jobs)} runs done" if len(jobs) > 1 else "the run is done"
        others = f"; and {len(incomplete) - 1} more" if len(incomplete) > 1 else ""
        raise UnfinishedError(f"{done}; {incomplete[0]}{others}")
    if missing:
        source, n_others = missing[0], len(missing) - 1
        why = f"{source.source}: {source.problem}{f', and {n_others} more' if n_others else ''}"
        command = _resume_command(directory, source.override)
        raise UnfinishedError(f"{why}; to finish the sweep, run: {command}")


def _aggregate(jobs: Sequence[Job], directory: Path) -> tuple[int, list[str], list[MissingParts]]:
    """Aggregate a sweep and print it; return what is wrong with its `jobs`.

    That is how many failed, why some tensors of others could not be measured, each reason once,
    and the sources that lack parts.
    """
    from quantlab.report.aggregate import aggregate  # pandas and matplotlib cost a run its start-up
    from quantlab.report.terminal import sweep_summary

    settings = read_settings(directory, typed_settings(directory))
    done = aggregate(directory, settings)
    print(f"\n{sweep_summary(done.findings, done.files, settings.texts)}")
    typed = {job.typed for job in jobs}
    n_failed = sum(tuple(overrides) in typed for overrides in done.failed)
    wholes = {without_part_overrides(overrides) for overrides in typed}
    reasons = (why for overrides, why in done.incomplete.items() if overrides in typed)
    gaps = [source for source in done.gaps if source.overrides in wholes]
    return n_failed, list(dict.fromkeys(reasons)), gaps


def count_missing_runs(directory: Path) -> tuple[int, int]:
    """Count the runs without a record of the sweep that a directory holds, and all of its runs.

    A directory of several sweeps knows the runs of the last. Both are 0 if it does not say.
    """
    path = directory / SWEEP_CONFIG
    config = disk.read_yaml(path, directory) if path.exists() else OmegaConf.create()
    n_jobs = OmegaConf.select(config, "hydra.sweeper.n_jobs") or 0
    if type(n_jobs) is not int:
        raise ValueError(f"{path}: hydra.sweeper.n_jobs is no number of runs")
    return max(0, n_jobs - sum(1 for _ in record.find(directory))), n_jobs


def _resume_command(directory: Path, part: str | None = None) -> str:
    """Compose the command that resumes a sweep: as typed, with its directory, of another `part`."""
    replaced = ("resume=", "dist.part=") if part else ("resume=",)
    typed = [argument for argument in sys.argv[1:] if not argument.startswith(replaced)]
    typed += [part] if part else []
    if not any(argument.startswith("hydra.sweep.dir=") for argument in typed):
        typed.append(f"hydra.sweep.dir={directory}")
    return f"{format_program()} {shlex.join(typed)}"
