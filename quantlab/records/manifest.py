"""The manifest of a sweep: its command, runs, tensors and environment, and every sha256.

It vouches for the other files of an aggregate: a reader takes their bytes from `read_artefact`,
which compares them with it. It is removed before they are replaced and written after them, so that
those of two aggregations are never read as one.
"""

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

from quantlab.records import disk, parts, record, schema
from quantlab.records.record import Record, Run
from quantlab.records.rows import Column, Rows, column_of

# 3 did not list tensors, 2 stood beside results without storage, 1 had no hashes of Hydra's files
SCHEMA = 4
NAME = "manifest.json"
MAX_TABLE_BYTES = 2**34  # a million rows take a sixteenth of it
RUN_CONFIG = ".hydra/config.yaml"
SWEEP_CONFIG = "multirun.yaml"
IDENTITY = "/identity"  # of a row of figures: dtype, shape and sha256 of its tensor
SIZE = ("dtype", "shape", "n_bytes")  # of a tensor without figures


def manifest(
    origin: Mapping[str, Any], hydra: Mapping[str, str], artefacts: Mapping[str, str]
) -> dict[str, Any]:
    """Put a manifest together: the `origin` of a sweep, hashes of its files, its environment."""
    return {
        "schema": SCHEMA,
        **origin,
        "hydra": dict(hydra),
        "artefacts": dict(artefacts),
        "environment": record.versions() | {"platform": platform.platform(), "cpu": _cpu()},
        "git": _git(),
    }


def require_one_sweep(directory: Path, *, begins: bool = False) -> None:
    """Raise ValueError, naming two of them, if a directory holds records of several sweeps.

    It is a sweep itself if it has a config of one, or if one `begins` there.
    """
    folders = {directory}
    for path in record.find(directory):
        folder = path.parent
        while folder not in folders:  # ten thousand runs share what is above them
            folders.add(folder)
            folder = folder.parent
    sweeps = {folder for folder in folders if (folder / SWEEP_CONFIG).exists()}
    if begins:
        sweeps.add(directory)
    if len(sweeps) > 1:
        first, second, *_ = sorted(sweeps)
        raise ValueError(
            f"{directory} would mix several sweeps, {first} and {second} among them: give the "
            "directory of one, with no other inside"
        )


