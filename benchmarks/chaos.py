"""Whether anything is lost, hangs or is left running under faults of many kinds.

Sweeps of two small tensors are killed, starved, run into each other and lied to; the invariants are
in `faults.trial`. Prints how many trials of each kind there were and what was found, then the story
of the first faults, whose directories are kept. The exit code is 1 if there were any. Trials depend
on the seed alone, but for what the machine does meanwhile.
"""

import argparse
import math
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from faults import directories, inputs, limits, many, signals, terminals
from faults.command import IMPORTS, ROOT
from faults.reference import Reference
from faults.trial import Trial

from quantlab.stats.parallel import usable_cores

MAX_STORIES = 10  # that are printed
HEADER = f"{'kind':<20}{'trials':>8}{'losses':>9}{'hangs':>8}{'tracebacks':>13}{'left':>7}{'s':>7}"


class Kind(NamedTuple):
    """A kind of fault: how one is tried, how often, and what keeps this machine from trying it."""

    attempt: Callable[[Trial, Reference], None]
    n_trials: int
    find_obstacle: Callable[[], str | None] = lambda: None


KINDS = {
    "kill-sweep": Kind(signals.kill_sweep, 20),
    "kill-joblib": Kind(signals.kill_joblib, 6),
    "kill-imports": Kind(signals.signal_imports, 6),
    "aggregate": Kind(signals.signal_aggregate, 20),
    "report": Kind(signals.signal_report, 10),
    "plan": Kind(signals.signal_plan, 6),
    "sigterm": Kind(signals.terminate_sweep, 10),
    "sigterm-joblib": Kind(signals.terminate_joblib, 4),
    "ctrl-c": Kind(signals.interrupt_sweep, 10),
    "ctrl-c-twice": Kind(signals.interrupt_sweep_twice, 10),
    "two-sweeps": Kind(directories.two_sweeps, 6),
    "two-aggregates": Kind(directories.two_aggregates, 6),
    "reading": Kind(directories.read_while_aggregated, 4),
    "stale-lock": Kind(directories.stale_lock, 4),
    "hostile-file": Kind(directories.hostile_file, 24),
    "full-disk": Kind(limits.full_disk, 12, limits.find_mount_obstacle),
    "no-permission": Kind(limits.no_permission, 10),
    "few-resources": Kind(limits.few_resources, 16),
    "wrong-clock": Kind(limits.wrong_clock, 4),
    "changed-input": Kind(inputs.changed_input, 8),
    "hostile-names": Kind(inputs.hostile_names, 6),
    "hostile-paths": Kind(inputs.hostile_paths, 6),
    "hostile-input": Kind(inputs.hostile_input, 40),
    "terminal": Kind(terminals.odd_terminal, 8),
    "streams": Kind(terminals.closed_stream, 8),
}


def main() -> None:
    """Print the table."""
    arguments = _parse_arguments()
    for name in IMPORTS:
        import_module(name)
    folder = Path(tempfile.mkdtemp(prefix="quantlab-chaos-"))
    stories: list[str] = []
    with ProcessPoolExecutor(usable_cores(), get_context("fork")) as pool:
        if arguments.runs:
            stories += _try_runs(arguments, many.leave_alone(folder / "reference"), pool)
        else:
            reference = Reference(folder / "reference")
            names = [arguments.kind] if arguments.kind else [*KINDS]
            attempts = {name: _start_trials(name, arguments, reference, pool) for name in names}
            print(HEADER, flush=True)
            for name, started in attempts.items():
                stories += _print_line(name, [attempt.result() for attempt in started])
    for story in stories[:MAX_STORIES]:
        print(f"\n{story}")
    if stories:
        sys.exit(1)
    shutil.rmtree(folder)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, help="try one kind alone")
    parser.add_argument("--trials", type=int, help="of each kind")
    parser.add_argument("--share", type=float, default=1, help="of the trials, at least one a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, help="so many runs under a mixture, and nothing else")
    return parser.parse_args()


def _start_trials(
    name: str, arguments: argparse.Namespace, reference: Reference, pool: ProcessPoolExecutor
) -> list[Future[Trial]]:
    """Start the trials of a kind of fault; none where the machine has not what it takes."""
    kind, folder = KINDS[name], reference.folder.parent
    n_trials = arguments.trials or max(1, round(arguments.share * kind.n_trials))
    if kind.find_obstacle():
        return []
    return [
        pool.submit(_attempt, name, arguments.seed, reference, folder / f"{name}-{n}")
        for n in range(n_trials)
    ]


def _attempt(name: str, seed: int, reference: Reference, folder: Path) -> Trial:
    trial = Trial(folder, random.Random(f"{seed} {folder.name}"))
    return _try(trial, partial(KINDS[name].attempt, trial, reference))


def _try_runs(
    arguments: argparse.Namespace, undisturbed: Path, pool: ProcessPoolExecutor
) -> list[str]:
    """Disturb sweeps of so many runs together, print a line, and return the stories."""
    folders = [
        undisturbed.parent / f"runs-{n}" for n in range(math.ceil(arguments.runs / many.N_RUNS))
    ]
    trials = list(pool.map(partial(_attempt_runs, arguments.seed, undisturbed), folders))
    print(HEADER)
    return _print_line(f"{many.N_RUNS} runs each", trials)


def _attempt_runs(seed: int, undisturbed: Path, folder: Path) -> Trial:
    trial = many.make_trial(folder, random.Random(f"{seed} {folder.name}"))
    return _try(trial, partial(many.disturb, trial, undisturbed))


def _try(trial: Trial, attempt: Callable[[], None]) -> Trial:
    start = time.monotonic()
    try:
        attempt()
    except Exception:  # such as a file that should be there: a trial costs none of the others
        trial.losses.append(traceback.format_exc())
    if not trial.faults:
        shutil.rmtree(trial.folder)
    trial.seconds = time.monotonic() - start
    return trial


def _print_line(name: str, trials: Sequence[Trial]) -> list[str]:
    """Print the counts of a kind of fault; return the stories of what was found."""
    if not trials:
        print(f"{name:<20}not tried: {KINDS[name].find_obstacle()}", flush=True)
        return []
    counts = [
        sum(bool(getattr(trial, what)) for trial in trials)
        for what in ("losses", "hangs", "tracebacks", "left")
    ]
    seconds = sum(trial.seconds for trial in trials)
    cells = "{:8}{:9}{:8}{:13}{:7}{:7.0f}".format(len(trials), *counts, seconds)
    print(f"{name:<20}{cells}", flush=True)
    return [
        "\n  ".join([f"{trial.folder} {trial.story}", *trial.faults])
        for trial in trials
        if trial.faults
    ]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
