"""Expand a sweep into jobs, drop contradictory or repeated ones, and find those already done.

Their configs are composed once for each choice of config groups.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from quantlab.conf import needs_setting
from quantlab.errors import USER_ERRORS, error_sentence, options_hint
from quantlab.formats.element import ContradictionError
from quantlab.formats.format import CHOICES
from quantlab.records import parts, record
from quantlab.records.older import as_recorded
from quantlab.records.parts import Division, RunIdentity
from quantlab.sweep.job import SHARED, as_typed, build, require_valid, run_environment, settings
from quantlab.text import as_text

FORMAT_KEYS = {*CHOICES, "n_bits"}  # settings that may contradict each other
SELECTION = ("include", "exclude", "select")  # settings of a file that select tensors
MODE_FILES = {"mode.path", "mode.imatrix"}  # files that some modes take
STATES = ("complete", "failed", "missing", "unreadable", "changed")  # of a job, on disk
NUMBERED = re.compile(r"hydra[:.]job\.(num|id)\b")
MAX_CONFIGS = 256  # in the cache, of 0.1 MB each
_composed: dict[tuple[str, ...], DictConfig] = {}  # of a process: Composers travel to workers

Overrides = Mapping[str, str]  # key -> the whole override as typed, such as "mode=sym"
Compose = Callable[[list[str]], DictConfig]  # overrides -> config; raises Hydra's errors


class Composer:
    """Hydra's own config loader, called once for each choice of config groups.

    What a plain ``key=value`` changes is changed in a copy of what Hydra composed, which takes a
    tenth of the time. The configs equal those that Hydra composes one by one.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self.sweep = uuid4().hex  # two sweeps of one process may differ in everything else

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """Compose the config of one run; raises Hydra's errors where that is impossible."""
        groups = master_config.hydra.runtime.choices
        overrides = [_parse_override(text) for text in sweep_overrides]
        kinds = [_classify_override(override, groups) for override in overrides]
        n_ordered = max((n for n, kind in enumerate(kinds, 1) if kind == "other"), default=0)
        settings = [n for n in range(n_ordered, len(kinds)) if kinds[n] == "setting"]
        structure = [text for n, text in enumerate(sweep_overrides) if n not in settings]
        config = deepcopy(self._compose(master_config, structure))
        try:
            for override in (overrides[n] for n in settings):
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:  # Hydra's own error names the override
            return self.loader.load_sweep_config(master_config, list(sweep_overrides))
        _set_overrides(config, overrides, as_typed(master_config.hydra.overrides.hydra))
        return config

    def _compose(self, master_config: DictConfig, structure: list[str]) -> DictConfig:
        key = (self.sweep, *structure)
        if key not in _composed:
            if len(_composed) == MAX_CONFIGS:
                _composed.clear()
            _composed[key] = self.loader.load_sweep_config(master_config, structure)
        return _composed[key]

    def __getattr__(self, name: str) -> Any:
        """Look up anything else in the loader."""
        if name.startswith("__") or name == "loader":  # while being unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.loader, name)


@cache
def _parse_override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def _classify_override(override: Override, groups: Collection[str]) -> str:
    """Classify an override: the choice of a "group", a "setting", or "other".

    Only a plain ``key=value`` may be made up for in a copy, and only after all that is "other":
    ``x=1 ++x=2`` is not ``++x=2 x=1``.
    """
    key = override.key_or_group
    plain = override.type == OverrideType.CHANGE and override.package is None
    if not plain or "/" in key or key == "hydra.searchpath":
        return "other"
    return "group" if key in groups else "setting"


def _set_overrides(config: DictConfig, overrides: Sequence[Override], launched: list[str]) -> None:
    """Write the overrides of a run where Hydra keeps them."""
    task = [override for override in overrides if not override.is_hydra_override()]
    hydra = [str(override.input_line) for override in overrides if override.is_hydra_override()]
    config.hydra.overrides.task = [str(override.input_line) for override in task]
    config.hydra.overrides.hydra = launched + hydra
    how = config.hydra.job.config.override_dirname
    shown = [str(item.input_line) for item in task if item.key_or_group not in how.exclude_keys]
    config.hydra.job.override_dirname = how.item_sep.join(sorted(shown)).replace("=", how.kv_sep)


class RunConfig(NamedTuple):
    """The config of a job, resolved: `settings` of the run, `directory` below that of the sweep."""

    settings: dict[str, Any]
    dist: str
    directory: str
    division: Division | None


