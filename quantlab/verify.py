"""Check a sweep against its manifest, and a run against its repetition."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantlab.plans.plan import plan_faults, plan_files
from quantlab.records import disk, record, schema
from quantlab.records import manifest as manifests
from quantlab.records.collection import collect, require_directory
from quantlab.records.manifest import from_directory
from quantlab.records.older import common_figures, without_new
from quantlab.records.table import TABLES, results_json, tabulate
from quantlab.sources.hub import pin_ids
from quantlab.sweep.job import add_import_path, build

OUTSIDE = "is outside the sweep: the manifest should not name it, it was not read"
MISSING = "is missing: the manifest lists it"
CHANGED = "has changed: its sha256 is not the one in the manifest"
ABSENT = "absent"  # in place of the value of a missing key
MAX_VALUE_CHARS = 80  # in a sentence
OUTCOME = ("key", "status", "error", "spec", "tensors", "failed", "skipped", "answers")


def find_faults(directory: Path) -> Iterator[str]:
    """Describe each difference between a sweep and its manifest in a sentence.

    Every hash is computed again, every file looked up, every record and results.json validated
    against its schema, and the figures of results.json compared with those of the records, unless
    these have changed already. Raises ValueError when there is no such directory.
    """
    require_directory(directory)
    path = directory / "manifest.json"
    try:
        manifest = _read(path, "manifest")
    except ValueError as reason:
        yield str(reason)
        return
    for name, sha256 in manifest["artefacts"].items():
        yield from _changed(directory, name, sha256)
    yield from _hydra_faults(directory, manifest)
    yield from plan_faults(directory)
    yield from _unlisted(directory, manifest)
    for name in sorted(TABLES - manifest["artefacts"].keys()):
        yield f"{path} does not list {name}: it should"
    try:
        runs, figures = collect(directory)
        table, levels, _ = tabulate(runs, figures, directory)
    except ValueError as reason:
        yield str(reason)
        return
    expected = from_directory(directory, runs, figures, levels)
    run_faults = list(_run_faults(directory, manifest, expected))
    yield from run_faults
    yield from (run.error for run in runs if run.record is None and run.error)
    if not run_faults:
        older = manifest["schema"] < manifests.SCHEMA
        yield from _result_faults(
            directory / "results.json", b"".join(results_json(table, levels)), older
        )


def _read(path: Path, name: str) -> Any:
    """Read JSON that follows the schema of this name; raises ValueError, naming the file."""
    try:
        content = disk.parse_json(disk.read_file(path))
        schema.require(name, content)
    except OSError as reason:
        sweep = any(record.find(path.parent))
        hint = f"quantlab aggregate {path.parent} writes it" if sweep else "this is no sweep"
        raise ValueError(f"{path}: {reason.strerror}; {hint}") from None
    except ValueError as reason:
        raise ValueError(f"{path} does not follow its schema: {reason}") from None
    return content


def _changed(directory: Path, name: str, sha256: str) -> Iterator[str]:
    """Describe the fault of a file that the manifest names, if any."""
    path = directory / name
    if not disk.is_inside(path, directory):
        yield f"{path} {OUTSIDE}"
    elif not path.exists():
        yield f"{path} {MISSING}"
    elif not (path.is_file() and disk.digest(path) == sha256):
        yield f"{path} {CHANGED}"


def _hydra_faults(directory: Path, manifest: Any) -> Iterator[str]:
    """Describe the faults of Hydra's files, but for runs whose whole directory is missing.

    A manifest of schema 1 does not list it.
    """
    missing = [f"{run['directory']}/" for run in manifest["runs"]]
    missing = [prefix for prefix in missing if not (directory / prefix).exists()]
    for name, sha256 in manifest.get("hydra", {}).items():
        if not name.startswith(tuple(missing)):
            yield from _changed(directory, name, sha256)


def _unlisted(directory: Path, manifest: Any) -> Iterator[str]:
    """Yield the files that a manifest should list and does not; unlisted runs are named apart.

    A manifest of schema 1 lists nothing of what Hydra wrote, and of its runs the records alone.
    """
    runs = {run["directory"] for run in manifest["runs"]}
    listed = {"manifest.json", *TABLES, *manifest["artefacts"], *manifest.get("hydra", {})}
    listed |= {"plan.json", *plan_files(directory)}
    for path in disk.visible_files(directory):
        name = path.relative_to(directory)
        folders = {folder.as_posix() for folder in name.parents}
        of_hydra = name.name == "multirun.yaml" or ".hydra" in name.parts or name.suffix == ".log"
        if manifest["schema"] == 1 and (of_hydra or folders & runs - {"."}):
            continue
        unlisted_run = any((directory / run / record.NAME).exists() for run in folders - runs)
        if name.name != record.NAME and name.as_posix() not in listed and not unlisted_run:
            yield f"{path} is extra: the manifest does not list it"


def _run_faults(directory: Path, manifest: Any, expected: Any) -> Iterator[str]:
    """Describe the differences between a manifest and the one that the records make."""
    listed, recorded = (
        {run["directory"]: run for run in content["runs"]} for content in (manifest, expected)
    )
    if not any("unmeasured" in run for run in listed.values()):  # as older versions wrote them
        for run in recorded.values():
            run.pop("unmeasured", None)
    for name in dict.fromkeys([*listed, *recorded]):
        path = directory / name / record.NAME
        if not disk.is_inside(path, directory):
            yield f"{path} {OUTSIDE}"
        elif name not in recorded:
            yield f"{path} {MISSING}"
        elif name not in listed:
            yield f"{path} is extra: the manifest does not list it"
        elif listed[name]["record_sha256"] != recorded[name]["record_sha256"]:
            yield f"{path} {CHANGED}"
        elif listed[name] != recorded[name]:
            yield f"{directory / 'manifest.json'} does not say of {name} what its record says"
    if listed == recorded:  # else they differ for the reasons above
        if manifest["schema"] < 4:  # which did not list tensors
            expected = {key: value for key, value in expected.items() if key != "tensors"}
        if manifest["schema"] == 1:  # which knew no command of a run that stands alone
            expected = expected | {"command": manifest["command"]}
        for key, written, computed in compare(manifest, manifest | expected):
            yield f"{directory / 'manifest.json'}: {key} is {written}, the records say {computed}"


def _result_faults(path: Path, expected: bytes, older: bool) -> Iterator[str]:
    """Describe the differences between results.json and the records; figures may be newer."""
    try:
        content = _read(path, "results")
    except ValueError as reason:
        yield str(reason)
        return
    from_records = disk.parse_json(expected)
    if older:
        from_records = common_figures(content, from_records)
    for key, written, recorded in compare(content, from_records):
        yield f"{path}: {key} is {written}, the records say {recorded}"


def reproduce(directory: Path) -> tuple[list[str], list[str]]:
    """Repeat the run of a directory; list the figures that differ, and the versions that do.

    The versions are those of packages that figures depend on. Raises ValueError when there is no
    record of this schema, or its config makes no experiment.
    """
    if not (directory / record.NAME).exists():
        raise ValueError(f"{directory} holds no {record.NAME}: name the directory of one run")
    recorded = record.read(directory / record.NAME)
    composed = directory / ".hydra" / "hydra.yaml"
    if composed.exists():
        with disk.reading_config(composed):
            add_import_path(disk.read_yaml(composed).hydra)
    config = recorded["config"]
    pinned = pin_ids(
        config, {key: about["commit"] for key, about in recorded.get("hub", {}).items()}
    )
    build(pinned)  # files that are gone are a mistake, not another outcome
    mode, n_bits = recorded["mode"], recorded["n_bits"]
    repeated = record.run_outcome(lambda: build(pinned).run(), config, mode, n_bits)
    outcome = json.loads(disk.to_json({key: repeated.get(key) for key in OUTCOME}))
    expected = {key: recorded.get(key) for key in OUTCOME}
    outcome, expected = (without_new(side, recorded["schema"]) for side in (outcome, expected))
    differing = [
        f"{key} is {now} now, {before} in the record"
        for key, now, before in compare(outcome, expected)
    ]
    return differing, _changed_versions(recorded["versions"], repeated["versions"])


def _changed_versions(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {then.get(name, 'none')}, now {now.get(name, 'none')}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]


def compare(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the dotted key of each difference of two JSON values, and both values as text."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            dotted = f"{prefix}.{key}" if prefix else key
            yield from compare(a.get(key, ABSENT), b.get(key, ABSENT), dotted)
    elif a != b or type(a) is not type(b):
        yield prefix, _shorten(a), _shorten(b)


def _shorten(value: Any) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}..."
