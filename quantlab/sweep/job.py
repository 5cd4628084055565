"""Hydra's side of one run: from a config to an experiment, and to its record.

Importing this module registers the ``run_name`` resolver that names run directories; launchers
that work in processes of their own import it with the callback.
"""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from quantlab.conf import add_folder
from quantlab.experiment import Experiment
from quantlab.formats.blocks import PerTensor
from quantlab.formats.format import Codec, Format, compose
from quantlab.formats.ranges import AbsMax
from quantlab.formats.uniform import mode_name
from quantlab.records import record
from quantlab.records.older import DEFAULTS, current_name, with_current_names
from quantlab.records.parts import WHOLE, read_division, whole_config, without_part_overrides
from quantlab.report.bar import run_settings
from quantlab.sources.file import file_state
from quantlab.sources.imatrix import Imatrix
from quantlab.stats.parallel import usable_cores


def build(cfg: DictConfig) -> Experiment:
    """Return the experiment that a config describes; raises ValueError where it makes no sense."""
    imatrix = OmegaConf.select(cfg, "metrics.imatrix") or cfg.mode.get("imatrix")
    return Experiment(
        dist=instantiate(_plain(cfg.dist)),
        form=_format(cfg),
        importance=Imatrix(imatrix) if imatrix else None,
        k=OmegaConf.select(cfg, "rank.k"),
        extra_metrics=instantiate(OmegaConf.select(cfg, "metrics.extra") or {}),
        rel_threshold=OmegaConf.select(cfg, "metrics.rel_threshold"),
        threads=usable_cores() if cfg.threads is None else cfg.threads,
    )


def _format(cfg: DictConfig) -> Format | Codec:
    """Return the format of a config; one that knew no blocks has one float32 scale a tensor."""
    choices = {key: _plain(cfg[key]) for key in ("mode", "block", "range") if key in cfg}
    choices["mode"]["n_bits"] = cfg.n_bits
    files = [choices["mode"][key] for key in ("path", "imatrix") if choices["mode"].get(key)]
    states = [file_state(each) for each in files if Path(each).expanduser().is_file()]
    return _composed(json.dumps(choices), tuple(states))


@lru_cache
def _composed(choices: str, _: tuple[Any, ...]) -> Format | Codec:
    """Return the format of its choices, as JSON, with files of these states.

    Runs of a sweep share a few, and none changes.
    """
    chosen = json.loads(choices)
    imatrix = chosen["mode"].pop("imatrix", None)
    block, covered = (instantiate(chosen[key]) if key in chosen else None for key in DEFAULTS)
    if imatrix:
        mode = instantiate(chosen["mode"], _partial_=True)(imatrix=Imatrix(imatrix))
    else:
        mode = instantiate(chosen["mode"])
    return compose(mode, block or PerTensor(), covered or AbsMax())


def _plain(node: DictConfig) -> dict[str, Any]:
    """Return a config in plain containers, its classes under today's names."""
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    return cast("dict[str, Any]", with_current_names(plain))


@contextmanager
def run_environment(cfg: DictConfig) -> Iterator[None]:
    """Resolve a config as its run will: beside Hydra's own values, in the environment it sets."""
    HydraConfig.instance().set_config(cfg)
    add_import_path(cfg.hydra)
    with env_override(cfg.hydra.job.env_set):
        yield


def require_valid(cfg: DictConfig) -> None:
    """Raise ValueError where a config makes no experiment, or none that JSON can record."""
    with run_environment(cfg):
        build(cfg)
        run_settings(cfg)
        if not isinstance(cfg.get("resume", True), bool):
            raise ValueError(f"resume must be true or false, got {cfg.resume!r}")
        try:
            record.run_key(settings(cfg), {}, {})
        except InterpolationToMissingValueError:
            pass  # it names what only the run will have, such as its number
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
    add_import_path(hydra)
    choices = hydra.runtime.choices
    return record.run_and_write(
        Path(hydra.runtime.output_dir),
        work=lambda: build(cfg).run(),
        config=settings(cfg),
        dist=choices["dist"],
        mode=mode_name(choices["mode"]),
        n_bits=cfg.n_bits,
        job=_position(hydra),
        overrides=as_typed(hydra.overrides.task),
    )


def add_import_path(hydra: Any) -> None:
    """Let a config name classes in modules that stand beside it, in the --config-dir of a run."""
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line" and source.path not in sys.path:
            sys.path.append(source.path)
            add_folder(Path(source.path))


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Return a config in plain containers, without Hydra's own part.

    A source that is not divided has the config that it had before it could be.
    """
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config = cast("dict[str, Any]", OmegaConf.to_container(own, resolve=True))
    if read_division(config.get("dist")) == WHOLE:
        config = whole_config(config)
    return config | {key: _used(config[key]) for key in ("block", "range") if key in config}


def _used(choice: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an option that make a difference, where it says which these are."""
    uses = getattr(get_class(current_name(choice["_target_"])), "uses", choice)
    return {key: value for key, value in choice.items() if key == "_target_" or key in uses}


def as_typed(overrides: Sequence[str]) -> list[str]:
    """Return overrides as a person typed them: to read one with ${...} in it would resolve it."""
    return cast("list[str]", OmegaConf.to_container(cast("ListConfig", overrides)))


def _position(hydra: HydraConf) -> int | None:
    """Return which run of its sweep this is, counting from 0; a single run has no position.

    Launchers number what they are given, which is less than the sweep when it is resumed; the
    sweeper knows.
    """
    if "position" in hydra.sweeper:
        return hydra.sweeper.position
    return None if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num


def run_name(*, _root_: DictConfig) -> str:
    """Name a run's directory: its choices to read, a hash of its overrides to tell it apart.

    The name depends on what was asked alone, not on when, where, or the order of the overrides. The
    parts of a source share the name of the whole.
    """
    choices, overrides = _root_.hydra.runtime.choices, as_typed(_root_.hydra.overrides.task)
    asked, part = sorted(each for each in overrides if record.has_effect(each)), ""
    if divided := read_division(_root_.get("dist")):
        asked = [*without_part_overrides(asked)]
        part = divided.suffix
    width = "" if _root_.n_bits is None else f"-{_root_.n_bits}bit"
    readable = re.sub(r"[^\w.]+", "-", f"{choices.dist}-{choices.mode}{width}")
    return f"{readable[:80]}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}{part}"


def program() -> str:
    """Return what a person types to start a run."""
    name = sys.argv[0]
    return f"python {shlex.quote(name)}" if name.endswith(".py") else name


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("program", program, replace=True)
