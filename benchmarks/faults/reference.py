"""Sweeps that are left alone, which those of trials begin with and have to equal in the end."""

import hashlib
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from faults.command import QUANTLAB, RUN, count_events
from faults.trial import ARGUMENTS, PLAN, SWEEP, Trial

HALF = [*ARGUMENTS, "n_bits=4"]


class Reference:
    """Sweeps that are left alone, each in a directory, and how often commands touch their files.

    `half` has some of the runs, `whole` all; `half_aggregated` has all records and the aggregate of
    `half`, `planned` is `whole` with a plan.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.half = self._sweep("half", None, RUN, HALF)
        self.whole = self._sweep("whole", None, RUN, ARGUMENTS)
        self.planned = self._sweep("planned", self.whole, QUANTLAB, PLAN)
        self.half_aggregated = folder / "half-aggregated"
        self._aggregate_half()

    def _sweep(self, name: str, begin: Path | None, script: Path, arguments: Sequence[str]) -> Path:
        trial = Trial(self.folder / name, random.Random(0))
        if begin:
            trial.copy_sweep(begin)
        trial.require_success(trial.run(script, arguments), "a sweep that is left alone")
        if trial.faults:
            raise RuntimeError(trial.faults[0])
        return trial.folder

    def _aggregate_half(self) -> None:
        folder = self.half_aggregated / SWEEP
        shutil.copytree(self.half / SWEEP, folder)
        for path in (self.whole / SWEEP).glob("*/record.json"):
            shutil.copytree(path.parent, folder / path.parent.name, dirs_exist_ok=True)
        shutil.copy(self.whole / SWEEP / "multirun.yaml", folder)

    def n_events(self, begin: Path | None, script: Path, arguments: Sequence[str]) -> int:
        """Count how often a command touches files of a sweep that begins as a copy of another."""
        key = hashlib.sha256(repr([begin, script, arguments]).encode()).hexdigest()
        count = self.folder / f"events-{key}.txt"
        if not count.exists():  # two processes may count at once, and get the same
            trial = Trial(self.folder / f"events-{key}-{os.getpid()}", random.Random(0))
            if begin:
                trial.copy_sweep(begin)
            counting = trial.folder / "events.txt"
            trial.run(script, arguments, count_events(trial.sweep, counting))
            counting.replace(count)
        return count.stat().st_size
