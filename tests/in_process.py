"""Commands in the process of the tests: a new interpreter takes two seconds to import everything.

What a command changes in a process is put back afterwards. Where a process is the point, such as
for signals, launchers and imports, the tests start one.
"""

import io
import os
import runpy
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from quantlab import conf, interrupt

ROOT = Path(__file__).parents[1]


class Finished(NamedTuple):
    """A command that has ended, as `subprocess.run` returns one."""

    returncode: int
    stdout: str
    stderr: str


def run_app(*arguments, cwd):
    """Run run.py."""
    return _run(ROOT / "run.py", arguments, cwd)


def run_command(*arguments, cwd):
    """Run ``python -m quantlab``."""
    return _run(ROOT / "quantlab" / "__main__.py", arguments, cwd)


def _run(script, arguments, cwd):
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with _restored(), redirect_stdout(stdout), redirect_stderr(stderr):
        os.chdir(cwd)
        sys.argv = [str(script), *map(str, arguments)]
        sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        code = _exit_code(script)
    return Finished(code, *map(_text, (stdout, stderr)))


def _exit_code(script):
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _text(stream):
    stream.flush()
    return stream.buffer.getvalue().decode(errors="replace")


_get_mode = Hydra.get_mode


def _find_mode(hydra, config_name, overrides):
    """Return the mode, for which Hydra composes a whole config: only experiments have one."""
    has_mode = any(text.lstrip("+").startswith(("experiment", "hydra.mode")) for text in overrides)
    return _get_mode(hydra, config_name, overrides) if has_mode else None


@contextmanager
def _restored():
    """Put back what a command changes in its process."""
    where, argv, path, environ = Path.cwd(), sys.argv, list(sys.path), dict(os.environ)
    folders, handler = list(conf.FOLDERS), signal.getsignal(signal.SIGINT)
    terminate = signal.getsignal(signal.SIGTERM)
    modules = set(sys.modules)
    Hydra.get_mode = _find_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            Hydra.get_mode = _get_mode
            os.chdir(where)
            sys.argv, sys.path[:] = argv, path
            os.environ.clear()
            os.environ.update(environ)
            conf.FOLDERS[:] = folders
            signal.signal(signal.SIGINT, handler)
            signal.signal(signal.SIGTERM, terminate)
            interrupt.requested.clear()
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
            _forget_modules(set(sys.modules) - modules)


def _forget_modules(names):
    """Forget modules of a test's own: another test has one of the same name."""
    for name in names:
        file = getattr(sys.modules[name], "__file__", None)
        if file and not file.startswith((str(ROOT), sys.prefix, sys.base_prefix)):
            del sys.modules[name]
