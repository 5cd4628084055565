"""Kinds of faults of what stands around a command: terminals, encodings, streams, variables."""

import os
from collections.abc import Callable

from faults.command import QUANTLAB, RUN
from faults.reference import Reference
from faults.trial import ARGUMENTS, INPUT, PLAN, SWEEP, Trial

ASCII = {"LANG": "C", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
VARIABLES = (
    {"TERM": "dumb"}, ASCII, {**ASCII, "LC_ALL": "C"}, {"COLUMNS": "20"}, {"COLUMNS": "1"},
    {"COLUMNS": "0"}, {"COLUMNS": "x"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONOPTIMIZE": "2"},
    {"HOME": "/nonexistent"}, {"TMPDIR": "/nonexistent"}, {"MPLBACKEND": "TkAgg"},
    {"TZ": "nowhere"},
    {"PYTHONIOENCODING": "latin-1"}, {"PATH": ""}, {"MPLCONFIGDIR": "/proc"},
    {"LANG": "xx_YY.UTF-8"},
    {"OMP_NUM_THREADS": "0"}, {"HYDRA_FULL_ERROR": "0"}, {"PYTHONUNBUFFERED": "1"},
)  # fmt: skip
COMMANDS = (
    (RUN, ARGUMENTS), (RUN, [*ARGUMENTS, "report.lang=es"]), (RUN, ["--help"]), (QUANTLAB, PLAN),
    (QUANTLAB, ["aggregate", SWEEP]), (QUANTLAB, ["report", SWEEP, "report.lang=es"]),
    (QUANTLAB, ["check", SWEEP]), (QUANTLAB, ["verify", SWEEP]), (QUANTLAB, ["tensors", INPUT]),
    (QUANTLAB, ["diff", SWEEP, SWEEP]), (QUANTLAB, ["--help"]),
)  # fmt: skip


def odd_terminal(trial: Trial, reference: Reference) -> None:
    """Run a command under odd variables: it ends as it does elsewhere."""
    trial.copy_sweep(reference.whole)
    script, arguments = trial.rng.choice(COMMANDS)
    environment: dict[str, str] = {}
    for variables in trial.rng.sample(VARIABLES, 2):
        environment |= variables
    trial.story = f"{script.stem} {arguments} {environment}"
    ended = trial.run(script, arguments, environment=environment, fresh=True)
    trial.require(ended.code == 0, f"it ends with exit code {ended.code}: {ended.stderr[-400:]}")
    trial.require_recovery(reference.whole)


def closed_stream(trial: Trial, reference: Reference) -> None:
    """Run a command whose output nobody reads, or cannot be written."""
    trial.copy_sweep(reference.half_aggregated)
    script, arguments = trial.rng.choice(COMMANDS)
    name = trial.rng.choice(sorted(STREAMS))
    trial.story = f"{script.stem} {arguments}, {name}"
    ended = trial.run(script, arguments, STREAMS[name], fresh=True)
    trial.require(ended.code in (0, 1, 2), f"it ends with exit code {ended.code}")
    trial.require_recovery(reference.whole)


def _close(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


def _redirect(path: str) -> Callable[[], None]:
    def redirect() -> None:
        os.dup2(os.open(path, os.O_WRONLY), 1)

    return redirect


def _break_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


STREAMS: dict[str, Callable[[], None]] = {
    "stdin closed": _close(0),
    "stdout closed": _close(1),
    "stderr closed": _close(2),
    "stdout and stderr closed": _close(1, 2),
    "all closed": _close(0, 1, 2),
    "stdout is a pipe that nobody reads": _break_pipe,
    "stdout is full": _redirect("/dev/full"),
}
