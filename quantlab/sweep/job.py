"""Hydra's side of one run: from a config to an experiment, and to its record.

Importing this module registers the ``run_name`` resolver that names run directories; launchers
that work in processes of their own import it with the callback.
"""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from quantlab.conf import add_folder, own_settings
from quantlab.experiment import Experiment
from quantlab.formats.format import CHOICES, Codec, Format
from quantlab.formats.ggml import Importance
from quantlab.formats.gram import LayerInputs
from quantlab.formats.uniform import mode_name
from quantlab.models.activations import InputPowers, open_inputs
from quantlab.models.model import Evaluation
from quantlab.models.onnx import OnnxModel
from quantlab.plans.planned import make_format
from quantlab.records import record
from quantlab.records.journal import Journal, remove_journal
from quantlab.records.older import current_name, with_current_names
from quantlab.records.parts import WHOLE, read_division, whole_config, without_part_overrides
from quantlab.report.bar import run_settings
from quantlab.sources.file import expand_home, file_state
from quantlab.sources.imatrix import Imatrix
from quantlab.sources.onnx import Onnx
from quantlab.stats.metrics import Metric
from quantlab.stats.parallel import usable_cores
from quantlab.sweep.workers import end_with_sweep

SHARED = ("block", "range", "transform", "rounding")  # groups whose options share their settings
FILE_KEYS = ("path", "imatrix", "inputs")  # of a mode, a range, a transform or a rounding
EVALUATION_KEYS = ("outputs", "labels", "each")  # of a model, whatever its class
MAX_FORMATS = 64  # in the cache: a sweep alternates between a few
_formats: dict[str, Format | Codec] = {}


def build(config: Mapping[str, Any]) -> Experiment:
    """Build the experiment of a config in plain containers; raises ValueError if it makes none."""
    config = with_current_names(config)
    for key in ("dist", "mode"):
        if not isinstance(config.get(key), Mapping) or "n_bits" not in config:
            raise ValueError("it is no config of a run: it takes dist, mode and n_bits")
    threads = config.get("threads")
    return Experiment(
        dist=instantiate(config["dist"]),
        form=_build_format(config),
        importance=_build_importance(config),
        inputs=_build_inputs(config),
        extra_metrics=_build_metrics(config),
        evaluation=_build_evaluation(config),
        k=_find_setting(config, "rank", "k"),
        rel_threshold=_find_setting(config, "metrics", "rel_threshold"),
        threads=usable_cores() if threads is None else threads,
    )


def _find_setting(config: Mapping[str, Any], section: str, key: str) -> Any:
    """Look up a setting; None if there is no such section, as in a config of an older version."""
    values = config.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _build_metrics(config: Mapping[str, Any]) -> dict[str, Metric]:
    """Build the metrics of one's own; raises ValueError where a yaml does not name its place."""
    if config.get("metric"):
        raise ValueError(
            "metric=[...] names a yaml that adds nothing to metrics.extra: begin it with "
            "'# @package metrics.extra.NAME'"
        )
    metrics: dict[str, Metric] = instantiate(_find_setting(config, "metrics", "extra") or {})
    return metrics


def _build_importance(config: Mapping[str, Any]) -> Importance | None:
    """Build what says how much each input of a layer counts; None where nothing does."""
    imatrix, inputs = (_find_setting(config, "metrics", key) for key in ("imatrix", "inputs"))
    if imatrix and inputs:
        raise ValueError("metrics.imatrix and metrics.inputs both weigh inputs: leave one out")
    if inputs:
        model = _model_path(config)
        return InputPowers(model, inputs) if model else None
    imatrix = imatrix or config["mode"].get("imatrix")
    return Imatrix(imatrix) if imatrix else None


def _build_inputs(config: Mapping[str, Any]) -> LayerInputs | None:
    """Build what knows the inputs of layers; None where nothing does."""
    path = _find_setting(config, "metrics", "inputs")
    if not path and not _find_setting(config, "metrics", "imatrix"):
        path = _find_setting(config, "rounding", "inputs")
    return open_inputs(path, _model_path(config)) if path else None


def _model_path(config: Mapping[str, Any]) -> str | None:
    """Return the path of the source where it is a model that can be run; None of any other."""
    is_model = get_class(current_name(config["dist"]["_target_"])) is Onnx
    return config["dist"].get("path") if is_model else None


def _build_evaluation(config: Mapping[str, Any]) -> Evaluation | None:
    """Build the model that answers, and how its answers are compared; None where none does."""
    if not config.get("model"):
        return None
    own = {key: value for key, value in config["model"].items() if key not in EVALUATION_KEYS}
    settings = {key: config["model"][key] for key in EVALUATION_KEYS if key in config["model"]}
    settings["outputs"] = dict(_dotted(settings.get("outputs") or {}))
    model = instantiate(own)
    if isinstance(model, OnnxModel):
        model = replace(model, threads=config.get("threads"))
    return Evaluation(model, _find_setting(config, "rank", "k"), config=own, **settings)


