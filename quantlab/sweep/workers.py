"""Workers of a sweep on this machine: processes of launchers that end when the sweep does.

The sweep holds the write end of a pipe, and names its read end in the environment that workers
inherit. Each opens it through ``/proc``, and a thread waits for its end: the system closes the pipe
however the sweep ends, and the sweep closes it to stop its workers. Records are written whole or
not at all, so that a worker may end at any moment. (PR_SET_PDEATHSIG is no substitute: it fires
when the thread ends that started a worker, and some launchers start them in a thread.)
"""

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from quantlab import interrupt

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

VARIABLE = "QUANTLAB_SWEEP"  # in the environment of workers: PID/fd/NUMBER of the pipe
PROC = Path("/proc")
LOOK_SECONDS = 1.0  # between two looks whether the sweep is alive, on systems without /proc
SHUTDOWN_SECONDS = 5.0  # that processes of a cluster have to end by themselves
SETTLE_SECONDS = 3.0  # without any, after which there is none to come
LOCAL_LAUNCHERS = ("JoblibLauncher", "LocalLauncher", "RayLauncher")  # on this machine


class Workers:
    """The workers of a sweep: they may work until `stop`, or until this process ends."""

    def __init__(self, launcher: "Launcher") -> None:
        self.pool = type(launcher).__name__ == "JoblibLauncher"
        self.pipe: tuple[int, int] | None = None
        os.environ.pop(VARIABLE, None)  # Slurm would take it to other machines
        if type(launcher).__name__ in LOCAL_LAUNCHERS:
            self.pipe = os.pipe()
            os.environ[VARIABLE] = f"{os.getpid()}/fd/{self.pipe[0]}"
            if type(launcher).__name__ == "RayLauncher":
                _start_reaper(self.pipe[0], _ray_time())
        if self.pool:  # some of whose workers may never have a run
            vars(launcher)["joblib"]["initializer"] = end_with_sweep

    def stop(self) -> None:
        """Stop the workers: a signal to this process alone would leave them at work."""
        if self.pool:
            loky = import_module("joblib.externals.loky")
            loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)
        if self.pipe:  # whose read end stays, for workers that have yet to open it
            os.close(self.pipe[1])
            self.pipe = None


def _ray_time() -> str:
    """Return the time as the name of a Ray session has it."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"


def _start_reaper(pipe: int, started: str) -> None:
    """Start a process that ends those of a Ray cluster after the sweep, the end of a pipe.

    They are none of ours: some look for their servers for a minute after these are gone.
    """
    command = (
        f"import sys; sys.path = {sys.path}; "
        f"from quantlab.sweep.workers import reap; reap({started!r})"
    )
    subprocess.Popen(
        [sys.executable, "-c", command],
        stdin=pipe,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def reap(started: str) -> None:
    """Wait for the end of a pipe, standard input, then end all processes that inherited its name.

    `started` is when the sweep did, as `_ray_time`. Only Linux tells the environment of other
    processes, and not while they are being started: there is nothing left once none has been seen
    for some time.
    """
    os.read(sys.stdin.fileno(), 1)
    sessions = started, _ray_time()
    ended = seen = time.monotonic()
    while (now := time.monotonic()) < seen + SETTLE_SECONDS:
        for process in _inheritors(sessions):
            seen = now
            if now > ended + SHUTDOWN_SECONDS:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(LOOK_SECONDS / 5)


def _inheritors(sessions: tuple[str, str]) -> list[int]:
    """List the other processes that have the name of the pipe in their environment.

    The title that a process of Ray's takes overwrites its environment: those of the cluster of a
    sweep are also known by a file that they write, in the logs of a session between two times.
    """
    pipe = os.environ[VARIABLE]
    mark = f"{VARIABLE}={pipe}".encode()
    log = re.compile(rf"/session_([^/]*)_{pipe.partition('/')[0]}/logs/")  # of the sweep's PID
    processes = []
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            environment = (folder / "environ").read_bytes().split(b"\0")
            if mark in environment or any(
                sessions[0] <= start <= sessions[1]
                for file in _written_files(folder)
                for start in log.findall(file)
            ):
                processes.append(int(folder.name))
    return [process for process in processes if process != os.getpid()]


def _written_files(process: Path) -> Iterator[str]:
    """Yield the files that a process has open to write; one that follows a log reads it."""
    for link in (process / "fd").iterdir():
        if link.lstat().st_mode & stat.S_IWUSR:
            yield str(link.readlink())


def end_with_sweep() -> None:
    """Have this process end when the sweep does whose worker it is, if it is one."""
    place = os.environ.get(VARIABLE)
    if place and not place.startswith(f"{os.getpid()}/"):
        _watch(place)


@cache
def _watch(place: str) -> None:
    threading.Thread(target=_exit_after, args=(place,), daemon=True).start()


def _exit_after(place: str) -> None:
    """End this process once nobody holds the write end of a pipe."""
    try:
        # without O_NONBLOCK it would wait for a writer where there is none any more
        pipe = os.open(PROC / place, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(pipe, True)
        os.read(pipe, 1)
    except OSError:  # the pipe is gone, or nobody may look at it
        while _may_be_open(place):
            time.sleep(LOOK_SECONDS)
    os._exit(interrupt.EXIT_CODE)


def _may_be_open(place: str) -> bool:
    """Test whether the process of a pipe is alive and, as far as can be seen, the pipe is there."""
    try:
        os.kill(int(place.partition("/")[0]), 0)
        return not PROC.exists() or bool((PROC / place).readlink())
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