def from_directory(
    directory: Path, runs: Sequence[Run], figures: Rows, levels: Sequence[str]
) -> dict[str, Any]:
    """Describe a sweep by its directory alone: command, levels, runs, tensors, times."""
    records = [run.record for run in runs if run.record]
    whole = [run.record for run in parts.join_parts(runs) if run.record]
    missing = parts.missing_part_advice(runs)
    hub = _hub_commits(records)
    return {
        "command": _command(directory, records),
        "levels": list(levels),
        "runs": [_describe(run) for run in runs],
        **({"missing": missing} if missing else {}),
        **({"hub": hub} if hub else {}),
        "tensors": list(_tensors(whole, column_of(figures, IDENTITY))),
        "start": min((content["started"] for content in records), default=None),
        "end": max((_end(content) for content in records), default=None),
    }


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Read manifest.json, None where there is none; raises ValueError if it cannot be read."""
    path = directory / NAME
    try:
        content: dict[str, Any] = disk.read_json(path)
        schema.require("manifest", content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as reason:
        why = reason.strerror if isinstance(reason, OSError) else reason
        again = f"quantlab aggregate {directory} writes it again"
        raise ValueError(f"{path} cannot be read ({why}): {again}") from None
    return content


def find_source(directory: Path) -> str:
    """Return the path of the file that the first run of a sweep measured, empty without one.

    A sweep that is copied without its runs does not have it.
    """
    manifest = read_manifest(directory) or {"runs": []}
    for run in manifest["runs"][:1]:
        path = directory / run["directory"] / RUN_CONFIG
        if path.is_file():
            source = disk.read_yaml(path, directory).get("dist")
            return str(source.get("path") or "") if isinstance(source, Mapping) else ""
    return ""


def read_artefact_hashes(directory: Path) -> Mapping[str, str] | None:
    """Read the sha256 of each file of an aggregate from manifest.json, None where there is none."""
    manifest = read_manifest(directory)
    return manifest and manifest["artefacts"]


def read_artefact(directory: Path, name: str, hashes: Mapping[str, str] | None) -> bytes:
    """Read a file of an aggregate, whose manifest has these `hashes`.

    Raises ValueError if there is no such file, if its bytes are not those that the manifest vouches
    for, or if there is no manifest beside records: the last aggregation did not finish. Without
    records it is a copy of that file alone, which nothing contradicts.
    """
    path, again = directory / name, f"quantlab aggregate {directory}"
    try:
        content = disk.read_file(path, max_bytes=MAX_TABLE_BYTES)  # once, to compare and to parse
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {again} writes it") from None
    except OSError as reason:
        raise ValueError(f"{path} cannot be read: {reason.strerror}") from None
    if hashes is None:
        if any(record.find(directory)):
            raise ValueError(f"{directory}: the last aggregation did not finish: {again}")
    elif name not in hashes:
        raise ValueError(f"{path} is not in {NAME}, it is of another aggregation: {again}")
    elif hashlib.sha256(content).hexdigest() != hashes[name]:
        raise ValueError(f"{path} does not match {NAME}, something else has written it: {again}")
    return content


def hydra_files(directory: Path) -> dict[str, str]:
    """Hash what Hydra wrote: the config of the sweep, those of its runs, logs."""
    paths = [directory / SWEEP_CONFIG, *directory.glob(".hydra/*"), *directory.glob("*.log")]
    for path in directory.rglob(".hydra"):  # also where a run was stopped before its record
        if path.parent != directory:
            paths += disk.visible_files(path.parent)
    return {
        path.relative_to(directory).as_posix(): disk.digest(path)
        for path in sorted(paths)
        if path.is_file() and path.name != record.NAME
    }


def _command(directory: Path, records: Sequence[Record]) -> str | None:
    """Find the command line of a sweep, or of a run that stands alone."""
    for path in (directory / SWEEP_CONFIG, directory / ".hydra" / "hydra.yaml"):
        if path.exists():  # as Hydra noted it
            with disk.reading_config(path):
                return _command_of(disk.read_yaml(path, directory).hydra)
    if len(records) == 1:
        return shlex.join(["python", "run.py", *records[0]["overrides"]])
    return None


def _command_of(settings: Any) -> str:
    overrides: Any = OmegaConf.to_container(settings.overrides)
    flags = ["-m"] if "hydra.mode=MULTIRUN" in overrides["hydra"] else []
    hydra = [text for text in overrides["hydra"] if not text.startswith("hydra.mode=")]
    program = ["python", "run.py"] if settings.job.name == "run" else ["quantlab", "run"]
    return shlex.join([*program, *flags, *_config_flags(settings), *overrides["task"], *hydra])


def _config_flags(settings: Any) -> list[str]:
    """Reconstruct the flags that chose another config than ours."""
    name, sources = settings.job.config_name, settings.runtime.config_sources
    named = [] if name == "config" else ["--config-name", name]
    folders = [source.path for source in sources if source.provider == "command-line"]
    return named + [flag for path in folders for flag in ("--config-dir", path)]


def _describe(run: Run) -> dict[str, Any]:
    return {
        "directory": run.directory,
        "key": run.record and run.record["key"],
        "status": run.record["status"] if run.record else "unreadable",
        "error": run.error,
        "record_sha256": run.sha256,
        **({"unmeasured": [*run.record["failed"]]} if run.record and run.is_incomplete else {}),
    }


def _hub_commits(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """List the commits that each id of the hub was; a branch may have moved between runs."""
    commits: dict[str, list[dict[str, Any]]] = {}
    for content in records:
        for key, commit in content.get("hub", {}).items():
            listed = commits.setdefault(key, [])
            if commit not in listed:
                listed.append(commit)
    return commits


def _tensors(records: Sequence[Record], identities: Column) -> Iterator[dict[str, Any]]:
    """Yield each tensor of the sweep, in the order of its source.

    Tensors of one name that differ, as those of two seeds do, are tensors of their own.
    """
    measured: dict[tuple[str, str], dict[str | None, Any]] = {}
    for content in records:
        for name, row in content["tensors"].items():
            dtype, shape, sha256 = identities[row]
            variants = measured.setdefault((content["dist"], name), {})
            if sha256 not in variants:
                variants[sha256] = {"dtype": dtype, "shape": [*shape], "sha256": sha256}
    seen = set()
    for content in records:
        without = _unmeasured(content)
        for name in _in_order(content, without):
            key = content["dist"], name
            if key not in seen:
                seen.add(key)
                variants = measured.get(key) or {None: without[name]}
                about = {"dist": content["dist"], "name": name}
                yield from (about | identity for identity in variants.values())


def _unmeasured(content: Record) -> dict[str, dict[str, Any]]:
    """Describe the tensors without figures."""
    reasons = {**content["skipped"], **content["failed"]}
    return {
        name: {**{key: tensor[key] for key in SIZE}, "sha256": None, "reason": reasons[name]}
        for name, tensor in content["unmeasured"].items()
    }


def _in_order(content: Record, without: Mapping[str, Any]) -> list[str]:
    """Order the names of a record's tensors as their source does."""
    names = list(content["tensors"])
    for name in without:
        places = content["unmeasured"].get(name, {})
        names.insert(places.get("place", len(names)), name)
    return names


def _end(content: Record) -> str:
    started = datetime.fromisoformat(content["started"])
    return (started + timedelta(seconds=content["seconds"])).isoformat()


def _cpu() -> str:
    """Name the processor, and how many of them there are."""
    name = platform.processor()
    with_names = Path("/proc/cpuinfo")  # Linux, where platform has no name to give
    if with_names.exists():
        lines = with_names.read_text().splitlines()
        name = next((ln.partition(": ")[2] for ln in lines if ln.startswith("model name")), name)
    return f"{os.cpu_count()} x {name or platform.machine()}"


def _git() -> dict[str, Any] | None:
    """Find the commit of this code, and whether files beside the sweeps differ from it.

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
