"""Where a sweep's figures come from: what ran, with what, and the sha256 of everything."""

import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from quantlab.records import disk, parts, record
from quantlab.records.record import Record, Run

# 3 did not list tensors, 2 stood beside results without storage, 1 had no hashes of Hydra's files
SCHEMA = 4
SIZE = ("dtype", "shape", "n_bytes")  # of a tensor without figures


def manifest(
    origin: Mapping[str, Any], hydra: Mapping[str, str], artefacts: Mapping[str, bytes]
) -> dict[str, Any]:
    """Return the provenance of a sweep: its `origin`, its files, and where this is."""
    return {
        "schema": SCHEMA,
        **origin,
        "hydra": dict(hydra),
        "artefacts": {name: hashlib.sha256(data).hexdigest() for name, data in artefacts.items()},
        "environment": record.versions() | {"platform": platform.platform(), "cpu": _cpu()},
        "git": _git(),
    }


def from_directory(directory: Path, runs: Sequence[Run], levels: Sequence[str]) -> dict[str, Any]:
    """Return what of a manifest depends on the sweep's directory alone."""
    records = [run.record for run in runs if run.record]
    whole = [run.record for run in parts.combined(runs) if run.record]
    missing = parts.missing(runs)
    return {
        "command": _command(directory, records),
        "levels": list(levels),
        "runs": [_describe(run) for run in runs],
        **({"missing": missing} if missing else {}),
        "tensors": list(_tensors(whole)),
        "start": min((each["started"] for each in records), default=None),
        "end": max((_end(each) for each in records), default=None),
    }


def hydra_files(directory: Path) -> dict[str, str]:
    """Return the sha256 of what Hydra wrote: the config of the sweep, those of its runs, logs."""
    paths = [directory / "multirun.yaml", *directory.glob(".hydra/*"), *directory.glob("*.log")]
    for path in directory.rglob(".hydra"):  # also where a run was stopped before its record
        if path.parent != directory:
            paths += disk.visible_files(path.parent)
    return {
        path.relative_to(directory).as_posix(): disk.digest(path)
        for path in sorted(paths)
        if path.is_file() and path.name != record.NAME
    }


def _command(directory: Path, records: Sequence[Record]) -> str | None:
    """Return the command line of the sweep, or of the one run that stands alone."""
    for path in (directory / "multirun.yaml", directory / ".hydra" / "hydra.yaml"):
        if path.exists():  # Hydra's own note of a sweep, or of a run
            return _command_of(OmegaConf.load(path).hydra)
    if len(records) == 1:
        return shlex.join(["python", "run.py", *records[0]["overrides"]])
    return None


def _command_of(settings: Any) -> str:
    typed: Any = OmegaConf.to_container(settings.overrides)
    flags = ["-m"] if "hydra.mode=MULTIRUN" in typed["hydra"] else []
    hydra = [each for each in typed["hydra"] if not each.startswith("hydra.mode=")]
    program = ["python", "run.py"] if settings.job.name == "run" else ["quantlab", "run"]
    return shlex.join([*program, *flags, *_config_flags(settings), *typed["task"], *hydra])


def _config_flags(settings: Any) -> list[str]:
    """Return the flags that chose another config than ours."""
    name, sources = settings.job.config_name, settings.runtime.config_sources
    named = [] if name == "config" else ["--config-name", name]
    added = [each.path for each in sources if each.provider == "command-line"]
    return named + [flag for path in added for flag in ("--config-dir", path)]


def _describe(run: Run) -> dict[str, Any]:
    return {
        "directory": run.directory,
        "key": run.record and run.record["key"],
        "status": run.record["status"] if run.record else "unreadable",
        "error": run.error,
        "record_sha256": run.sha256,
    }


def _tensors(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Yield each tensor of the sweep, in the order of its source; see `UNKNOWN`.

    Tensors of one name that differ, as those of two seeds do, are tensors of their own.
    """
    measured: dict[tuple[str, str], dict[str, Any]] = {}
    for one in records:
        for name, each in one["identities"].items():
            measured.setdefault((one["dist"], name), {}).setdefault(each["sha256"], each)
    seen = set()
    for one in records:
        without = _unmeasured(one)
        for name in _in_order(one, without):
            key = one["dist"], name
            if key not in seen:
                seen.add(key)
                found = measured[key].values() if key in measured else [without[name]]
                yield from ({"dist": one["dist"], "name": name, **each} for each in found)


def _unmeasured(one: Record) -> dict[str, dict[str, Any]]:
    """Describe the tensors without figures."""
    reasons = {**one["skipped"], **one["failed"]}
    return {
        name: {**{key: tensor[key] for key in SIZE}, "sha256": None, "reason": reasons[name]}
        for name, tensor in one["unmeasured"].items()
    }


def _in_order(one: Record, without: Mapping[str, Any]) -> list[str]:
    """Return the names of a record's tensors in the order of their source."""
    names = list(one["identities"])
    for name in without:
        places = one["unmeasured"].get(name, {})
        names.insert(places.get("place", len(names)), name)
    return names


def _end(one: Record) -> str:
    started = datetime.fromisoformat(one["started"])
    return (started + timedelta(seconds=one["seconds"])).isoformat()


def _cpu() -> str:
    """Return the processor's name and how many of them there are."""
    name = platform.processor()
    with_names = Path("/proc/cpuinfo")  # Linux, where platform has no name to give
    if with_names.exists():
        lines = with_names.read_text().splitlines()
        name = next((ln.partition(": ")[2] for ln in lines if ln.startswith("model name")), name)
    return f"{os.cpu_count()} x {name or platform.machine()}"


def _git() -> dict[str, Any] | None:
    """Return the commit of this code and whether files beside the sweeps differ from it.

    An installed copy has none, also where its environment stands inside some other repository.
    """
    if _git_output("ls-files", "--error-unmatch", __file__) is None:
        return None
    changes = _git_output("status", "--porcelain", "--", ":(top)", ":(top,exclude)multirun")
    return {"commit": _git_output("rev-parse", "HEAD"), "dirty": bool(changes)}


def _git_output(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
