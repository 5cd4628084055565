"""A sweep in the forms of other tools: a model card, a Parquet file, runs of MLflow.

To add one: a function of the sweep's directory and where to write, and a line in `EXPORTERS`.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from quantlab.records import disk
from quantlab.records.answers import read_rows
from quantlab.records.collection import collect
from quantlab.records.manifest import NAME as MANIFEST
from quantlab.records.manifest import find_source, read_manifest
from quantlab.records.record import NAME as RECORD
from quantlab.records.record import Record, Run
from quantlab.records.rows import Rows
from quantlab.records.table import Aggregated, load, read_aggregate
from quantlab.report.answers import answer_table, find_outputs
from quantlab.report.bar import read_settings
from quantlab.report.choices import FormatResult, find_choices, group_by, stored_rows
from quantlab.report.page import template
from quantlab.report.tables import Table
from quantlab.sources.hub import is_hub_id, parse_id
from quantlab.text import NULL, format_number, require_packages

WORST_TENSORS = 10
LOGGED = ("bits_per_value", "sqnr_db", "rel_err", "max_err", "zeroed")  # figures, by MLflow
LOGGED_ANSWERS = ("kl", "top1_same", "accuracy_drop")
BATCH = 500  # figures that MLflow takes at once: its limit is 1000
MANIFEST_TAG = "quantlab.manifest"  # the sha256 of results.csv, by which a sweep is known again


def export(directory: Path, form: str, output: str | None) -> str:
    """Write a sweep in another form; return what to print.

    Raises ValueError where there is no aggregate, the form takes a package that is missing, or the
    place cannot be written.
    """
    if form not in EXPORTERS:
        raise ValueError(f"--to takes one of {', '.join(EXPORTERS)}, got {form!r}")
    return EXPORTERS[form](directory, output)


def _export_card(directory: Path, output: str | None) -> str:
    """Write Markdown for a model card, by default to the terminal."""
    card = model_card(directory)
    if output is None:
        return card.rstrip("\n")
    disk.write(Path(output), card.encode(errors="backslashreplace"))
    return output


def model_card(directory: Path) -> str:
    """Return a model card: metadata in YAML, then formats, worst tensors, answers, provenance."""
    sweep = read_aggregate(directory)
    settings = read_settings(directory)
    rows = settings.judged(sweep.rows)
    choices = find_choices(rows, sweep.levels)
    results = [result for choice in choices for result in choice.formats]
    manifest = read_manifest(directory) or {}
    answers = find_outputs(settings.judged(read_rows(sweep)))
    return template("card.md.j2").render(
        metadata=yaml.safe_dump(_card_metadata(directory), sort_keys=False),
        formats=_format_table(results),
        types=_type_table(stored_rows(rows, sweep.levels)),
        worst=_worst_table(results),
        answers=answer_table(answers, settings.texts) if answers else Table((), ()),
        command=manifest.get("command") or NULL,
        provenance=list(_provenance(sweep, manifest)),
    )


def _card_metadata(directory: Path) -> dict[str, Any]:
    """Return what the hub reads of a card; the base model is known where it came from the hub."""
    metadata: dict[str, Any] = {"tags": ["quantlab", "quantization"]}
    source = find_source(directory)
    return metadata | ({"base_model": parse_id(source)[0]} if is_hub_id(source) else {})


def _format_table(results: Sequence[FormatResult]) -> Table:
    """Lay out a row a format, the cheapest first."""
    heads = ("format", "tensors", "bits per value", "SQNR, dB: median", "least", "worst tensor")
    groups = group_by(results, lambda result: result.spec).values()
    ordered = sorted(groups, key=_mean_bits)
    return Table(heads, [_format_cells(group) for group in ordered])


def _format_cells(group: Sequence[FormatResult]) -> tuple[str, ...]:
    worst = min(group, key=lambda result: result.sqnr_db)
    middle = median(result.sqnr_db for result in group)
    return (
        group[0].name,
        str(len(group)),
        format_number(_mean_bits(group), ".4g"),
        _decibels(middle),
        _decibels(worst.sqnr_db),
        str(worst.row["tensor"]),
    )


def _mean_bits(group: Sequence[FormatResult]) -> float:
    """Return the bits per value of all tensors of one format together."""
    sizes = [result.row["n_elements"] for result in group]
    return sum(r.bits * size for r, size in zip(group, sizes, strict=True)) / sum(sizes)


def _decibels(sqnr_db: float) -> str:
    return "exact" if sqnr_db == float("inf") else format_number(sqnr_db, ".2f")


def _type_table(files: Sequence[Any]) -> Table:
    """Lay out the types that quantized files store their tensors in."""
    rows = [(file.name, dtype, str(n)) for file in files for dtype, n in file.types]
    return Table(("file", "stored as", "tensors"), rows)


def _worst_table(results: Sequence[FormatResult]) -> Table:
    heads = ("tensor", "format", "bits per value", "SQNR, dB", "become 0")
    lossy = [result for result in results if result.row["max_err"]]
    worst = sorted(lossy, key=lambda result: result.sqnr_db)[:WORST_TENSORS]
    rows = [
        (
            str(r.row["tensor"]),
            str(r.row.get("stored_dtype") or r.name),
            format_number(r.bits, ".4g"),
            _decibels(r.sqnr_db),
            format_number(r.row["zeroed"], ".1%"),
        )
        for r in worst
    ]
    return Table(heads, rows)


def _provenance(sweep: Aggregated, manifest: Mapping[str, Any]) -> Iterator[str]:
    environment = manifest.get("environment", {})
    for key, commits in manifest.get("hub", {}).items():
        for about in commits:
            hashes = ", ".join(f"{name} sha256 {sha}" for name, sha in about["files"].items())
            yield f"{key} at commit {about['commit']}: {hashes}"
    yield f"{len(sweep.tensors)} tensors, each with its sha256 in {MANIFEST}"
    yield f"results.csv sha256 {sweep.artefacts['results.csv']}"
    yield f"quantlab {environment.get('quantlab', NULL)}, NumPy {environment.get('numpy', NULL)}"


def _export_parquet(directory: Path, output: str | None) -> str:
    """Write the table of `quantlab.load`, with the manifest as metadata of the file."""
    require_packages(["pyarrow"], "Parquet")
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    table = pyarrow.Table.from_pandas(load(directory), preserve_index=False)
    manifest = disk.to_json(read_manifest(directory))
    metadata = {**(table.schema.metadata or {}), b"quantlab": manifest}
    path = output or f"{directory.resolve().name}.parquet"
    with disk.publish_together([Path(path)]) as (draft,):
        parquet.write_table(table.replace_schema_metadata(metadata), draft)
    return path


def _export_mlflow(directory: Path, output: str | None) -> str:
    """Log a sweep as a run of MLflow with a run below it for each of its own."""
    # Nobody who logs a sweep has asked for it, and without a network it takes a minute.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    require_packages(["mlflow"], "MLflow")
    mlflow = import_module("mlflow")
    sweep = read_aggregate(directory)
    try:
        client = mlflow.MlflowClient(tracking_uri=output)
        return _log_sweep(client, sweep, directory)
    except mlflow.exceptions.MlflowException as reason:
        place, text = output or "MLFLOW_TRACKING_URI", " ".join(str(reason).split())
        raise ValueError(f"MLflow does not take it at {place}: {text}") from None


def _log_sweep(client: Any, sweep: Aggregated, directory: Path) -> str:
    name, digest = directory.resolve().name, sweep.artefacts["results.csv"]
    experiment = client.get_experiment_by_name("quantlab")
    number = experiment.experiment_id if experiment else client.create_experiment("quantlab")
    logged = client.search_runs([number], f"tags.`{MANIFEST_TAG}` = '{digest}'", max_results=1)
    if logged:
        return f"{name} is logged already, as run {logged[0].info.run_id}"
    manifest = read_manifest(directory) or {}
    tags = {"mlflow.runName": name, "mlflow.note.content": str(manifest.get("command"))}
    parent = client.create_run(number, tags=tags).info.run_id
    collected, rows = collect(directory)
    runs = [run for run in collected if run.record]
    try:
        for run in runs:
            _log_run(client, number, parent, run, rows, directory)
        for artefact in [*sweep.artefacts, MANIFEST]:
            folder = str(Path(artefact).parent)
            place = None if folder == "." else folder
            client.log_artifact(parent, str(directory / artefact), place)
    except Exception:
        client.set_terminated(parent, "FAILED")
        raise
    client.set_tag(parent, MANIFEST_TAG, digest)  # last: one that broke off is no whole sweep
    client.set_terminated(parent)
    return f"{len(runs)} runs of {name} are logged, below run {parent}"


def _log_run(
    client: Any, experiment: str, parent: str, run: Run, rows: Rows, directory: Path
) -> None:
    content: Record = run.record or {}
    started = round(datetime.fromisoformat(content["started"]).timestamp() * 1000)
    tags = {
        "mlflow.runName": run.directory,
        "mlflow.parentRunId": parent,
        "quantlab.key": content["key"],
    }
    entities = import_module("mlflow.entities")
    run_id = client.create_run(experiment, start_time=started, tags=tags).info.run_id
    figures = [entities.Metric(key, value, started, 0) for key, value in _figures(content, rows)]
    params = [entities.Param(key, str(value)) for key, value in _params(content).items()]
    client.log_batch(run_id, params=params)
    for start in range(0, len(figures), BATCH):
        client.log_batch(run_id, metrics=figures[start : start + BATCH])
    client.log_artifact(run_id, str(directory / run.directory / RECORD))
    status = "FINISHED" if content["status"] == "completed" else "FAILED"
    end = started + round(1000 * content["seconds"])
    client.set_terminated(run_id, status, end)


def _params(content: Record) -> dict[str, Any]:
    """Return the settings as typed, and the format by its name."""
    typed = dict(text.lstrip("+~").partition("=")[::2] for text in content["overrides"])
    spec = content["spec"] or {}
    return {"dist": content["dist"], **typed, "format": spec.get("name", NULL)}


def _figures(content: Record, rows: Rows) -> Iterator[tuple[str, float]]:
    """Yield figures under names that MLflow takes, such as ``sqnr_db/TENSOR``."""
    named: list[tuple[tuple[str, ...], str, Mapping[str, Any]]]
    named = [(LOGGED, name, rows[row]) for name, row in content["tensors"].items()]
    named += [
        (LOGGED_ANSWERS, answer["output"], answer["figures"])
        for answer in content.get("answers", ())
        if answer["tensor"] is None
    ]
    for keys, name, figures in named:
        for key in keys:
            if figures.get(key) is not None:
                yield re.sub(r"[^\w\-./ ]", "_", f"{key}/{name}"), float(figures[key])


EXPORTERS: dict[str, Callable[[Path, str | None], str]] = {
    "card": _export_card,
    "parquet": _export_parquet,
    "mlflow": _export_mlflow,
}
