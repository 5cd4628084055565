"""Mistakes of a person, reported in one sentence instead of a traceback."""

import io
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

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
from quantlab.conf import option_names
from quantlab.sources.file import SUFFIXES
from quantlab.text import as_setting

QUOTED = """"key='a value'\""""
USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)
LAUNCHERS = {  # the package of each
    "joblib": "hydra-joblib-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
}
FILE_GROUPS = {"dist": "a file", "mode": "a quantized file"}
MAX_NESTED_OPTIONS = 5  # of a folder that a sentence lists by name
DIVIDED = "the tensors of a file alone are divided into parts, those of a dist=file/..."
AMBIGUOUS = "Ambiguous value for argument "


class UnfinishedError(Exception):
    """A sweep that was interrupted, or a run of which failed; the message says how to go on."""

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        self.exit_code = interrupt.EXIT_CODE if interrupted else 1


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
            print(interrupt.MESSAGE, file=sys.stderr)
            raise SystemExit(interrupt.EXIT_CODE) from None
        if isinstance(error, BrokenPipeError):  # such as that of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(exit_code) from None
        if isinstance(error, USER_ERRORS):
            print(f"quantlab: {error_sentence(error)}", file=sys.stderr)
        else:
            traceback.print_exc()
        raise SystemExit(exit_code) from None


def error_sentence(error: BaseException) -> str:
    """Describe in one line what was wrong, where, and what to do."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        return _describe_missing_option(str(error.missing_cfg_file), error.options)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set: add {error.full_key}=..."
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return f"{error.full_key} is an unknown key: {_list_keys(error)}"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        typed = str(error).rpartition("+")[2]  # Hydra ends on how to force it: +key=value
        if cause.full_key == "model":
            return f"{typed} takes a model: add model=onnx model.inputs=FILE.npz"
        return f"{typed} sets an unknown key: {_suggest_option(typed) or _list_keys(cause)}"
    if isinstance(error, InstantiationException) and cause:
        return error_sentence(cause)
    if isinstance(error, OverrideParseException):
        return _describe_override(error.override, str(error))
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if not isinstance(error, USER_ERRORS):
        return f"{type(error).__name__}: {text}"
    if text.startswith(AMBIGUOUS):
        return f"{text.removeprefix(AMBIGUOUS).split()[0].strip(chr(39))} is a sweep: add -m"
    return text


def options_hint(group: str, options: Sequence[str]) -> str:
    """List the options of a config group, and those of groups below it, as ``mx/...`` if many."""
    nested = [PurePosixPath(option) for option in option_names(group) if "/" in option]
    sizes = Counter(path.parent for path in nested)
    is_short = {folder: size <= MAX_NESTED_OPTIONS for folder, size in sizes.items()}
    listed = [path if is_short[path.parent] else path.parent / "..." for path in nested]
    return f"choose one of {', '.join(map(str, dict.fromkeys([*options, *listed])))}"


def _describe_missing_option(file: str, options: Sequence[str]) -> str:
    is_hydra = file.startswith("hydra/")  # its groups have slashes, of ours the options
    group, _, option = file.rpartition("/") if is_hydra else file.partition("/")
    if group in FILE_GROUPS and (hint := _suggest_file(option, group)):
        return f"{group}={option} does not exist: {hint}"
    if is_hydra and option in LAUNCHERS:
        return f"{group}={option} is not installed: pip install {LAUNCHERS[option]}"
    return f"{group}={option} does not exist: {options_hint(group, options)}"


def _describe_override(override: str, message: str) -> str:
    if "=" not in override:
        hint = _suggest_file(override) or f"write {override}=VALUE"
        return f"{override} is no setting: {hint}"
    reason = " ".join(message.split("\n")[0].split())
    return f"{override}: {reason}; a value with such a character takes quotes: {QUOTED}"


def _suggest_option(typed: str) -> str | None:
    """Find the option whose settings a typed override may have meant."""
    key, _, value = typed.partition("=")
    if key in ("dist.part", "dist.parts"):
        return DIVIDED
    if key not in ("dist.path", "mode.path"):
        return None
    group = key.partition(".")[0]
    files = [f"{group}={name}" for name in option_names(group) if name.startswith("file/")]
    of_files = f"add {', '.join(files[:-1])} or {files[-1]}, which have it"
    return (_suggest_file(value) if group == "dist" else None) or of_files


def _suggest_file(path: str, group: str = "dist") -> str | None:
    """Format the overrides that measure a file of tensors; None if its suffix is of no such."""
    path = path.strip("'\"")
    option = f"file/{SUFFIXES.get(Path(path).suffix)}"
    typed = as_setting(f"{group}.path", path)
    setting = f'"{typed}"' if "'" in typed else typed
    known = option in option_names(group)
    return f"to measure {FILE_GROUPS[group]}: {group}={option} {setting}" if known else None


def _list_keys(error: ConfigAttributeError | ConfigKeyError) -> str:
    nodes = error.parent_node.keys() if error.parent_node else ()
    keys = sorted(str(key) for key in nodes if key not in ("hydra", "_target_"))
    return f"choose one of {', '.join(keys)}" if keys else "this choice has none to set"
