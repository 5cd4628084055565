"""Whether a sweep still is what its manifest says, and whether a run comes out again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from quantlab import aggregate, record, schema
from quantlab.job import build

ABSENT = "absent"  # what stands where a key is missing
LONGEST = 80  # characters of a value that a sentence has room for
OUTCOME = ("key", "status", "error", "tensors", "failed", "skipped")


def faults(directory: Path) -> Iterator[str]:
    """Yield, a sentence each, what of a sweep is not as its manifest says; nothing when intact.

    Every hash is computed again, every record and results.json held against its schema, and the
    figures of results.json against those of the records.
    """
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        schema.require("manifest", manifest)
    except OSError as reason:
        yield f"{path}: {reason.strerror}; python -m quantlab aggregate {directory} writes it"
        return
    except ValueError as reason:
        yield f"{path} is no manifest: {reason}"
        return
    hashes = {f"{run['directory']}/{record.NAME}": run["record_sha256"] for run in manifest["runs"]}
    for name, sha256 in (hashes | manifest["artefacts"]).items():
        yield from _changed(directory, name, sha256)
    for extra in sorted(record.find(directory)):
        if extra.relative_to(directory).as_posix() not in hashes:
            yield f"{extra} is extra: the manifest does not list it"
    yield from _untrue(directory)


def _changed(directory: Path, name: str, sha256: str | None) -> Iterator[str]:
    """Yield what is wrong with a file that the manifest names."""
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        yield f"{path} is outside the sweep: the manifest should not name it, it was not read"
    elif not path.exists():
        yield f"{path} is missing: the manifest lists it"
    elif sha256 and not (path.is_file() and record.digest(path) == sha256):
        yield f"{path} has changed: its sha256 is not the one in the manifest"


def _untrue(directory: Path) -> Iterator[str]:
    """Yield what results.json says that is not so by the records, and records that are none."""
    path = directory / "results.json"
    try:
        results = json.loads(path.read_bytes())
        schema.require("results", results)
        runs = aggregate.collect(directory)
        truth = aggregate.nest(*aggregate.tabulate(runs, directory))
    except OSError:
        return  # it is missing, which is said already
    except ValueError as reason:
        yield f"{path}: {reason}"
        return
    yield from (run.error for run in runs if run.record is None and run.error)
    for where, said, so in differences(results, json.loads(record.to_json(truth))):
        yield f"{path}: {where} is {said}, the records say {so}"


def reproduce(directory: Path) -> tuple[record.Record, list[str]]:
    """Run the config of a run directory again, and return its record and what comes out otherwise.

    Raises ValueError when there is no record of this schema, or its config makes no experiment.
    """
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
