"""One trial of a fault: a directory with a small sweep, and the invariants that have to hold after.

- Resuming the sweep ends with exit code 0, and its artefacts are the bytes of an undisturbed one.
- No complete record is lost, or measured again: its bytes stay.
- No command takes longer than a limit, prints a traceback, or leaves a process behind.
- `plan`, `check` and `verify` say a sentence, or work on a table that is whole.
"""

import hashlib
import json
import random
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faults.command import LIMIT_SECONDS, QUANTLAB, RUN, Ended, Prepare, Started, start

INPUT = "weights.npz"
SWEEP = "sweep"  # the directory of every sweep
ARGUMENTS = [
    "-m",
    "dist=file/npz",
    f"dist.path={INPUT}",
    f"hydra.sweep.dir={SWEEP}",
    "n_bits=4,6,8",
]
ARGUMENTS += ["block=group", "threads=1"]
N_RUNS = 3
ARTEFACTS = ("results.json", "results.csv", "verdict.json", "error_histogram.png", "plots/*")
PLAN = ["plan", SWEEP, "--bits", "7"]
PROBES = (["check", SWEEP], ["verify", SWEEP], PLAN)
STORY_LINES = 12  # of an output, in the story of a fault


@dataclass
class Trial:
    """A directory of a trial, what was found in it, and commands that run in it."""

    folder: Path
    rng: random.Random
    losses: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    story: str = ""  # of what was done
    arguments: Sequence[str] = tuple(ARGUMENTS)  # of its sweep
    n_runs: int = N_RUNS
    limit_seconds: float = LIMIT_SECONDS
    n_commands: int = 0
    seconds: float = 0

    def __post_init__(self) -> None:
        """Make the directory, with an input of two tensors."""
        self.folder.mkdir(parents=True)
        write_input(self.folder / INPUT)

    @property
    def sweep(self) -> Path:
        """Directory of the sweep."""
        return self.folder / SWEEP

    @property
    def faults(self) -> list[str]:
        """Everything that was found."""
        return [*self.losses, *self.hangs, *self.tracebacks, *self.left]

    def start(
        self,
        script: Path,
        arguments: Sequence[str],
        prepare: Prepare | None = None,
        environment: dict[str, str] | None = None,
        fresh: bool = False,
    ) -> Started:
        """Start a command in the directory."""
        self.n_commands += 1
        folder = self.folder / f"command-{self.n_commands}"
        return start(script, arguments, self.folder, folder, prepare, environment, fresh)

    def end(self, started: Started, what: str) -> Ended:
        """Wait for a command, and note what no command may do."""
        ended = started.end(self.limit_seconds)
        if ended.is_hung:
            self.hangs.append(f"{what} hangs")
        if "Traceback" in ended.stderr or "Exception ignored" in ended.stderr:
            last = "\n".join(ended.stderr.splitlines()[-STORY_LINES:])
            self.tracebacks.append(f"{what} ends in a traceback:\n{last}")
        if ended.code == -signal.SIGBUS:
            self.tracebacks.append(f"{what} is ended by the system: SIGBUS")
        self.left += [f"{what} leaves a process: {line}" for line in ended.left]
        return ended

    def run(
        self,
        script: Path,
        arguments: Sequence[str],
        prepare: Prepare | None = None,
        environment: dict[str, str] | None = None,
        fresh: bool = False,
    ) -> Ended:
        """Run a command to its end."""
        started = self.start(script, arguments, prepare, environment, fresh)
        return self.end(started, " ".join([script.stem, *arguments]))

    def require(self, is_true: bool, sentence: str) -> None:
        """Note a loss unless something is true."""
        if not is_true:
            self.losses.append(sentence)

    def require_success(self, ended: Ended, what: str) -> None:
        """Note a loss unless a command has ended with exit code 0."""
        last = "; ".join(ended.stderr.splitlines()[-2:]) or ended.stdout[-200:]
        self.require(ended.code == 0, f"{what} ends with exit code {ended.code}: {last}")

    def copy_sweep(self, reference: Path) -> None:
        """Begin with a copy of a sweep that is done."""
        shutil.copytree(reference / SWEEP, self.sweep, symlinks=True)

    def records(self) -> dict[str, bytes]:
        """Read the complete records of the sweep, by their path."""
        records = {}
        for path in self.sweep.glob("*/record.json"):
            with suppress(OSError, ValueError, TypeError, RecursionError):
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes()
                    if json.loads(content)["status"] == "completed":
                        records[path.relative_to(self.sweep).as_posix()] = content
        return records

    def probe(self) -> None:
        """Require the commands that read an aggregate to say a sentence, or to have a whole one."""
        for arguments in PROBES if self.sweep.is_dir() else ():
            what = " ".join(arguments)
            ended = self.run(QUANTLAB, arguments)
            self.require(
                ended.code in (0, 1, 2), f"{what} ends with exit code {ended.code}: {ended.stderr}"
            )
            if ended.code == 0 and not ended.stderr:
                faults = find_mixture(self.sweep)
                self.require(not faults, f"{what} works on a mixture: {'; '.join(faults)}")

    def require_recovery(self, reference: Path, earlier: dict[str, bytes] | None = None) -> None:
        """Resume the sweep, and require the bytes of the undisturbed one and all records.

        `earlier` are complete records that there were before the fault.
        """
        records = (earlier or {}) | self.records()
        self.require_success(self.run(RUN, self.arguments), "resuming the sweep")
        again = self.records()
        changed = [name for name, content in records.items() if again.get(name) != content]
        self.require(not changed, f"complete records were lost or measured again: {changed}")
        self.require(len(again) == self.n_runs, f"only {len(again)} records are complete")
        theirs, ours = read_artefacts(reference / SWEEP), read_artefacts(self.sweep)
        differing = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        self.require(not differing, f"not the bytes of the undisturbed sweep: {differing}")
        faults = find_mixture(self.sweep)
        self.require(not faults, f"the aggregate is a mixture: {'; '.join(faults)}")
        partial = [path.name for path in self.sweep.rglob(".*.partial")]
        self.require(not partial, f"partial files are left: {partial}")


def write_input(path: Path) -> None:
    """Write two tensors of 1,000 values, the same for every sweep."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((25, 40), np.float32), rng.standard_normal((40, 25), np.float32)
    np.savez(path, a=a, b=b)


def read_artefacts(sweep: Path) -> dict[str, bytes]:
    """Read the artefacts that depend on nothing but the records."""
    paths = [path for pattern in ARTEFACTS for path in sweep.glob(pattern)]
    visible = [path for path in paths if path.name[0] != "."]
    return {path.relative_to(sweep).as_posix(): path.read_bytes() for path in visible}


def find_mixture(sweep: Path) -> list[str]:
    """List the artefacts that are not those of the manifest."""
    path = sweep / "manifest.json"
    if not path.is_file():
        return ["there is no manifest.json"]
    hashes: dict[str, Any] = json.loads(path.read_bytes())["artefacts"]
    digests = {name: _digest(sweep / name) for name in hashes}
    return [f"{name} is of another" for name in hashes if digests[name] != hashes[name]]


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
