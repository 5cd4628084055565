"""Expand a sweep into jobs, drop contradictory or repeated ones, and find those already done."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from quantlab.errors import USER_ERRORS, error_sentence, options_hint
from quantlab.formats.element import ContradictionError
from quantlab.records import parts, record
from quantlab.records.parts import Division, RunIdentity
from quantlab.sweep.job import build, require_valid, run_environment, settings

FORMAT_KEYS = {"mode", "block", "range", "n_bits"}  # settings that may contradict each other
MODE_FILES = {"mode.path", "mode.imatrix"}  # files that some modes take
STATES = ("complete", "failed", "missing", "unreadable", "changed")  # of a job, on disk
NUMBERED = re.compile(r"hydra[:.]job\.(num|id)\b")

Overrides = Mapping[str, str]  # key -> the whole override as typed, such as "mode=sym"


class RunConfig(NamedTuple):
    """The config of a job, resolved: `settings` of the run, `directory` below that of the sweep."""

    settings: dict[str, Any]
    dist: str
    directory: str
    division: Division | None

    @property
    def identity(self) -> RunIdentity:
        """Identity of the run, to be compared with that of others."""
        return parts.identify_run(self.directory, self.dist, self.settings)


class Composition(NamedTuple):
    """How the jobs of a sweep are composed: by a loader, from the config of the sweep."""

    master: DictConfig
    loader: ConfigLoader

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose a config; raises Hydra's errors."""
        return self.loader.load_sweep_config(self.master, list(overrides))


@dataclass(frozen=True)
class Job:
    """One run of a sweep, the `number`-th that is launched.

    `position` is the same for all parts of a divided source: that of the whole in the sweep.
    """

    overrides: Overrides
    composition: Composition = field(repr=False, compare=False)
    number: int = 0
    position: int = 0

    @cached_property
    def run(self) -> RunConfig:
        """The config of the run, composed and resolved once; raises errors of Hydra's.

        The composed config itself is not kept: it takes 0.1 MB a job.
        """
        config = self.composition.compose(self.typed)
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
        return tuple(typed for key, typed in self.overrides.items() if _root(key) in FORMAT_KEYS)

    @property
    def without_part(self) -> tuple[str, ...]:
        """Overrides as typed, but those that divide a source that can be divided."""
        own = tuple(typed for typed in self.typed if not parts.is_part_override(typed))
        return own if len(own) < len(self.typed) and self.run.division else self.typed

    def place(self, number: int, position: int) -> "Job":
        """Return the job with its final number and position, its config composed once."""
        placed = replace(self, number=number, position=position)
        if number == self.number and "run" in vars(self):  # a config may name the number
            vars(placed)["run"] = self.run
        return placed

    def state(self, directory: Path) -> str:
        """Look up what became of the job in the directory of a sweep: one of `STATES`.

        It is "complete" only if a record answers this very config with these very tensors,
        "changed" if it answers others.
        """
        try:
            path = directory / self.run.directory / record.NAME
            return _record_state(path, self.run.settings) if path.exists() else "missing"
        except USER_ERRORS:  # the run will say it better
            return "changed"


def _record_state(path: Path, settings: dict[str, Any]) -> str:
    try:
        recorded = record.read(path)
    except ValueError:
        return "unreadable"
    if recorded["status"] == "failed":
        return "failed"
    experiment = build(settings)
    key = record.run_key(settings, *experiment.identify(), experiment.listing)
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
    composition = Composition(config, loader)
    parser = OverridesParser.create(loader)
    runs: list[Overrides] = []
    for arguments in products:
        overrides = parser.parse_overrides(list(arguments))
        _require_options(overrides, loader)
        runs += combinations(overrides, loader)
    runs = [_without_width(run) for run in _with_own_files(runs, composition)]
    unique = {tuple(run.values()): run for run in reversed(runs)}  # the first of equal ones
    jobs = [Job(run, composition, n) for n, run in enumerate(reversed(unique.values()))]
    jobs = _drop_contradictory(jobs)
    chosen = {_root(key) for job in jobs for key in job.overrides}
    if len(products) > 1 or chosen & {"block", "range"}:
        jobs = _drop_repeated(jobs)
    positions: dict[tuple[str, ...], int] = {}
    return [
        job.place(n, positions.setdefault(job.without_part, len(positions)))
        for n, job in enumerate(jobs)
    ]