@dataclass(frozen=True)
class Job:
    """One run of a sweep, the `number`-th that is launched.

    `position` is the same for all parts of a divided source: that of the whole in the sweep.
    """

    overrides: Overrides
    compose: Compose = field(repr=False, compare=False)
    number: int = 0
    position: int = 0

    @cached_property
    def run(self) -> RunConfig:
        """The config of the run, composed and resolved once; raises errors of Hydra's.

        The composed config itself is not kept: it takes 0.1 MB a job.
        """
        config = self.compose([*self.typed])
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = self.number, str(self.number)
        with run_environment(config):
            return RunConfig(
                settings(config),
                config.hydra.runtime.choices.dist,
                config.hydra.sweep.subdir,
                parts.read_division(config.get("dist")),
            )

    @property
    def typed(self) -> tuple[str, ...]:
        """Overrides as typed."""
        return tuple(self.overrides.values())

    @property
    def launched(self) -> list[str]:
        """Overrides for the launcher."""
        return [*self.typed, f"hydra.sweeper.position={self.position}"]

    @property
    def format_overrides(self) -> tuple[str, ...]:
        """Overrides that choose how tensors are stored."""
        return tuple(
            typed for key, typed in self.overrides.items() if _find_section(key) in FORMAT_KEYS
        )

    @property
    def without_part(self) -> tuple[str, ...]:
        """Overrides as typed, but those that divide a source that can be divided."""
        undivided = tuple(typed for typed in self.typed if not parts.is_part_override(typed))
        return undivided if undivided != self.typed and self.run.division else self.typed

    def place(self, number: int, position: int) -> "Job":
        """Copy the job with its final number and position, its config composed once."""
        job = replace(self, number=number, position=position)
        if number == self.number and "run" in vars(self):  # a config may name the number
            vars(job)["run"] = self.run
        return job

    def find_state(self, directory: Path) -> str:
        """Find the state of the job's record in the directory of a sweep: one of `STATES`.

        It is "complete" only if the record answers this very config with these very tensors,
        "changed" if it answers others.
        """
        try:
            path = directory / self.run.directory / record.NAME
            return _find_record_state(path, directory, self) if path.exists() else "missing"
        except USER_ERRORS:  # the run will say it better
            return "changed"


def _find_record_state(path: Path, directory: Path, job: Job) -> str:
    try:
        recorded = record.read(path, directory)
    except ValueError:
        return "unreadable"
    if recorded["status"] == "failed":
        return "failed"
    settings = job.run.settings
    if not any(typed.startswith("dist.select=") for typed in job.typed):
        settings = as_recorded(settings, recorded["config"])
    experiment = build(settings)
    key = record.run_key(
        settings, *experiment.identify(), experiment.listing, experiment.model_identity
    )
    return "complete" if recorded["key"] == key else "changed"


def is_numbered(config: DictConfig) -> bool:
    """Test whether directories are named by launch number, which says nothing of their run."""
    return bool(NUMBERED.search(OmegaConf.to_yaml(config.hydra.sweep)))


def expand(
    products: Sequence[Sequence[str]], config: DictConfig, loader: ConfigLoader
) -> list[Job]:
    """Expand products of values into jobs, one product after the other, each job once.

    Combinations that contradict themselves are left out, with a line of text. Raises ValueError or
    an error of Hydra's if a value makes no sense, or nothing is left.
    """
    compose: Compose = partial(loader.load_sweep_config, config)
    parser = OverridesParser.create(loader)
    parsed = [parser.parse_overrides(list(arguments)) for arguments in products]
    runs = [run for overrides in parsed for run in combine(overrides, loader)]
    runs = [_drop_width(run) for run in _drop_unused_files(runs, compose)]
    unique = {tuple(run.values()): run for run in runs}
    jobs = [Job(run, compose, n) for n, run in enumerate(unique.values())]
    jobs = _drop_contradictory(jobs, config.hydra.runtime.choices)
    sections = {_find_section(key) for job in jobs for key in job.overrides}
    if len(products) > 1 or sections & {*SHARED}:
        jobs = _drop_repeated(jobs)
    positions: dict[tuple[str, ...], int] = {}
    return [
        job.place(n, positions.setdefault(job.without_part, len(positions)))
        for n, job in enumerate(jobs)
    ]


