"""Commands of quantlab in processes of their own, to be killed, starved or cut off.

Most are forks of a process that has imported everything, which saves two seconds of imports; a
`fresh` one is a new interpreter.
"""

import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

ROOT = Path(__file__).parents[2]
RUN = ROOT / "run.py"
QUANTLAB = ROOT / "quantlab" / "__main__.py"
IMPORTS = (
    "quantlab.__main__", "quantlab.plans.page", "quantlab.plans.plan", "quantlab.report.aggregate",
    "quantlab.report.verdict", "quantlab.sources.numpy", "quantlab.verify",
)  # fmt: skip
MARKER = "QUANTLAB_CHAOS"  # in the environment of all that a command starts
LIMIT_SECONDS = 60.0  # of a command, which takes 2 s of a processor, or 10 with joblib
GRACE_SECONDS = 3.0  # until the processes of an ended command have to be gone
MAX_ADDRESS_BYTES = 4 * 2**30  # of a command: a file without end shall not take the whole machine
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "os.listdir"}

Prepare = Callable[[], None]  # runs in the process of a command before the command does


class Ended(NamedTuple):
    """A command that has ended: its exit code, negative if it is a signal, and what it printed."""

    code: int
    stdout: str
    stderr: str
    is_hung: bool
    left: list[str]  # command lines of processes that outlived it


class Started:
    """A command that runs in a session of its own, with its output in files."""

    def __init__(
        self, pid: int, folder: Path, marker: str, wait: Callable[[bool], int | None]
    ) -> None:
        self.pid, self._folder, self._marker, self._wait = pid, folder, marker, wait
        self._start = time.monotonic()

    def kill(self, number: int) -> None:
        """Send a signal to the process, if it still runs; those that it started get none."""
        if self._wait(False) is None:
            os.kill(self.pid, number)

    def has_ended(self) -> bool:
        """Test whether the process has ended."""
        return self._wait(False) is not None

    def end(self, limit_seconds: float = LIMIT_SECONDS) -> Ended:
        """Wait for the end of the process, and of those that it started; kill what does not end."""
        is_hung = not _wait_until(self.has_ended, self._start + limit_seconds - time.monotonic())
        if is_hung:
            os.kill(self.pid, signal.SIGKILL)
        code = self._wait(True)
        assert code is not None
        _wait_until(lambda: not any(self._processes()), GRACE_SECONDS)
        left = []
        for pid in self._processes():
            left.append(_command_line(pid))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stdout, stderr = ((self._folder / name).read_text("utf-8", "replace") for name in OUTPUTS)
        return Ended(code, stdout, stderr, is_hung, left)

    def _processes(self) -> Iterator[int]:
        """Yield the processes of the session, and those that inherited the marker."""
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                _, _, fields = (path / "stat").read_text().rpartition(")")
                state, _, _, session = fields.split()[:4]
                is_marked = self._marker.encode() in (path / "environ").read_bytes()
                if state != "Z" and (int(session) == self.pid or is_marked):
                    yield int(path.name)


OUTPUTS = "stdout.txt", "stderr.txt"


def start(
    script: Path,
    arguments: Sequence[str],
    cwd: Path,
    folder: Path,
    prepare: Prepare | None = None,
    environment: dict[str, str] | None = None,
    fresh: bool = False,
) -> Started:
    """Start a script of quantlab in `cwd`, its output in files of a `folder`."""
    folder.mkdir(parents=True)
    marker = uuid4().hex
    variables = {**(environment or {}), MARKER: marker}
    if fresh:
        with (folder / OUTPUTS[0]).open("wb") as out, (folder / OUTPUTS[1]).open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                cwd=cwd,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=prepare,
            )
        return Started(
            process.pid, folder, marker, lambda wait: process.wait() if wait else process.poll()
        )
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _run_fork(script, arguments, cwd, folder, prepare, variables)
    return Started(pid, folder, marker, _waiter(pid))


def _run_fork(
    script: Path,
    arguments: Sequence[str],
    cwd: Path,
    folder: Path,
    prepare: Prepare | None,
    variables: dict[str, str],
) -> None:
    """Run a script in this process, a fork, and end it."""
    code = 1
    try:
        os.setsid()
        for descriptor, name in enumerate(OUTPUTS, 1):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(cwd)
        os.environ.update(variables)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
        sys.argv = [str(script), *arguments]
        if prepare:
            prepare()
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _waiter(pid: int) -> Callable[[bool], int | None]:
    """Make a function that returns the exit code of a fork, None while it runs."""
    codes: list[int] = []

    def wait(is_blocking: bool) -> int | None:
        if not codes:
            ended, status = os.waitpid(pid, 0 if is_blocking else os.WNOHANG)
            codes.extend([os.waitstatus_to_exitcode(status)] if ended else [])
        return codes[0] if codes else None

    return wait


def _wait_until(is_true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return str(pid)


def signal_at(moment: int, numbers: Sequence[int], folder: Path) -> Prepare:
    """Have a process signal itself before the `moment`-th time it touches a file of a `folder`.

    Moments in time seldom fall between two renames, these do. Several signals follow each other
    from one such moment to the next.
    """
    waiting = list(numbers)
    n_events = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal n_events
        if event in FILE_EVENTS and any(_is_below(name, folder) for name in arguments[:2]):
            n_events += 1
            if n_events >= moment and waiting:
                os.kill(os.getpid(), waiting.pop(0))

    return lambda: sys.addaudithook(watch)


def count_events(folder: Path, count: Path) -> Prepare:
    """Have a process append a byte to a file each time that it touches one of a `folder`."""
    descriptor = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in FILE_EVENTS and any(_is_below(name, folder) for name in arguments[:2]):
            os.write(descriptor, b".")

    return lambda: sys.addaudithook(watch)


def _is_below(name: object, folder: Path) -> bool:
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    return Path(os.fsdecode(name)).absolute().is_relative_to(folder)
