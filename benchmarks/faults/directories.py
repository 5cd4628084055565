"""Kinds of faults of a sweep's directory: two processes at once, and hostile files in it."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from faults.command import QUANTLAB, RUN
from faults.reference import Reference
from faults.trial import ARGUMENTS, PLAN, SWEEP, Trial, find_mixture

LONGEST_HEAD_START = 1.5  # of the first of two commands, in seconds
HUGE_BYTES = 3 * 2**29  # of a sparse file, more than any record has
NESTED_LISTS = 200_000
HOSTILE_PLACES = (
    "record.json", "manifest.json", "multirun.yaml", ".hydra/config.yaml", ".hydra/hydra.yaml",
    "plan.json", "results.csv", "results.json", "verdict.json", ".lock", ".answers.jsonl",
)  # fmt: skip
OF_A_RUN = ("record.json", ".hydra/config.yaml", ".hydra/hydra.yaml", ".answers.jsonl")
STALE_LOCK = "process 4242 on another-node"


def two_sweeps(trial: Trial, reference: Reference) -> None:
    """Start two sweeps into one directory: one of them is done, the other done or refused."""
    codes = _run_both(trial, (RUN, ARGUMENTS), (RUN, ARGUMENTS), "in use")
    trial.require(0 in codes, f"neither of two sweeps is done: exit codes {codes}")
    trial.require_recovery(reference.whole)


def two_aggregates(trial: Trial, reference: Reference) -> None:
    """Aggregate a directory in two languages at once: it holds one of them, whole."""
    trial.copy_sweep(reference.half_aggregated)
    spanish = ["report", SWEEP, "report.lang=es", "report.bar.sqnr_db=30"]
    codes = _run_both(trial, (QUANTLAB, ["aggregate", SWEEP]), (QUANTLAB, spanish), "in use")
    trial.require(0 in codes, f"neither of two aggregations is done: exit codes {codes}")
    faults = find_mixture(trial.sweep)
    trial.require(not faults, f"two aggregations leave a mixture: {'; '.join(faults)}")
    trial.probe()
    trial.require_recovery(reference.whole)


def read_while_aggregated(trial: Trial, reference: Reference) -> None:
    """Read an aggregate again and again while it is replaced by others."""
    trial.copy_sweep(reference.half_aggregated)
    earlier = trial.records()
    spanish = ["report", SWEEP, "report.lang=es", "report.bar.sqnr_db=30"]
    for arguments in (["aggregate", SWEEP], spanish):
        writer = trial.start(QUANTLAB, arguments)
        while not writer.has_ended():
            command = trial.rng.choice((["check", SWEEP], ["verify", SWEEP], PLAN))
            ended = trial.run(QUANTLAB, command)
            trial.require(ended.code in (0, 1, 2), f"{command} ends with {ended.code}")
        trial.end(writer, " ".join(arguments))
    trial.require_recovery(reference.whole, earlier)


def stale_lock(trial: Trial, reference: Reference) -> None:
    """Leave a lock file that names a process of another machine, or of this one that has ended."""
    trial.copy_sweep(reference.half)
    text = trial.rng.choice([STALE_LOCK, f"process 1 on {os.uname().nodename}", "", "\0" * 99])
    (trial.sweep / ".lock").write_text(text)
    trial.probe()
    trial.require_recovery(reference.whole)


def hostile_file(trial: Trial, reference: Reference) -> None:
    """Put what nobody expects in the place of a file of a sweep, and run every command on it."""
    trial.copy_sweep(reference.planned)
    place = trial.rng.choice(HOSTILE_PLACES)
    name = trial.rng.choice(sorted(HOSTILE_FILES))
    folder = trial.sweep
    if place in OF_A_RUN:
        folder = trial.rng.choice(sorted(path.parent for path in folder.glob("*/record.json")))
    path = folder / place
    intact = path.read_bytes() if path.is_file() else None
    _remove(path)
    HOSTILE_FILES[name](path)
    trial.story = f"{name} in the place of {path.relative_to(trial.folder)}"
    run = folder.relative_to(trial.folder).as_posix()
    if place != "record.json":  # the others are unharmed whatever happens
        earlier = trial.records()
    else:
        earlier = {key: value for key, value in trial.records().items() if folder.name not in key}
    commands = [["aggregate", SWEEP], ["verify", SWEEP], ["check", SWEEP], PLAN]
    commands += [["report", SWEEP, "report.lang=es"], ["diff", SWEEP, SWEEP], ["reproduce", run]]
    for command in trial.rng.sample(commands, 3):
        trial.run(QUANTLAB, command)
    trial.run(RUN, ARGUMENTS)
    if path.is_symlink() or not path.is_file() or place not in OF_A_RUN:
        _remove(path)
    if intact is not None and place.startswith(".hydra"):
        path.write_bytes(intact)
    trial.require_recovery(reference.whole, earlier)


def _run_both(
    trial: Trial, first: tuple[Path, list[str]], second: tuple[Path, list[str]], refusal: str
) -> list[int]:
    """Run two commands, the second a random moment after the first; return their exit codes."""
    started = [trial.start(*first)]
    time.sleep(trial.rng.uniform(0, LONGEST_HEAD_START))
    started.append(trial.start(*second))
    ended = [trial.end(command, "one of two commands at once") for command in started]
    for command in ended:
        is_refused = command.code == 1 and refusal in command.stderr
        trial.require(
            command.code == 0 or is_refused,
            f"one of two commands ends with exit code {command.code}: {command.stderr[-300:]}",
        )
    return [command.code for command in ended]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)


HOSTILE_FILES: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link out of the sweep": lambda path: path.symlink_to("/etc/passwd"),
    "a directory": Path.mkdir,
    "an empty file": _write(b""),
    "random bytes": _write(bytes(range(256)) * 99),
    "a huge file": _make_huge,
    "deep lists": _write(b"[" * NESTED_LISTS + b"]" * NESTED_LISTS),
    "deep mappings": _write(b'{"schema": 9, "a":' * NESTED_LISTS + b"1" + b"}" * NESTED_LISTS),
    "a list": _write(b"[1, 2]\n"),
    "a number": _write(b"1e999\n"),
    "a string": _write(b'"text"\n'),
    "null": _write(b"null\n"),
    "a mapping": _write(b'{"artefacts": [], "runs": 7, "config": null, "hydra": "x"}\n'),
    "NaN": _write(b"NaN\n"),
    "a surrogate": _write(b'{"dist": "\\ud800", "schema": 9}\n'),
}
