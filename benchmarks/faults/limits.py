"""Kinds of faults of the machine: full disks, no permission, no descriptors, no memory, clocks."""

import ctypes
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from faults.command import QUANTLAB, RUN, Prepare
from faults.reference import Reference
from faults.trial import ARGUMENTS, PLAN, SWEEP, Trial

CAPABILITY_VERSION = 0x20080522  # the third, of two words a set
PAGE_BYTES = 4096
ENOUGH_PAGES, ENOUGH_FILES = 16_384, 10_000
MAX_PAGES, MAX_FILES = 200, 60  # beyond a sweep that is there before
MAX_DESCRIPTORS = 20  # beyond those that are open
MAX_EXTRA_BYTES = 300 * 2**20  # of memory
MAX_FILE_BYTES = 150_000
MAX_CLOCK_SECONDS = 10**9  # that a clock is wrong
REPORT = ["report", SWEEP, "report.lang=es", "report.bar.sqnr_db=30"]
WRITING = [(RUN, ARGUMENTS), (QUANTLAB, ["aggregate", SWEEP]), (QUANTLAB, REPORT), (QUANTLAB, PLAN)]


def full_disk(trial: Trial, reference: Reference) -> None:
    """Let a disk fill up while a sweep or a command writes to it."""
    begin = trial.rng.choice([None, reference.half, reference.half_aggregated])
    with _mounted(trial.sweep, ENOUGH_PAGES, ENOUGH_FILES):
        earlier = _copy_sweep(trial, begin)
        script, arguments = trial.rng.choice(WRITING) if begin else WRITING[0]
        used = os.statvfs(trial.sweep)
        pages, files = used.f_blocks - used.f_bfree, used.f_files - used.f_ffree
        if trial.rng.random() < 0.7:
            pages, files = pages + trial.rng.randint(1, MAX_PAGES), ENOUGH_FILES
        else:
            pages, files = ENOUGH_PAGES, files + trial.rng.randint(1, MAX_FILES)
        _mount(trial.sweep, pages, files, "remount,")
        trial.run(script, arguments)
        trial.probe()
        _mount(trial.sweep, ENOUGH_PAGES, ENOUGH_FILES, "remount,")
        trial.require_recovery(reference.whole, earlier)


def find_mount_obstacle() -> str | None:
    """Find out whether this process may mount a file system."""
    with TemporaryDirectory() as folder:
        try:
            with _mounted(Path(folder, "disk"), PAGE_BYTES, PAGE_BYTES):
                return None
        except (OSError, subprocess.CalledProcessError):
            return "it takes the right to mount a tmpfs"


def no_permission(trial: Trial, reference: Reference) -> None:
    """Run commands that may read a sweep but not write it, or not all of it."""
    trial.copy_sweep(trial.rng.choice([reference.half, reference.half_aggregated]))
    earlier = trial.records()
    paths = [trial.sweep, *sorted(trial.sweep.rglob("*"))]
    chosen = paths if trial.rng.random() < 0.5 else [trial.rng.choice(paths)]
    forbidden = trial.rng.choice([0o222, 0o777]) if len(chosen) == 1 else 0o222
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    for path in chosen:
        path.chmod(modes[path] & ~forbidden)
    trial.story = f"{forbidden:o} is forbidden of {len(chosen)} paths, {chosen[0]} among them"
    for script, arguments in trial.rng.sample(WRITING, 2):
        trial.run(script, arguments, drop_capabilities)
    for command in (["check", SWEEP], ["verify", SWEEP]):
        trial.run(QUANTLAB, command, drop_capabilities)
    for path, mode in modes.items():
        path.chmod(mode)
    trial.require_recovery(reference.whole, earlier)


def few_resources(trial: Trial, reference: Reference) -> None:
    """Run commands with few file descriptors, little memory, or short files."""
    begin = trial.rng.choice([None, reference.half, reference.half_aggregated])
    earlier = _copy_sweep(trial, begin)
    script, arguments = trial.rng.choice(WRITING) if begin else WRITING[0]
    what = trial.rng.choice(["descriptors", "memory", "length"])
    if what == "descriptors":
        limit = trial.rng.randint(1, MAX_DESCRIPTORS)
        prepare = _limit_descriptors(limit)
    elif what == "memory":
        limit = trial.rng.randint(0, MAX_EXTRA_BYTES)
        prepare = _limit_memory(limit)
    else:
        limit = trial.rng.randint(0, MAX_FILE_BYTES)
        prepare = _limit(resource.RLIMIT_FSIZE, limit)
    trial.story = f"{what}, {limit}: {script.stem} {arguments[0]}"
    trial.run(script, arguments, prepare)
    trial.probe()
    trial.require_recovery(reference.whole, earlier)


def wrong_clock(trial: Trial, reference: Reference) -> None:
    """Begin with records of the future or the past, under a clock that jumps."""
    trial.copy_sweep(reference.half)
    moment = time.time() + trial.rng.uniform(-1, 1) * MAX_CLOCK_SECONDS
    for path in trial.sweep.glob("*/record.json"):
        record = json.loads(path.read_bytes())
        record["started"] = datetime.fromtimestamp(moment, UTC).isoformat()
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        os.utime(path, (moment, moment))
    earlier = trial.records()
    trial.require_success(trial.run(RUN, ARGUMENTS, _jump_clock(trial)), "a sweep")
    trial.probe()
    trial.require_recovery(reference.whole, earlier)


def _copy_sweep(trial: Trial, begin: Path | None) -> dict[str, bytes]:
    """Copy a sweep into the directory of a trial, if there is one; return its records."""
    if begin:
        shutil.copytree(begin / SWEEP, trial.sweep, dirs_exist_ok=True)
    return trial.records()


@contextmanager
def _mounted(folder: Path, pages: int, files: int) -> Iterator[None]:
    folder.mkdir()
    _mount(folder, pages, files)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(folder: Path, pages: int, files: int, option: str = "") -> None:
    options = f"{option}size={pages * PAGE_BYTES},nr_inodes={files}"
    command: Sequence[str] = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def drop_capabilities() -> None:
    """Have permissions bind this process also if it is root's, as Linux' capset(2) does."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def _limit(kind: int, limit: int) -> Prepare:
    return lambda: resource.setrlimit(kind, (limit, limit))


def _limit_descriptors(extra: int) -> Prepare:
    def limit() -> None:
        n_open = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + extra, n_open + extra))

    return limit


def _limit_memory(extra: int) -> Prepare:
    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        n_bytes = pages * resource.getpagesize() + extra
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))

    return limit


def _jump_clock(trial: Trial) -> Prepare:
    """Have the clock of a process jump forwards and back."""
    seed, now = trial.rng.random(), time.time

    def jump() -> None:
        jumps = iter(range(sys.maxsize))
        time.time = lambda: now() + (next(jumps) % 3 - 1) * seed * MAX_CLOCK_SECONDS

    return jump