def combine(overrides: Sequence[Override], loader: ConfigLoader) -> list[Overrides]:
    """Combine the values of overrides, the last key varying fastest; raises ValueError.

    A key given twice takes its last values, as in Hydra's basic sweeper; a value given twice is
    one run.
    """
    choices = {}
    for override in overrides:
        key, text = override.get_key_element(), str(override.input_line)
        values = _list_values(override, loader) if override.is_sweep_override() else None
        choices[key] = [text] if values is None else [f"{key}={value}" for value in values]
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def _list_values(override: Override, loader: ConfigLoader) -> list[str]:
    """List the values of a sweep, each once; raises ValueError if there is none to tell apart.

    ``glob(*)`` leaves out the options that need a setting, which the others would not have.
    """
    key, text = override.key_or_group, override.input_line
    if not record.has_effect(key):
        raise ValueError(f"{text}: {key} changes no figure, give it one value")
    if override.is_interval_sweep():
        raise ValueError(f"{text}: an interval has no end, list values or use range")
    pattern = override.value()
    values = list(dict.fromkeys(override.sweep_string_iterator()))
    if isinstance(pattern, Glob):
        values = [option for option in values if not needs_setting(key, option)]
        values = list(dict.fromkeys([*values, *_match_nested_options(key, pattern, loader)]))
    if not values:
        options = loader.get_group_options(key)
        hint = options_hint(key, options) if options else "name at least one value"
        if isinstance(pattern, Glob) and not options:
            hint = "glob(...) matches options, not files: list files with commas"
        raise ValueError(f"{text} matches nothing: {hint}")
    return values


def _match_nested_options(key: str, pattern: Glob, loader: ConfigLoader) -> Iterator[str]:
    """Yield the options that a pattern such as ``glob(mx/*)`` matches in groups below a group."""
    folders = (name.rpartition("/")[0] for name in pattern.include if "/" in name)
    for folder in dict.fromkeys(folders):
        options = loader.get_group_options(f"{key}/{folder}", results_filter=ObjectType.CONFIG)
        yield from pattern.filter([f"{folder}/{option}" for option in options])


def _find_section(key: str) -> str:
    return key.lstrip("+~").partition(".")[0]


def _drop_unused_files(runs: Sequence[Overrides], compose: Compose) -> list[Overrides]:
    """Drop the files that the mode of a run does not take and another mode of the sweep does."""
    if not any(MODE_FILES & run.keys() for run in runs):
        return list(runs)
    modes = {run["mode"] for run in runs if "mode" in run}
    files = {mode: MODE_FILES & {f"mode.{key}" for key in compose([mode]).mode} for mode in modes}
    taken = set().union(*files.values())
    unused = [taken - files.get(run.get("mode", ""), taken) for run in runs]
    return [
        {key: typed for key, typed in run.items() if key not in keys}
        for run, keys in zip(runs, unused, strict=True)
    ]


def _drop_width(run: Overrides) -> Overrides:
    """Drop the width, which is meant for other modes, from a run of a file or a plan."""
    mode = run.get("mode", "")
    if not mode.startswith("mode=file/") and mode != "mode=plan":
        return run
    return {key: typed for key, typed in run.items() if key != "n_bits"}


def _drop_contradictory(jobs: Sequence[Job], groups: Mapping[str, Any]) -> list[Job]:
    """Drop the jobs that contradict themselves, and print how many do.

    Each value, each choice of `groups` and each format is built once. Raises the error of a wrong
    override, and that of a contradiction if nothing else is left.
    """
    contradictions: dict[tuple[str, ...], Exception] = {}
    built: set[str | tuple[str, ...]] = set()
    for job in jobs:
        options = tuple(typed for key, typed in job.overrides.items() if key in groups)
        choices: set[str | tuple[str, ...]] = {options, job.format_overrides, *job.typed}
        if choices <= built or job.format_overrides in contradictions:
            continue
        try:
            require_valid(job.run.settings)
        except Exception as error:
            if not _is_contradiction(error):
                raise
            contradictions[job.format_overrides] = error
        else:
            built |= choices
    possible = [job for job in jobs if job.format_overrides not in contradictions]
    if contradictions:
        overrides, reason = next(iter(contradictions.items()))
        if not possible:
            raise reason
        n_dropped, example = len(jobs) - len(possible), " ".join(overrides)
        print(f"left out: {n_dropped} of {len(jobs)} runs, {example}: {error_sentence(reason)}")
    return possible


