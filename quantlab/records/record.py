"""The record of one run: its config, its outcome, written whole or not at all."""

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

import quantlab
from quantlab import interrupt
from quantlab.conf import changed_settings, load_option
from quantlab.formats.format import MODE_OPTIONS, FormatSpec
from quantlab.records import disk, schema
from quantlab.records.older import OLDEST, oldest_config, upgraded, with_current_names
from quantlab.sources import hub
from quantlab.sources.file import file_sha256
from quantlab.stats.result import Count, Figures, Result, Sha256
from quantlab.text import first_few, printable

# 8 had no worst rows, 6 had the columns of a format and no spec, 5 no sizes of what was not
# measured, 4 no stored formats, 3 one scale a tensor and no storage
SCHEMA = 9
NAME = "record.json"
BAR_PREFIX = "bar_"  # of the columns of results.csv that say by what bar a row is judged
LATER_CRITERIA = (  # have a column where a bar asks for them
    "worst_row_sqnr_db", "coverage", "kl", "top1_same", "accuracy_drop",
)  # fmt: skip
COLUMN_SETTINGS = {"block.size", "block.scale"}  # settings that columns of a format say
WITHOUT_EFFECT = {"threads", "resume", "report", "bar"}  # settings that change no figure
KEY_PARTS = (
    "shape", "dtype", "sha256", "stored_sha256", "importance_sha256", "calibration_sha256",
    "transform_sha256", "input_axis", "inputs_sha256", "rounding_sha256",
)  # fmt: skip
CHANGES = "changes"  # of first answers, as a record has them: a column of no table
OF_CODES = (
    ("measured", "code_entropy"),
    ("params", "qmin"),
    ("params", "qmax"),
)  # where it has any
MAX_SECONDS = 10**9  # of a run: thirty years
MAX_REASONS = 3  # of tensors that could not be measured, in one error
MANIFEST_KEYS = ("dtype", "shape", "sha256")  # of a tensor
CODEC_KEYS = ("stored_dtype", "stored_file", "remark")  # of a tensor that a codec stores

Record = dict[str, Any]  # a RecordFile, brought to today's schema
Row = Mapping[str, Any]  # the figures of one tensor in one run, under their keys


Width = Annotated[int | None, ("minimum", 1), ("maximum", 64)]  # in bits
SHARES = ("rel_err", "coverage", "top1_same", "accuracy_drop")  # criteria of a bar
SETTING = {"type": ["object", "null"]}
THRESHOLD = {"type": ["number", "null"], "minimum": 0, "exclusiveMinimum": True}
BAR = SETTING | {
    "properties": {
        "top_order": {"type": ["boolean", "null"]},
        **{key: THRESHOLD | {"maximum": 1} for key in SHARES},
    },
    "additionalProperties": THRESHOLD,
}
CONFIG = {  # the settings that readers of a record look into
    **{key: {"type": "object"} for key in ("dist", "mode")},
    **dict.fromkeys(("block", "range", "metrics", "rank", "model"), SETTING),
    "report": SETTING | {"properties": {"bar": BAR}},
}


class UnmeasuredTensor(TypedDict):
    """A tensor without figures, as its file stores it: the `place`-th of the file, if known."""

    dtype: str
    shape: list[Count]
    n_bytes: Count
    place: NotRequired[Count]


class FormatJson(TypedDict):
    """A `FormatSpec` as JSON."""

    mode: str
    n_bits: Width
    block: str | None
    block_size: Annotated[int | None, ("minimum", 1)]
    scale_dtype: str | None
    range: str | None
    settings: dict[str, Any]
    name: str


class CoverageJson(TypedDict):
    """How much was compared with a stored file: values of the original, bytes of the file.

    `unpaired` has the values of each selected tensor that was not, the largest first.
    """

    values: Count
    all_values: Count
    bytes: Count
    all_bytes: Count
    unpaired: dict[str, Count]


class ChangeJson(TypedDict):
    """A first answer that changed, places along the last axis, and their probabilities."""

    sample: Count
    row: Count
    before: Count
    after: Count
    p_before: float
    p_after: float


class AnswerJson(TypedDict):
    """An output of a model, with all weights replaced or one `tensor`, beside the original's.

    `rows` are of all `samples`; of `changes` those are listed that the original was surest of. The
    `predicted_kl` of a plan is in bits.
    """

    tensor: str | None
    output: str
    kind: Literal["probabilities", "logits", "values"]
    rows: Count
    samples: Count
    figures: Figures
    changes: list[ChangeJson]
    remark: str | None
    predicted_kl: NotRequired[float]


class HubJson(TypedDict):
    """The commit that an id of the hub was at the time of a run, and the sha256 of its files."""

    commit: str
    files: dict[str, Sha256]


