"""Thousands of runs under a mixture of faults: sweeps of some hundred runs, each disturbed twice.

Nothing may be lost of a sweep that is killed, starved and resumed, whatever came before.
"""

import json
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.command import RUN
from faults.limits import drop_capabilities
from faults.trial import INPUT, SWEEP, Trial

N_RUNS = 510
ARGUMENTS = (
    "-m", "dist=file/npz", f"dist.path={INPUT}", f"hydra.sweep.dir={SWEEP}", "block=group",
    "threads=1", "mode=sym,asym", "n_bits=range(2,17)", "rank.k=range(1,18)",
)  # fmt: skip
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LIMIT_SECONDS = 900.0
LONGEST_SECONDS = 20.0  # until a fault, of a sweep that takes as long
N_FAULTS = 2  # of each sweep
SHORT_FILE_BYTES = 7_000  # a record has some more
HOSTILE = (b"", b"null", b"{", b"[" * 100_000, bytes(99))


def make_trial(folder: Path, rng: random.Random) -> Trial:
    """Make a trial of a large sweep."""
    return Trial(folder, rng, arguments=ARGUMENTS, n_runs=N_RUNS, limit_seconds=LIMIT_SECONDS)


def leave_alone(folder: Path) -> Path:
    """Run the sweep without a fault; return the directory of the trial."""
    trial = make_trial(folder, random.Random(0))
    trial.require_success(trial.run(RUN, trial.arguments), "a sweep that is left alone")
    if trial.faults:
        raise RuntimeError(trial.faults[0])
    return trial.folder


def disturb(trial: Trial, undisturbed: Path) -> None:
    """Disturb a sweep again and again, and require that resuming it makes up for that."""
    names = trial.rng.sample(sorted(FAULTS), N_FAULTS)
    trial.story = ", ".join(names)
    earlier: dict[str, bytes] = {}
    for name in names:
        altered = FAULTS[name](trial) or ()
        now = trial.records()
        lost = [path for path in earlier.keys() - altered if now.get(path) != earlier[path]]
        trial.require(not lost, f"{name}: complete records were lost or measured again: {lost}")
        earlier = now
    trial.require_recovery(undisturbed, earlier)


def _signal(trial: Trial, numbers: list[int], *launcher: str) -> None:
    started = trial.start(RUN, [*trial.arguments, *launcher], fresh=bool(launcher))
    for number in numbers:
        time.sleep(trial.rng.uniform(0, LONGEST_SECONDS))
        started.kill(number)
    trial.end(started, "a sweep that is signalled")


def _run_two(trial: Trial) -> None:
    started = [trial.start(RUN, trial.arguments) for _ in range(2)]
    time.sleep(trial.rng.uniform(0, LONGEST_SECONDS))
    for command in started:
        command.kill(signal.SIGKILL)
    for command in started:
        trial.end(command, "one of two sweeps")


def _limit_files(trial: Trial) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SHORT_FILE_BYTES, SHORT_FILE_BYTES))

    trial.run(RUN, trial.arguments, limit)


def _forbid(trial: Trial) -> None:
    """Forbid writing into the directory of the sweep and those of some runs."""
    trial.sweep.mkdir(exist_ok=True)
    folders = [trial.sweep, *trial.sweep.glob("*/")]
    chosen = [folder for folder in folders if trial.rng.random() < 0.5]
    for folder in chosen:
        folder.chmod(0o555)
    trial.run(RUN, trial.arguments, drop_capabilities)
    for folder in chosen:
        folder.chmod(0o755)


def _damage(trial: Trial) -> set[str]:
    """Damage some records, as a disk might, after a part of the sweep; return their names."""
    _signal(trial, [signal.SIGKILL])
    paths = _choose_records(trial)
    for path in paths:
        path.write_bytes(trial.rng.choice(HOSTILE))
    return {path.relative_to(trial.sweep).as_posix() for path in paths}


def _shift_clock(trial: Trial) -> set[str]:
    """Date some records wrongly after a part of the sweep; return their names."""
    _signal(trial, [signal.SIGTERM])
    paths = _choose_records(trial)
    for path in paths:
        record = json.loads(path.read_bytes())
        record["started"] = f"{trial.rng.randint(1970, 2999)}-01-01T00:00:00+00:00"
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return {path.relative_to(trial.sweep).as_posix() for path in paths}


def _choose_records(trial: Trial) -> list[Path]:
    paths = sorted(trial.sweep / name for name in trial.records())
    return [path for path in paths if trial.rng.random() < 0.1]


# Each returns the records that it alters itself, if any.
FAULTS: dict[str, Callable[[Trial], set[str] | None]] = {
    "SIGKILL": lambda trial: _signal(trial, [signal.SIGKILL]),
    "SIGTERM": lambda trial: _signal(trial, [signal.SIGTERM]),
    "Ctrl-C": lambda trial: _signal(trial, [signal.SIGINT]),
    "Ctrl-C twice": lambda trial: _signal(trial, [signal.SIGINT, signal.SIGINT]),
    "SIGKILL of joblib's parent": lambda trial: _signal(trial, [signal.SIGKILL], *JOBLIB),
    "two sweeps, killed": _run_two,
    "files that are cut short": _limit_files,
    "directories that are read-only": _forbid,
    "damaged records": _damage,
    "a wrong clock": _shift_clock,
}
