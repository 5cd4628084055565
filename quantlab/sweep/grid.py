"""The runs of a sweep: every combination of the values that are typed, none of them nonsense."""

from collections.abc import Iterator, Sequence
from itertools import product

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig
from tqdm import tqdm

from quantlab.errors import error_sentence, options_hint
from quantlab.formats.element import ContradictionError
from quantlab.records.record import has_effect, run_key
from quantlab.sweep.divisions import without_parts
from quantlab.sweep.job import require_valid, run_environment, settings

Job = list[str]  # the overrides of one run
FILES = ("mode.path=", "mode.imatrix=")  # files that some modes take
FORMAT = ("mode", "block", "range", "n_bits")  # keys that may contradict each other


def grid(products: Sequence[Sequence[str]], config: DictConfig, loader: ConfigLoader) -> list[Job]:
    """Return the runs that products of values ask for, each with its position in the sweep.

    One product after the other; what is asked twice is one run, and all parts of a divided source
    have the position of the whole. Combinations that contradict themselves are left out, with a
    line of text. Raises ValueError or an error of Hydra's where a value makes no sense, or nothing
    is left.
    """
    parser = OverridesParser.create(loader)
    jobs = []
    for arguments in products:
        overrides = parser.parse_overrides(list(arguments))
        _require_options(overrides, loader)
        jobs += combinations(overrides, loader)
    jobs = [_without_width(job) for job in _with_own_settings(jobs, config, loader)]
    jobs = _possible(list(map(list, dict.fromkeys(map(tuple, jobs)))), config, loader)
    if len(products) > 1 or any(
        each.startswith(("block", "range")) for job in jobs for each in job
    ):
        jobs = list(_distinct(jobs, config, loader))
    numbers: dict[tuple[str, ...], int] = {}
    wholes = [tuple(job) for job in without_parts(jobs, config, loader)]
    positions = [numbers.setdefault(whole, len(numbers)) for whole in wholes]
    return [
        [*job, f"hydra.sweeper.position={position}"]
        for job, position in zip(jobs, positions, strict=True)
    ]


def combinations(overrides: Sequence[Override], loader: ConfigLoader | None = None) -> list[Job]:
    """Return the overrides of each run, the last key varying fastest; raises ValueError.

    A key given twice takes its last values, as in Hydra's basic sweeper; a value given twice is
    one run.
    """
    choices = {}
    for each in overrides:
        key = each.get_key_element()
        if each.is_interval_sweep():
            raise ValueError(f"{each.input_line}: an interval has no end, list values or use range")
        swept = each.is_discrete_sweep()
        values = [f"{key}={value}" for value in _values(each, loader)] if swept else []
        choices[key] = list(dict.fromkeys(values)) if swept else [str(each.input_line)]
    return [list(each) for each in product(*choices.values())]


def _values(override: Override, loader: ConfigLoader | None) -> Iterator[str]:
    """Yield the values of a sweep; a pattern such as ``glob(mx/*)`` also matches nested options."""
    yield from override.sweep_string_iterator()
    value = override.value()
    if not isinstance(value, Glob) or loader is None:
        return
    for folder in dict.fromkeys(each.rpartition("/")[0] for each in value.include if "/" in each):
        group = f"{override.key_or_group}/{folder}"
        nested = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
        yield from value.filter([f"{folder}/{option}" for option in nested])


def _require_options(overrides: Sequence[Override], loader: ConfigLoader) -> None:
    """Raise ValueError where a sweep has no value, or its values make no difference."""
    for each in overrides:
        key = each.key_or_group
        if each.is_sweep_override() and not has_effect(key):
            raise ValueError(f"{each.input_line}: {key} changes no figure, give it one value")
        if each.is_discrete_sweep() and not list(_values(each, loader)):
            options = loader.get_group_options(key)
            hint = options_hint(key, options) if options else "name at least one value"
            raise ValueError(f"{each.input_line} matches nothing: {hint}")


def _with_own_settings(jobs: Sequence[Job], config: DictConfig, loader: ConfigLoader) -> list[Job]:
    """Return runs without the file that their mode does not take and another of the sweep does."""
    if not any(each.startswith(FILES) for job in jobs for each in job):
        return list(jobs)
    modes = {each for job in jobs for each in job if each.startswith("mode=")}
    keys = {each: set(loader.load_sweep_config(config, [each]).mode) for each in modes}
    known = {f"mode.{key}=" for each in keys.values() for key in each} & set(FILES)

    def fits(override: str, job: Job) -> bool:
        file = next((each for each in known if override.startswith(each)), None)
        mode = next((each for each in job if each in keys), None)
        return file is None or mode is None or file[len("mode.") : -1] in keys[mode]

    return [[each for each in job if fits(each, job)] for job in jobs]


def _without_width(job: Job) -> Job:
    """Return a run without the width, which is meant for other modes, if it is of a file."""
    of_file = any(each.startswith("mode=file/") for each in job)
    return [each for each in job if not (of_file and each.startswith("n_bits="))]


def _possible(jobs: Sequence[Job], config: DictConfig, loader: ConfigLoader) -> list[Job]:
    """Return the runs that do not contradict themselves; say how many do.

    Each value, each choice of groups and each format is built once. Raises the error of a wrong
    override, and that of a contradiction where nothing else is left.
    """
    groups = config.hydra.runtime.choices
    contradictions: dict[tuple[str, ...], Exception] = {}
    seen: set[str | tuple[str, ...]] = set()
    for job in jobs:
        chosen = tuple(each for each in job if each.partition("=")[0] in groups)
        form = _format_of(job)
        news: set[str | tuple[str, ...]] = {chosen, form, *job}
        if news <= seen or form in contradictions:
            continue
        try:
            require_valid(loader.load_sweep_config(config, job))
        except Exception as error:
            if not _is_contradiction(error):
                raise
            contradictions[form] = error
        else:
            seen |= news
    kept = [job for job in jobs if _format_of(job) not in contradictions]
    if contradictions:
        form, why = next(iter(contradictions.items()))
        if not kept:
            raise why
        left_out, example = len(jobs) - len(kept), " ".join(form)
        print(f"left out: {left_out} of {len(jobs)} runs, {example}: {error_sentence(why)}")
    return kept


def _format_of(job: Job) -> tuple[str, ...]:
    """Return the overrides of a run that say how its tensors are stored."""
    return tuple(each for each in job if each.lstrip("+~").startswith(FORMAT))


def _is_contradiction(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ContradictionError):
            return True
        error = error.__cause__
    return False


def _distinct(jobs: Sequence[Job], config: DictConfig, loader: ConfigLoader) -> Iterator[Job]:
    """Yield the first of the runs that resolve to the same config."""
    seen = set()
    for job in tqdm(jobs, desc="comparing runs", delay=1, disable=None, leave=False):
        composed = loader.load_sweep_config(config, job)
        with run_environment(composed):
            key = run_key(settings(composed), {}, {}), composed.hydra.runtime.choices.dist
        if key not in seen:
            seen.add(key)
            yield job
