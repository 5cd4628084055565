"""Kinds of faults that are signals: SIGKILL, SIGTERM and Ctrl-C, at random moments."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from faults.command import QUANTLAB, RUN, signal_at
from faults.reference import Reference
from faults.trial import ARGUMENTS, PLAN, SWEEP, Trial

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
LONGEST_SECONDS = 2.5  # until a signal, of a command that takes 2 s
LONGEST_START_SECONDS = 6.0  # the same where a new interpreter imports everything first


def kill_sweep(trial: Trial, reference: Reference) -> None:
    """SIGKILL a sweep."""
    _signal_sweep(trial, reference, [signal.SIGKILL])


def terminate_sweep(trial: Trial, reference: Reference) -> None:
    """SIGTERM a sweep."""
    _signal_sweep(trial, reference, [signal.SIGTERM])


def interrupt_sweep(trial: Trial, reference: Reference) -> None:
    """Interrupt a sweep once."""
    _signal_sweep(trial, reference, [signal.SIGINT])


def interrupt_sweep_twice(trial: Trial, reference: Reference) -> None:
    """Interrupt a sweep, and again while it ends."""
    _signal_sweep(trial, reference, [signal.SIGINT, signal.SIGINT])


def kill_joblib(trial: Trial, reference: Reference) -> None:
    """SIGKILL the process of a sweep with workers."""
    _signal_at_time(trial, RUN, [*ARGUMENTS, *JOBLIB], [signal.SIGKILL])
    _recover(trial, reference)


def terminate_joblib(trial: Trial, reference: Reference) -> None:
    """SIGTERM the process of a sweep with workers."""
    _signal_at_time(trial, RUN, [*ARGUMENTS, *JOBLIB], [signal.SIGTERM])
    _recover(trial, reference)


def signal_imports(trial: Trial, reference: Reference) -> None:
    """Interrupt or end a new interpreter while it imports."""
    number = trial.rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    _signal_at_time(trial, RUN, ARGUMENTS, [number], is_fresh=True)
    _recover(trial, reference)


def signal_aggregate(trial: Trial, reference: Reference) -> None:
    """Signal the aggregation of more records than the old aggregate has."""
    _signal_command(trial, reference, ["aggregate", SWEEP])


def signal_report(trial: Trial, reference: Reference) -> None:
    """Signal a report in another language with another bar."""
    _signal_command(trial, reference, ["report", SWEEP, "report.lang=es", "report.bar.sqnr_db=30"])


def signal_plan(trial: Trial, reference: Reference) -> None:
    """Signal a plan; the next one has to be that of an undisturbed sweep."""
    trial.copy_sweep(reference.whole)
    _signal_at_event(trial, reference, reference.whole, QUANTLAB, PLAN, [_choose_signal(trial)])
    trial.require_success(trial.run(QUANTLAB, PLAN), "planning again")
    plan = trial.sweep / "plan.json"
    undisturbed = (reference.planned / SWEEP / "plan.json").read_bytes()
    trial.require(plan.read_bytes() == undisturbed, "plan.json is not that of the whole sweep")
    _recover(trial, reference)


def _signal_sweep(trial: Trial, reference: Reference, numbers: Sequence[int]) -> None:
    """Signal a sweep, new or resumed, before it touches a file or at a moment in time."""
    begin = trial.rng.choice([None, reference.half])
    if begin:
        trial.copy_sweep(begin)
    earlier = trial.records()
    if trial.rng.random() < 0.6:
        _signal_at_event(trial, reference, begin, RUN, ARGUMENTS, numbers)
    else:
        _signal_at_time(trial, RUN, ARGUMENTS, numbers)
    _recover(trial, reference, earlier)


def _signal_command(trial: Trial, reference: Reference, arguments: Sequence[str]) -> None:
    """Signal a command on the records of the whole sweep beside the aggregate of half of them."""
    begin = reference.half_aggregated
    trial.copy_sweep(begin)
    earlier = trial.records()
    number = _choose_signal(trial)
    if trial.rng.random() < 0.8:
        _signal_at_event(trial, reference, begin, QUANTLAB, arguments, [number])
    else:
        _signal_at_time(trial, QUANTLAB, arguments, [number])
    _recover(trial, reference, earlier)


def _choose_signal(trial: Trial) -> int:
    return trial.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])


def _signal_at_event(
    trial: Trial,
    reference: Reference,
    begin: Path | None,
    script: Path,
    arguments: Sequence[str],
    numbers: Sequence[int],
) -> None:
    moment = trial.rng.randint(1, reference.n_events(begin, script, arguments))
    trial.run(script, arguments, signal_at(moment, numbers, trial.sweep))


def _signal_at_time(
    trial: Trial,
    script: Path,
    arguments: Sequence[str],
    numbers: Sequence[int],
    is_fresh: bool = False,
) -> None:
    is_fresh = is_fresh or JOBLIB[0] in arguments
    started = trial.start(script, arguments, fresh=is_fresh)
    for number in numbers:
        time.sleep(trial.rng.uniform(0, LONGEST_START_SECONDS if is_fresh else LONGEST_SECONDS))
        started.kill(number)
    trial.end(started, " ".join([script.stem, *arguments]))


def _recover(trial: Trial, reference: Reference, earlier: dict[str, bytes] | None = None) -> None:
    trial.probe()
    trial.require_recovery(reference.whole, earlier)