class RecordFile(TypedDict):
    """The record of one run.

    `spec` is null where no format could be made. `job` is which run of its sweep it is, from 0,
    null of a run that stands alone; `config` is the resolved config without Hydra's part; `failed`
    are tensors that could not be measured, `skipped` those that were left out, each with the
    reason; `unmeasured` says how both are stored. `listing` is the sha256 of the names, types,
    shapes and sizes in a file of which a part was measured. `model` identifies
    the model that gave the `answers`; `hub` has the commits that ids of the hub were.
    """

    schema: Literal[3, 4, 5, 6, 7, 8, 9]
    key: Sha256
    status: Literal["completed", "failed"]
    error: str | None
    dist: str
    mode: str
    n_bits: Width
    job: Annotated[int | None, ("minimum", 0)]
    overrides: list[str]
    config: Annotated[dict[str, Any], ("properties", CONFIG)]
    spec: FormatJson | None
    tensors: dict[str, Result]
    failed: dict[str, str]
    skipped: dict[str, str]
    unmeasured: dict[str, UnmeasuredTensor]
    listing: NotRequired[Sha256]
    coverage: NotRequired[CoverageJson]
    model: NotRequired[dict[str, Any]]
    answers: NotRequired[list[AnswerJson]]
    hub: NotRequired[dict[str, HubJson]]
    versions: dict[str, str]
    started: Annotated[str, ("format", "date-time")]
    seconds: Annotated[float, ("minimum", 0), ("maximum", MAX_SECONDS)]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: the result of each tensor, or why it failed or was left out.

    `format` has the columns of results.csv that describe their format; empty if there is none.
    `versions` are of packages that figures depend on beside those of every run; `unmeasured` says
    how tensors without figures are stored in a file. `listing` identifies the list of tensors of
    which a part was measured, None where all are. `coverage` is a `CoverageJson`, None where the
    format is no stored file. `model` identifies the model that gave `answers`, each an
    `AnswerJson`; `fault` is the reason why it gave none.
    """

    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: dict[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    listing: str | None = None
    coverage: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    fault: str | None = None


def run_and_write(
    directory: Path, work: Callable[[], Outcome], config: dict[str, Any], **identity: Any
) -> Record:
    """Run `work` and write the record of its outcome, also if it fails in part or whole.

    `config` is the resolved config in plain containers; `identity` has ``dist, mode, n_bits, job,
    overrides``. Raises OSError if the record cannot be written.
    """
    disk.clear(directory)
    record = {
        "schema": SCHEMA,
        **identity,
        "config": config,
        **run_outcome(work, config, identity["mode"], identity["n_bits"]),
    }
    disk.write(directory / NAME, disk.to_json(record))
    return record


def run_outcome(
    work: Callable[[], Outcome], config: dict[str, Any], mode: str, n_bits: int | None
) -> dict[str, Any]:
    """Run `work` and describe its outcome, as a record does."""
    started, clock = datetime.now(UTC), time.perf_counter()
    outcome, error = Outcome(), None
    try:
        outcome = work()
        error = _failures(outcome, config)
    except ValueError as reason:
        error = str(reason)
    except Exception as reason:  # one failing combination must cost a sweep that one alone
        error = f"{type(reason).__name__}: {reason}"
    interrupt.require_none()  # a run that was cut short is missing, it has not failed
    return {
        "key": outcome_key(config, outcome),
        "status": "failed" if error else "completed",
        "error": error,
        "spec": _spec_json(mode, n_bits, config, outcome.format),
        "tensors": outcome.tensors,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
        "unmeasured": outcome.unmeasured,
        **({"listing": outcome.listing} if outcome.listing else {}),
        **({"coverage": outcome.coverage} if outcome.coverage else {}),
        **({"model": outcome.model, "answers": outcome.answers} if outcome.model else {}),
        **({"hub": files} if (files := _hub_files(config)) else {}),
        "versions": versions() | dict(outcome.versions),
        "started": started.isoformat(),
        "seconds": time.perf_counter() - clock,
    }


def _hub_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the files that the ids in a config were resolved to, each a `HubJson`."""
    located = {key: hub.find_located(key) for key in hub.find_ids(config)}
    return {
        key: {
            "commit": files[0].commit,
            "files": {file.name: file_sha256(file.path) for file in files},
        }
        for key, files in located.items()
        if files
    }


