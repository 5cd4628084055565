"""The record of one run: what was asked, what came out, kept whole or not at all."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import quantlab
from quantlab.experiment import Outcome

SCHEMA = 2
NAME = "record.json"
WITHOUT_EFFECT = {"threads", "resume"}  # settings that change no figure
KEYS = {
    "schema", "key", "status", "error", "dist", "mode", "n_bits", "job", "overrides", "config",
    "tensors", "failed", "skipped", "versions", "started", "seconds",
}  # fmt: skip

Record = dict[str, Any]


def keep(
    directory: Path, work: Callable[[], Outcome], config: dict[str, Any], **asked: Any
) -> Record:
    """Do the work of a run and write its record, also when the work fails in part or whole.

    `config` is the resolved config in plain containers; `asked` says which run this is:
    ``dist, mode, n_bits, job, overrides``.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    outcome, error = Outcome(), None
    try:
        outcome = work()
        error = _failures(outcome)
    except ValueError as reason:
        error = str(reason)
    except Exception as reason:  # one failing combination must cost a sweep that one alone
        error = f"{type(reason).__name__}: {reason}"
    record = {
        "schema": SCHEMA,
        "key": run_key(config, [tensor["sha256"] for tensor in outcome.tensors.values()]),
        "status": "failed" if error else "completed",
        "error": error,
        **asked,
        "config": config,
        "tensors": outcome.tensors,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
        "versions": versions(),
        "started": started.isoformat(),
        "seconds": time.perf_counter() - clock,
    }
    write(directory / NAME, to_json(record))
    return record


def _failures(outcome: Outcome) -> str | None:
    failed, n = len(outcome.failed), len(outcome.failed) + len(outcome.tensors)
    if not failed:
        return None
    reasons = "; ".join(outcome.failed.values())
    return reasons if n == 1 else f"{failed} of {n} tensors failed: {reasons}"


def run_key(config: dict[str, Any], tensor_hashes: list[str]) -> str:
    """Return the sha256 of what a run's result depends on: its settings and its tensors."""
    settings = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    content = json.dumps([settings, tensor_hashes], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a figure may depend on."""
    return {
        "quantlab": quantlab.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def to_json(value: Any) -> bytes:
    """Return indented UTF-8 JSON; NaN and Inf, which JSON does not know, raise ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # a file's name need not be Unicode


def write(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name, synced, then renamed over what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read(path: Path) -> Record:
    """Read a record back; raises ValueError, naming the file, when it is not one of this schema."""
    try:
        record = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (OSError, ValueError) as reason:
        raise ValueError(f"{path} is no readable record ({reason})") from None
    if not isinstance(record, dict) or record.keys() != KEYS:
        raise ValueError(f"{path} is no record of a run: its keys are not those of a record")
    if record["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {record['schema']!r}, this quantlab reads {SCHEMA}")
    return record


def find(directory: Path) -> Iterator[Path]:
    """Yield the path of every record below a directory, sorted."""
    yield from sorted(directory.rglob(NAME))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not JSON")