def _dotted(names: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the items of mappings by their dotted keys: the name of an output may have dots."""
    for key, value in names.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _build_format(config: Mapping[str, Any]) -> Format | Codec:
    """Build the format of a config, or look it up: the runs of a sweep share a few.

    Formats never change, but the files that some read may.
    """
    choices = {key: config[key] for key in CHOICES if config.get(key)}
    choices["mode"] = {**choices["mode"], "n_bits": config["n_bits"]}
    if "_target_" not in choices.get("rounding", {}):  # which is to the nearest
        choices.pop("rounding", None)
    files = [option[key] for option in choices.values() for key in FILE_KEYS if option.get(key)]
    states = [file_state(file) for file in files if expand_home(file).is_file()]
    model = _model_path(config) if "rounding" in choices else None
    key = json.dumps([choices, states, model], default=str)
    if key not in _formats:
        if len(_formats) == MAX_FORMATS:
            _formats.clear()
        _formats[key] = make_format(choices, model)
    return _formats[key]


@contextmanager
def run_environment(cfg: DictConfig) -> Iterator[None]:
    """Set what a run resolves its config with: Hydra's own values and environment variables."""
    HydraConfig.instance().set_config(cfg)
    add_import_path(cfg.hydra)
    with env_override(cfg.hydra.job.env_set):
        yield


def require_valid(config: Mapping[str, Any]) -> None:
    """Raise ValueError if settings make no experiment, or none that JSON can record."""
    build(config)
    run_settings(DictConfig(config))
    if not isinstance(config.get("resume", True), bool):
        raise ValueError(f"resume must be true or false, got {config['resume']!r}")
    try:
        record.run_key(dict(config), {}, {})
    except (TypeError, ValueError) as reason:
        raise ValueError(f"a setting cannot be recorded as JSON ({reason})") from None


def make_directory(directory: Path) -> None:
    """Make the directory of a run or sweep; raises ValueError where it cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ValueError(
            f"{directory} cannot be made ({reason.strerror}): run where you may write, or name "
            "another directory with hydra.sweep.dir=..."
        ) from None


def run(cfg: DictConfig, hydra: HydraConf) -> record.Record:
    """Measure what a config describes and keep its record in Hydra's output directory."""
    end_with_sweep()
    add_import_path(hydra)
    choices, config = hydra.runtime.choices, settings(cfg)
    directory = Path(hydra.runtime.output_dir)

    def open_journal(outcome: record.Outcome) -> Journal:
        key = record.outcome_key(config, outcome)
        return Journal(directory, f"{key} {json.dumps(outcome.versions)}")

    done = record.run_and_write(
        directory,
        work=lambda: build(config).run(open_journal),
        config=config,
        dist=choices["dist"],
        mode=mode_name(choices["mode"]),
        n_bits=cfg.n_bits,
        job=_find_position(hydra),
        overrides=as_typed(hydra.overrides.task),
    )
    if done["status"] == "completed":
        remove_journal(directory)
    return done


def add_import_path(hydra: Any) -> None:
    """Let a config name classes in modules that stand beside it, in the --config-dir of a run."""
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line" and source.path not in sys.path:
            sys.path.append(source.path)
            add_folder(Path(source.path))


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a config to plain containers, without Hydra's own part.

    A source that is not divided has the config that it had before it could be.
    """
    masked = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    content = OmegaConf.to_container(masked, resolve=True, throw_on_missing=True)
    config = cast("dict[str, Any]", content)
    if read_division(config.get("dist")) == WHOLE:
        config = whole_config(config)
    config = _without_nearest(config)
    shared = {
        key: own_settings(key, with_current_names(config[key])) for key in SHARED if key in config
    }
    # transform=none is no transform.
    return {key: own for key, own in (config | shared).items() if own or key not in SHARED}


def _without_nearest(config: dict[str, Any]) -> dict[str, Any]:
    """Drop the group of the rounding from a config that rounds to nearest, as before there was one.

    Inputs that other roundings of its sweep take judge it too, unless something else does.
    """
    rounding = config.get("rounding")
    if not isinstance(rounding, dict) or "_target_" in rounding:
        return config
    others = {key: value for key, value in config.items() if key != "rounding"}
    metrics = others.get("metrics")
    if rounding.get("inputs") and isinstance(metrics, dict):
        is_judged = metrics.get("inputs") or metrics.get("imatrix")
        others["metrics"] = metrics | ({} if is_judged else {"inputs": rounding["inputs"]})
    return others


def as_typed(overrides: Sequence[str]) -> list[str]:
    """List overrides as typed: to read one with ${...} in it would resolve it."""
    return cast("list[str]", OmegaConf.to_container(cast("ListConfig", overrides)))


def _find_position(hydra: HydraConf) -> int | None:
    """Look up the position of a run in its sweep, counted from 0; None of a single run.

    Launchers number the runs they are given, which are fewer when a sweep is resumed.
    """
    if "position" in hydra.sweeper:
        return hydra.sweeper.position
    return None if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num


def name_run(*, _root_: DictConfig) -> str:
    """Name a run's directory: its choices to read, a hash of its overrides to tell it apart.

    The name depends on the overrides alone, not on their order, the time or the place. The parts of
    a source share the name of the whole.
    """
    choices, typed = _root_.hydra.runtime.choices, as_typed(_root_.hydra.overrides.task)
    overrides = sorted(override for override in typed if record.has_effect(override))
    division = read_division(_root_.get("dist"))
    if division:
        overrides = [*without_part_overrides(overrides)]
    suffix = division.suffix if division else ""
    width = "" if _root_.n_bits is None else f"-{_root_.n_bits}bit"
    readable = re.sub(r"[^\w.]+", "-", f"{choices.dist}-{choices.mode}{width}")
    digest = hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:16]
    return f"{readable[:80]}-{digest}{suffix}"


def format_program() -> str:
    """Format the command that starts a run, such as ``python run.py``."""
    name = sys.argv[0]
    return f"python {shlex.quote(name)}" if name.endswith(".py") else name


OmegaConf.register_new_resolver("run_name", name_run, replace=True)
OmegaConf.register_new_resolver("program", format_program, replace=True)