def _failures(outcome: Outcome, config: Mapping[str, Any]) -> str | None:
    """Describe the tensors that could not be measured, and how to leave them out of a file."""
    n_failed, n_tensors = len(outcome.failed), len(outcome.failed) + len(outcome.tensors)
    if not n_failed:
        return outcome.fault
    listed = first_few([*outcome.failed.values()], MAX_REASONS)
    reasons = "; ".join(listed)
    if n_tensors == 1:
        return reasons
    dist = config.get("dist")
    can_exclude = isinstance(dist, Mapping) and "exclude" in dist and outcome.tensors
    hint = f": {_exclude_hint([*outcome.failed])}" if can_exclude else ""
    return f"{n_failed} of {n_tensors} tensors could not be measured ({reasons}){hint}"


def _exclude_hint(names: Sequence[str]) -> str:
    """Write the setting that leaves tensors out.

    >>> _exclude_hint(["a/Const_26:0"])
    "dist.exclude='a/Const_26:0' leaves it out"
    """
    # A question mark matches any character, and needs no quotes of Hydra's.
    patterns = [re.sub(r"[^A-Za-z0-9_./:-]", "?", name) for name in names]
    if len(names) == 1:
        return f"dist.exclude='{patterns[0]}' leaves it out"
    if len(names) > MAX_REASONS:
        return "dist.exclude='[...]' leaves out those that match a pattern"
    return f"dist.exclude='[{','.join(patterns)}]' leaves them out"


def outcome_key(config: dict[str, Any], outcome: Outcome) -> str:
    """Hash what the figures of an outcome depend on."""
    return run_key(config, outcome.tensors, outcome.skipped, outcome.listing, outcome.model)


