"""Whether a sweep still matches its manifest, and whether a run comes out again."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from quantlab.plans.plan import plan_faults, plan_files
from quantlab.records import disk, record, schema
from quantlab.records import manifest as manifests
from quantlab.records.manifest import from_directory
from quantlab.records.older import OLDEST, common_figures, without_new
from quantlab.records.table import collect, nest, tabulate
from quantlab.sweep.job import add_import_path, build

OUTSIDE = "is outside the sweep: the manifest should not name it, it was not read"
MISSING = "is missing: the manifest lists it"
CHANGED = "has changed: its sha256 is not the one in the manifest"
ABSENT = "absent"  # what stands where a key is missing
LONGEST = 80  # characters of a value that a sentence has room for
TABLES = {"results.json", "results.csv"}
OUTCOME = ("key", "status", "error", "spec", "tensors", "failed", "skipped")


def faults(directory: Path) -> Iterator[str]:
    """Yield, a sentence each, what of a sweep is not as its manifest says; nothing when intact.

    Every hash is computed again, every file looked up, every record and results.json held against
    its schema, and the figures of results.json against those of the records, unless these have
    changed already.
    Raises ValueError when there is no such directory.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory: give the directory of a sweep")
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
        runs = collect(directory)
        table, levels = tabulate(runs, directory)
    except ValueError as reason:
        yield str(reason)
        return
    expected = from_directory(directory, runs, levels)
    run_faults = list(_run_faults(directory, manifest, expected))
    yield from run_faults
    yield from (run.error for run in runs if run.record is None and run.error)
    if not run_faults:
        older = manifest["schema"] < manifests.SCHEMA
        yield from _result_faults(directory / "results.json", nest(table, levels), older)


def _read(path: Path, name: str) -> Any:
    """Read JSON that follows the schema of this name; raises ValueError, naming the file."""
    try:
        content = json.loads(path.read_bytes())
        schema.require(name, content)
    except OSError as reason:
        sweep = any(record.find(path.parent))
        hint = f"quantlab aggregate {path.parent} writes it" if sweep else "this is no sweep"
        raise ValueError(f"{path}: {reason.strerror}; {hint}") from None
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"{path} does not follow its schema: {reason}") from None
    return content


def _changed(directory: Path, name: str, sha256: str) -> Iterator[str]:
    """Yield what is wrong with a file that the manifest names."""
    path = directory / name
    if not disk.is_inside(path, directory):
        yield f"{path} {OUTSIDE}"
    elif not path.exists():
        yield f"{path} {MISSING}"
    elif not (path.is_file() and disk.digest(path) == sha256):
        yield f"{path} {CHANGED}"


def _hydra_faults(directory: Path, manifest: Any) -> Iterator[str]:
    """Yield what is wrong with what Hydra wrote, but for runs whose whole directory is missing.

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
        folders = {each.as_posix() for each in name.parents}
        of_hydra = name.name == "multirun.yaml" or ".hydra" in name.parts or name.suffix == ".log"
        if manifest["schema"] == 1 and (of_hydra or folders & runs - {"."}):
            continue
        unlisted_run = any((directory / each / record.NAME).exists() for each in folders - runs)
        if name.name != record.NAME and name.as_posix() not in listed and not unlisted_run:
            yield f"{path} is extra: the manifest does not list it"


def _run_faults(directory: Path, manifest: Any, expected: Any) -> Iterator[str]:
    """Yield where the runs of a manifest are not those of the records."""
    listed, found = (
        {run["directory"]: run for run in each["runs"]} for each in (manifest, expected)
    )
    for name in dict.fromkeys([*listed, *found]):
        path = directory / name / record.NAME
        if not disk.is_inside(path, directory):
            yield f"{path} {OUTSIDE}"
        elif name not in found:
            yield f"{path} {MISSING}"
        elif name not in listed:
            yield f"{path} is extra: the manifest does not list it"
        elif listed[name]["record_sha256"] != found[name]["record_sha256"]:
            yield f"{path} {CHANGED}"
        elif listed[name] != found[name]:
            yield f"{directory / 'manifest.json'} does not say of {name} what its record says"
    if listed == found:  # else they differ for the reasons above
        if manifest["schema"] < 4:  # which did not list tensors
            expected = {key: value for key, value in expected.items() if key != "tensors"}
        if manifest["schema"] == 1:  # which knew no command of a run that stands alone
            expected = expected | {"command": manifest["command"]}
        for where, one, other in differences(manifest, manifest | expected):
            yield f"{directory / 'manifest.json'}: {where} is {one}, the records say {other}"


def _result_faults(path: Path, expected: Any, older: bool) -> Iterator[str]:
    """Yield what results.json says that is not so by the records; an older one may lack figures."""
    try:
        content = _read(path, "results")
    except ValueError as reason:
        yield str(reason)
        return
    from_records = json.loads(disk.to_json(expected))
    if older:
        from_records = common_figures(content, from_records)
    for where, written, recorded in differences(content, from_records):
        yield f"{path}: {where} is {written}, the records say {recorded}"


def reproduce(directory: Path) -> tuple[list[str], list[str]]:
    """Run the config of a run directory again, and return what comes out otherwise.

    After it the versions that differ, of packages that figures depend on. Raises ValueError when
    there is no record of this schema, or its config makes no experiment.
    """
    if not (directory / record.NAME).exists():
        raise ValueError(f"{directory} holds no {record.NAME}: name the directory of one run")
    one = record.read(directory / record.NAME)
    composed = directory / ".hydra" / "hydra.yaml"
    if composed.exists():
        add_import_path(OmegaConf.load(composed).hydra)
    config = one["config"]
    build(config)  # files that are gone are a mistake, not another outcome
    again = record.run_outcome(lambda: build(config).run(), config, one["mode"], one["n_bits"])
    outcome = json.loads(disk.to_json({key: again[key] for key in OUTCOME}))
    kept = {key: one[key] for key in OUTCOME}
    if one["schema"] == OLDEST:
        outcome, kept = without_new(outcome), without_new(kept)
    differing = [
        f"{where} is {now} now, {before} in the record"
        for where, now, before in differences(outcome, kept)
    ]
    return differing, _changed_versions(one["versions"], again["versions"])


def _changed_versions(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {then.get(name, 'none')}, now {now.get(name, 'none')}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
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
