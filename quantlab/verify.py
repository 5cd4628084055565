"""Whether a sweep still is what its manifest says, and whether a run comes out again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from quantlab import aggregate, record, schema
from quantlab.job import build
from quantlab.manifest import told_by_records

OUTSIDE = "is outside the sweep: the manifest should not name it, it was not read"
MISSING = "is missing: the manifest lists it"
CHANGED = "has changed: its sha256 is not the one in the manifest"
ABSENT = "absent"  # what stands where a key is missing
LONGEST = 80  # characters of a value that a sentence has room for
TABLES = {"results.json", "results.csv"}
OUTCOME = ("key", "status", "error", "tensors", "failed", "skipped")


def faults(directory: Path) -> Iterator[str]:
    """Yield, a sentence each, what of a sweep is not as its manifest says; nothing when intact.

    Every hash is computed again, every record and results.json held against its schema, and the
    figures of results.json against those of the records, unless these have changed already.
    Raises ValueError when there is no such directory.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory: name that of a sweep")
    path = directory / "manifest.json"
    try:
        manifest = _read(path, "manifest")
    except ValueError as reason:
        yield str(reason)
        return
    for name, sha256 in manifest["artefacts"].items():
        yield from _changed(directory, name, sha256)
    for name in sorted(TABLES - manifest["artefacts"].keys()):
        yield f"{path} does not list {name}: it should"
    try:
        runs = aggregate.collect(directory)
        table, levels = aggregate.tabulate(runs, directory)
    except ValueError as reason:
        yield str(reason)
        return
    untold = list(_untold(directory, manifest, told_by_records(directory, runs, levels)))
    yield from untold
    yield from (run.error for run in runs if run.record is None and run.error)
    if not untold:
        yield from _untrue(directory / "results.json", aggregate.nest(table, levels))


def _read(path: Path, name: str) -> Any:
    """Read JSON that follows the schema of this name; raises ValueError, naming the file."""
    try:
        content = json.loads(path.read_bytes())
        schema.require(name, content)
    except OSError as reason:
        hint = f"python -m quantlab aggregate {path.parent} writes it"
        raise ValueError(f"{path}: {reason.strerror}; {hint}") from None
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"{path} does not follow its schema: {reason}") from None
    return content


def _changed(directory: Path, name: str, sha256: str) -> Iterator[str]:
    """Yield what is wrong with a file that the manifest names."""
    path = directory / name
    if not record.is_inside(path, directory):
        yield f"{path} {OUTSIDE}"
    elif not path.exists():
        yield f"{path} {MISSING}"
    elif not (path.is_file() and record.digest(path) == sha256):
        yield f"{path} {CHANGED}"


def _untold(directory: Path, manifest: Any, truth: Any) -> Iterator[str]:
    """Yield where a manifest is not what the records tell."""
    said, so = ({run["directory"]: run for run in each["runs"]} for each in (manifest, truth))
    for name in dict.fromkeys([*said, *so]):
        path = directory / name / record.NAME
        if not record.is_inside(path, directory):
            yield f"{path} {OUTSIDE}"
        elif name not in so:
            yield f"{path} {MISSING}"
        elif name not in said:
            yield f"{path} is extra: the manifest does not list it"
        elif said[name]["record_sha256"] != so[name]["record_sha256"]:
            yield f"{path} {CHANGED}"
        elif said[name] != so[name]:
            yield f"{directory / 'manifest.json'} does not say of {name} what its record says"
    if said == so:  # else they differ for the reasons above
        for where, one, other in differences(manifest, manifest | truth):
            yield f"{directory / 'manifest.json'}: {where} is {one}, the records say {other}"


def _untrue(path: Path, truth: Any) -> Iterator[str]:
    """Yield what results.json says that is not so by the records."""
    try:
        results = _read(path, "results")
    except ValueError as reason:
        yield str(reason)
        return
    for where, said, so in differences(results, json.loads(record.to_json(truth))):
        yield f"{path}: {where} is {said}, the records say {so}"


def reproduce(directory: Path) -> tuple[record.Record, list[str]]:
    """Run the config of a run directory again, and return its record and what comes out otherwise.

    Raises ValueError when there is no record of this schema, or its config makes no experiment.
    """
    if not (directory / record.NAME).exists():
        raise ValueError(f"{directory} holds no {record.NAME}: name the directory of one run")
    one = record.read(directory / record.NAME)
    config = DictConfig(one["config"])
    again = record.perform(lambda: build(config).run(), one["config"])
    outcome = json.loads(record.to_json({key: again[key] for key in OUTCOME}))
    return one, [
        f"{where} is {now} now, {before} in the record"
        for where, now, before in differences(outcome, {key: one[key] for key in OUTCOME})
    ]


def differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each place where two JSON values differ, and what stands there in each."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(
                one.get(key, ABSENT), other.get(key, ABSENT), f"{where}.{key}" if where else key
            )
    elif one != other or type(one) is not type(other):
        yield where, _brief(one), _brief(other)


def _brief(value: Any) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