def combinations(
    overrides: Sequence[Override], loader: ConfigLoader | None = None
) -> list[Overrides]:
    """Combine the values of overrides, the last key varying fastest; raises ValueError.

    A key given twice takes its last values, as in Hydra's basic sweeper; a value given twice is
    one run.
    """
    choices = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_interval_sweep():
            raise ValueError(
                f"{override.input_line}: an interval has no end, list values or use range"
            )
        if override.is_discrete_sweep():
            values = [f"{key}={value}" for value in _values(override, loader)]
            choices[key] = list(dict.fromkeys(values))
        else:
            choices[key] = [str(override.input_line)]
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def _values(override: Override, loader: ConfigLoader | None) -> Iterator[str]:
    """Yield the values of a sweep; a pattern such as ``glob(mx/*)`` also matches nested options."""
    yield from override.sweep_string_iterator()
    value = override.value()
    if not isinstance(value, Glob) or loader is None:
        return
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in value.include if "/" in name):
        group = f"{override.key_or_group}/{folder}"
        nested = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
        yield from value.filter([f"{folder}/{option}" for option in nested])


def _require_options(overrides: Sequence[Override], loader: ConfigLoader) -> None:
    """Raise ValueError if a sweep has no value, or its values make no difference."""
    for override in overrides:
        key = override.key_or_group
        if override.is_sweep_override() and not record.has_effect(key):
            raise ValueError(f"{override.input_line}: {key} changes no figure, give it one value")
        if override.is_discrete_sweep() and not list(_values(override, loader)):
            options = loader.get_group_options(key)
            hint = options_hint(key, options) if options else "name at least one value"
            if isinstance(override.value(), Glob) and not options:
                hint = "glob(...) matches options, not files: list files with commas"
            raise ValueError(f"{override.input_line} matches nothing: {hint}")


def _root(key: str) -> str:
    return key.lstrip("+~").partition(".")[0]


def _with_own_files(runs: Sequence[Overrides], composition: Composition) -> list[Overrides]:
    """Drop the files that the mode of a run does not take and another mode of the sweep does."""
    if not any(MODE_FILES & run.keys() for run in runs):
        return list(runs)
    modes = {run["mode"] for run in runs if "mode" in run}
    files = {mode: MODE_FILES & _mode_keys(composition.compose([mode])) for mode in modes}
    taken = set().union(*files.values())
    return [
        {
            key: typed
            for key, typed in run.items()
            if key not in taken or "mode" not in run or key in files[run["mode"]]
        }
        for run in runs
    ]


def _mode_keys(config: DictConfig) -> set[str]:
    return {f"mode.{key}" for key in config.mode}


def _without_width(run: Overrides) -> Overrides:
    """Drop the width, which is meant for other modes, from a run of a file."""
    if not run.get("mode", "").startswith("mode=file/"):
        return run
    return {key: typed for key, typed in run.items() if key != "n_bits"}


def _drop_contradictory(jobs: Sequence[Job]) -> list[Job]:
    """Drop the jobs that contradict themselves, and say how many do.

    Each value, each choice of groups and each format is built once. Raises the error of a wrong
    override, and that of a contradiction if nothing else is left.
    """
    contradictions: dict[tuple[str, ...], Exception] = {}
    built: set[str | tuple[str, ...]] = set()
    for job in jobs:
        groups = job.composition.master.hydra.runtime.choices
        chosen = tuple(typed for key, typed in job.overrides.items() if key in groups)
        choices: set[str | tuple[str, ...]] = {chosen, job.format_overrides, *job.typed}
        unbuilt = choices - built
        if not unbuilt or job.format_overrides in contradictions:
            continue
        try:
            require_valid(job.run.settings)
        except Exception as error:
            if not _is_contradiction(error):
                raise
            contradictions[job.format_overrides] = error
        else:
            built |= unbuilt
    possible = [job for job in jobs if job.format_overrides not in contradictions]
    if contradictions:
        form, why = next(iter(contradictions.items()))
        if not possible:
            raise why
        n_dropped, example = len(jobs) - len(possible), " ".join(form)
        print(f"left out: {n_dropped} of {len(jobs)} runs, {example}: {error_sentence(why)}")
    return possible


def _is_contradiction(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ContradictionError):
            return True
        error = error.__cause__
    return False


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
    identities = [job.run.identity for job in jobs]
    replaced = {directory / identity.directory for identity in identities}
    others = [path for folder, path in recorded.items() if folder not in replaced]
    parts.require_disjoint([*_recorded_identities(others, directory), *identities], directory)


def _recorded_identities(paths: Sequence[Path], directory: Path) -> Iterator[RunIdentity]:
    """Yield the identity of each run; records that cannot be read are passed over."""
    for path in paths:
        try:
            recorded = record.read(path)
        except ValueError:
            continue
        name = path.parent.relative_to(directory).as_posix()
        yield parts.identify_run(name, recorded["dist"], recorded["config"])