def _is_contradiction(error: BaseException | None) -> bool:
    if error is None:
        return False
    return isinstance(error, ContradictionError) or _is_contradiction(error.__cause__)


def _drop_repeated(jobs: Sequence[Job]) -> list[Job]:
    """Keep the first of the jobs that resolve to the same config."""
    first: dict[tuple[str, str], Job] = {}
    for job in tqdm(jobs, desc="comparing runs", delay=1, disable=None, leave=False):
        key = job.run.dist, record.run_key(job.run.settings, {}, {})
        first.setdefault(key, job)
    return [*first.values()]


def require_disjoint(jobs: Sequence[Job], directory: Path) -> None:
    """Raise ValueError if jobs, or runs that a directory holds, measure the same tensors in parts.

    Only a sweep of parts, or into a directory with names of parts, is looked at: whatever else
    there may be, the aggregate refuses too.
    """
    recorded = {path.parent: path for path in record.find(directory)}
    divided = any(parts.is_part_override(typed) for job in jobs for typed in job.typed)
    if not divided and not any(parts.PART_SUFFIX.search(folder.name) for folder in recorded):
        return
    runs = [job.run for job in jobs]
    identities = [parts.identify_run(run.directory, run.dist, run.settings) for run in runs]
    replaced = {directory / run.directory for run in runs}
    others = [path for folder, path in recorded.items() if folder not in replaced]
    parts.require_disjoint([*_recorded_identities(others, directory), *identities], directory)


def require_one_selection(jobs: Sequence[Job], directory: Path) -> None:
    """Raise ValueError if jobs, or runs that a directory holds, select other tensors of one source.

    A tensor would have a verdict for each selection, and a plan would not know of which it is.
    """
    selections: dict[str, Mapping[str, Any]] = {}
    for job in jobs if _may_differ(jobs, directory) else ():
        source, selection = _find_selection(job.run.dist, job.run.settings)
        key = _differing_key(selections.setdefault(source, selection), selection)
        if key:
            raise ValueError(
                f"{key} takes one selection in a sweep, which may be a list, as in "
                f"{key}=[conv*,fc*]: give each selection a hydra.sweep.dir of its own"
            )
    replaced = {directory / job.run.directory for job in jobs} if selections else set()
    for content in _read_others(directory, replaced) if selections else ():
        source, selection = _find_selection(content["dist"], content["config"])
        key = _differing_key(selections.get(source, selection), selection)
        if key:
            before, after = (as_text(held[key]) for held in (selection, selections[source]))
            raise ValueError(
                f"{directory} holds runs with {key}={before}, not {after}: give each selection a "
                "hydra.sweep.dir of its own, or remove the directory"
            )


def _may_differ(jobs: Sequence[Job], directory: Path) -> bool:
    """Test without composing configs if runs may select different tensors."""
    keys = tuple(f"dist.{key}=" for key in SELECTION)
    selections = {tuple(text for text in job.typed if text.startswith(keys)) for job in jobs}
    return len(selections) > 1 or any(record.find(directory))


def _find_selection(dist: str, settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return what identifies a source of tensors, and the settings that select some of them."""
    source = settings.get("dist")
    if not isinstance(source, Mapping):
        return dist, {}
    others = {key: value for key, value in source.items() if key not in SELECTION}
    identity = parts.whole_config({"dist": others})["dist"]
    selection = {f"dist.{key}": source[key] for key in SELECTION if key in source}
    return json.dumps([dist, identity], sort_keys=True, default=str), selection


def _differing_key(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the first setting in which two selections differ; older versions lack some."""
    return next((key for key in before.keys() & after.keys() if before[key] != after[key]), None)


def _read_others(directory: Path, replaced: Collection[Path]) -> Iterator[record.Record]:
    """Read the records of runs that stay; those that cannot be read are passed over."""
    for path in record.find(directory):
        if path.parent not in replaced:
            with suppress(ValueError):
                yield record.read(path, directory)


def _recorded_identities(paths: Sequence[Path], directory: Path) -> Iterator[RunIdentity]:
    """Yield the identity of each run; records that cannot be read are passed over."""
    for path in paths:
        try:
            recorded = record.read(path, directory)
        except ValueError:
            continue
        name = path.parent.relative_to(directory).as_posix()
        yield parts.identify_run(name, recorded["dist"], recorded["config"])