def run_key(
    config: dict[str, Any],
    tensors: dict[str, dict[str, Any]],
    skipped: dict[str, str],
    listing: str | None = None,
    model: Mapping[str, Any] | None = None,
) -> str:
    """Hash what a run's figures depend on, its settings and its tensors, as a sha256.

    A tensor counts by its name and those of `KEY_PARTS` that it has, a tensor that was left out by
    the reason, a part of a source also by the `listing` of the whole, a model that answers by what
    identifies it. Settings count as the oldest version that had them wrote them: a module that
    moves, or a new group of options, changes no key.
    """
    identities = [
        {"name": name, **{key: tensor[key] for key in KEY_PARTS if key in tensor}}
        for name, tensor in tensors.items()
    ]
    settings = {key: value for key, value in config.items() if has_effect(key)}
    parts = [oldest_config(settings), identities, skipped, *([listing] if listing else [])]
    parts += [dict(model)] if model else []
    content = json.dumps(parts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


def format_spec(
    mode: str, n_bits: int | None, config: Mapping[str, Any], columns: Mapping[str, Any]
) -> FormatSpec:
    """Make the spec of a run's format.

    `mode` is as results call it, `config` that of the run, `columns` those of its format.
    """
    option = MODE_OPTIONS.get(mode, mode)
    settings = changed_settings("mode", option, config.get("mode", {}))
    for group in ("block", "range"):  # schema 3 had neither; a codec has none
        if group in config and columns[group]:
            settings |= changed_settings(group, columns[group], config[group])
    for group in ("transform", "rounding"):
        if name := columns.get(group):
            settings |= {group: name, **changed_settings(group, name, config[group])}
    settings = {key: value for key, value in settings.items() if key not in COLUMN_SETTINGS}
    fixes_width = "n_bits" in (load_option("mode", option) or {})
    return FormatSpec.of(option, n_bits, columns, settings, fixes_width=fixes_width)


def _spec_json(
    mode: str, n_bits: int | None, config: Mapping[str, Any], columns: Mapping[str, Any]
) -> dict[str, Any] | None:
    return format_spec(mode, n_bits, config, columns).to_json() if columns else None


def versions() -> dict[str, str]:
    """List the versions of what every figure may depend on."""
    return {
        "quantlab": quantlab.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def has_effect(key: str) -> bool:
    """Test whether a setting, given by its dotted key or as an override, can change a figure."""
    return re.split(r"[.=]", key.lstrip("+~"), maxsplit=1)[0] not in WITHOUT_EFFECT


def read(path: Path, inside: Path | None = None) -> Record:
    """Read a record, brought to today's schema; `schema` still says which one it was written with.

    No link is followed out of the directory `inside`. Raises ValueError, naming the file, if it is
    no record, or of a schema that cannot be read.
    """
    try:
        record = disk.read_json(path, inside)
    except OSError as reason:
        raise ValueError(f"{path} is no readable record ({reason.strerror})") from None
    if isinstance(record, dict) and isinstance(record.get("schema"), int):
        _require_schema(path, record["schema"])
    try:
        record = _with_spec(upgraded(record))
        schema.require(RecordFile, record)
        _require_consistent(record)
    except ValueError as reason:
        raise ValueError(f"{path} is no record of a run: {reason}") from None
    return record | {"config": with_current_names(record["config"])}


def _with_spec(record: Any) -> Any:
    """Replace the columns of a format, which records had until schema 6, by its spec."""
    try:
        about = record["mode"], record["n_bits"], record["config"], record["format"]
        others = {key: value for key, value in record.items() if key != "format"}
        return others | {"spec": _spec_json(*about)}
    except (AttributeError, KeyError, TypeError, OSError):
        return record  # of today's schema, or its schema says what is wrong with it


def _require_consistent(record: Record) -> None:
    """Raise ValueError if a record that follows its schema contradicts itself."""
    started = datetime.fromisoformat(record["started"])
    try:
        started + timedelta(seconds=record["seconds"])
    except OverflowError:
        raise ValueError(f"it ended after the year {started.year}") from None
    if record["tensors"] and record["spec"] is None:
        raise ValueError("it has tensors, and no spec of their format")
    reasons = {**record["skipped"], **record["failed"]}
    if unexplained := record["unmeasured"].keys() - reasons.keys():
        raise ValueError(f"unmeasured.{min(unexplained)} is neither skipped nor failed")
    for name, tensor in record["tensors"].items():
        _require_consistent_figures(tensor, f"tensors.{printable(name)}")
    for n, answer in enumerate(record.get("answers", [])):
        if answer["tensor"] not in (None, *record["tensors"]):
            raise ValueError(f"answers[{n}].tensor is none of its tensors")


def _require_consistent_figures(tensor: Mapping[str, Any], place: str) -> None:
    for group, key in OF_CODES if tensor["codes"] else ():
        if tensor[group].get(key) is None:
            raise ValueError(f"{place}.{group}.{key} is null, and it has codes")
    in_steps = {tensor["measured"][key] is None for key in ("bound_ratio", "rmse_over_scale")}
    if len(in_steps) > 1:  # both need one step for all values
        raise ValueError(f"{place}.measured has one of bound_ratio and rmse_over_scale")


def _require_schema(path: Path, version: int) -> None:
    if version > SCHEMA:
        raise ValueError(f"{path} has schema {version}, newer than {SCHEMA}: update quantlab")
    if version < OLDEST:
        raise ValueError(f"{path} has schema {version}, older than {OLDEST}: run it again")


def figures(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a `Result` to the figures of one row."""
    lo, hi = tensor["range"]
    predicted = tensor["predicted"] or {}
    return {
        **tensor["measured"],
        **tensor["params"],
        "dtype": tensor["dtype"],
        "n_elements": tensor["n_elements"],
        "x_min": lo,
        "x_max": hi,
        **tensor["rank"],
        **{f"predicted_{key}": value for key, value in predicted.items() if key != "words"},
        "reasons": "; ".join(f"{key}: {why}" for key, why in tensor["reasons"].items()) or None,
        "underflowed": tensor["underflowed"],
        **tensor["storage"],
        **tensor["error_budget"],
        **{key: tensor[key] for key in CODEC_KEYS if key in tensor},
    }


def answer_figures(
    answer: Mapping[str, Any], tensors: Mapping[str, Row], form: str | None
) -> dict[str, Any]:
    """Flatten an `AnswerJson` to the figures of one row, and its `CHANGES`.

    `tensors` are the figures of the tensors of its run, `form` is the name of its format.
    """
    replaced = [*tensors.values()] if answer["tensor"] is None else [tensors[answer["tensor"]]]
    bits = sum(row["bits_per_value"] * row["n_elements"] for row in replaced)
    return {
        **{key: answer[key] for key in ("tensor", "output", "rows", "samples")},
        **answer["figures"],
        "bits_per_value": float(bits / sum(row["n_elements"] for row in replaced)),
        "kind": answer["kind"],
        "format": form,
        "remark": answer["remark"],
        "predicted_kl": answer.get("predicted_kl"),
        CHANGES: answer["changes"],
    }


def find(directory: Path) -> Iterator[Path]:
    """Yield every path named record.json below a directory, sorted.

    Links to directories are not followed, but a record right behind one is yielded, to be reported:
    it is not of this sweep. Hidden directories are Hydra's and its launchers'.
    """
    for root, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if NAME in files or NAME in folders:
            yield Path(root, NAME)
        links = (Path(root, name) for name in folders if Path(root, name).is_symlink())
        yield from (link / NAME for link in links if (link / NAME).exists())


class Run(NamedTuple):
    """A run directory, relative to its sweep; `record` and its sha256 are None if unreadable."""

    directory: str
    sha256: str | None
    record: Record | None
    error: str | None

    @property
    def is_incomplete(self) -> bool:
        """Whether some tensors could not be measured, and others were."""
        return bool(self.record and self.record["failed"] and self.record["tensors"])
