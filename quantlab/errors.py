"""Mistakes of a person, reported in one sentence instead of a traceback."""

import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from quantlab import interrupt
from quantlab.sources.file import SUFFIXES

QUOTED = """"key='a value'\""""
USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)
LAUNCHERS = {  # the package of each
    "joblib": "hydra-joblib-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
}
NESTED = {
    "dist": tuple(dict.fromkeys(f"file/{each}" for each in SUFFIXES.values())),
    "mode": ("mx/...", "nv/fp4", "ggml/...", "file/gguf", "file/safetensors", "file/onnx"),
}
OF_FILES = "add mode=file/gguf, mode=file/safetensors or mode=file/onnx, which have it"
DIVIDED = "the tensors of a file alone are divided into parts, those of a dist=file/..."
AMBIGUOUS = "Ambiguous value for argument "
INTERRUPTED = 130  # the exit code of what Ctrl-C ended, as shells have it


class UnfinishedError(Exception):
    """A sweep that was interrupted, or a run of which failed; the message says how to go on."""

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        self.exit_code = INTERRUPTED if interrupted else 1


@contextmanager
def report_user_errors(exit_code: int = 1) -> Iterator[None]:
    """End the program on an error: one sentence for a mistake, a traceback for a bug of ours.

    SystemExit also leaves a Hydra callback, where any other exception becomes a warning. A terminal
    that lacks a character shows a question mark: that is no reason to fail.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    except UnfinishedError as error:
        print(f"quantlab: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except (Exception, KeyboardInterrupt) as error:
        if interrupt.requested.is_set() or isinstance(error, KeyboardInterrupt):
            print("quantlab: interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        if isinstance(error, BrokenPipeError):  # such as that of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(exit_code) from None
        if isinstance(error, USER_ERRORS):
            print(f"quantlab: {error_sentence(error)}", file=sys.stderr)
        else:
            traceback.print_exc()
        raise SystemExit(exit_code) from None


def error_sentence(mistake: BaseException) -> str:
    """Return what was wrong, where, and what to do, in one line."""
    if isinstance(mistake, MissingConfigException) and mistake.options:
        file = str(mistake.missing_cfg_file)
        ours = not file.startswith("hydra/")  # our groups have no slash, their options may
        group, _, option = file.partition("/") if ours else file.rpartition("/")
        if not ours and option in LAUNCHERS:
            return f"{group}={option} is not installed: pip install {LAUNCHERS[option]}"
        return f"{group}={option} does not exist: {options_hint(group, mistake.options)}"
    if isinstance(mistake, MissingMandatoryValue):
        return f"{mistake.full_key} is not set: add {mistake.full_key}=..."
    cause = mistake.__cause__
    if isinstance(mistake, ConfigAttributeError | ConfigKeyError):
        return f"{mistake.full_key} is an unknown key: {_known_keys(mistake)}"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        typed = str(mistake).rpartition("+")[2]  # Hydra ends on how to force it: +key=value
        hints = {"mode.path": OF_FILES, "dist.part": DIVIDED, "dist.parts": DIVIDED}
        hint = hints.get(typed.partition("=")[0]) or _known_keys(cause)
        return f"{typed} sets an unknown key: {hint}"
    if isinstance(mistake, InstantiationException) and cause:
        return error_sentence(cause)
    if isinstance(mistake, OverrideParseException):
        if "=" not in mistake.override:
            return f"{mistake.override} is no setting: write {mistake.override}=VALUE"
        why = " ".join(str(mistake).split("\n")[0].split())
        return f"{mistake.override}: {why}; a value with such a character takes quotes: {QUOTED}"
    if isinstance(mistake, KeyboardInterrupt):
        return "interrupted"
    if isinstance(mistake, OSError) and mistake.strerror:
        return f"{mistake.filename}: {mistake.strerror}" if mistake.filename else mistake.strerror
    text = " ".join(str(mistake).split())
    if not isinstance(mistake, USER_ERRORS):
        return f"{type(mistake).__name__}: {text}"
    if text.startswith(AMBIGUOUS):
        return f"{text.removeprefix(AMBIGUOUS).split()[0].strip(chr(39))} is a sweep: add -m"
    return text


def options_hint(group: str, options: Sequence[str]) -> str:
    """Return the options of a config group, those of groups below it included."""
    nested = NESTED.get(group, ())
    return f"choose one of {', '.join([*options, *nested])}"


def _known_keys(cause: ConfigAttributeError | ConfigKeyError) -> str:
    nodes = cause.parent_node.keys() if cause.parent_node else ()
    known = sorted(str(key) for key in nodes if key not in ("hydra", "_target_"))
    return f"choose one of {', '.join(known)}" if known else "this choice has none to set"
